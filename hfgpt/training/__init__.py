"""Pretraining and fine-tuning with transformers' Trainer."""
