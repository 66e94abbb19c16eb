"""Tokens of the local Hub's users, as long as the Hub's."""

TOKEN = "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1"
READ_TOKEN = "hf_kimReadTokenKimReadTokenKimReadToke"
OTHER_TOKEN = "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2"
UNKNOWN_TOKEN = "hf_nobodyKnowsThisTokenNobodyKnowsIt34"
