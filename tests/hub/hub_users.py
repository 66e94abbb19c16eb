"""Tokens of the local Hub's users."""

TOKEN = "hf_kimWriteToken0123456789"
READ_TOKEN = "hf_kimReadToken0123456789"
OTHER_TOKEN = "hf_leeWriteToken0123456789"
