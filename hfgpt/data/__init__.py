"""Corpora: readers, tokenizers, token shards, and the order in which training reads them."""
