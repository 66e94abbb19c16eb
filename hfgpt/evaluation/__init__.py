"""Scores of models: the paper's zero-, one- and few-shot protocol, fine-tuned models on any rows, and perplexity."""
