"""The learning rate as a pure function of tokens seen. Source: appendix B of Brown et al. 2020."""

import math


def learning_rate_factor(tokens: int, warmup_tokens: int, decay_tokens: int, min_ratio: float) -> float:
    """Share of the peak learning rate after `tokens` tokens.

    Linear warm-up over `warmup_tokens`, cosine down to `min_ratio` at `decay_tokens`, constant from there on.

    Args:
        tokens: Tokens seen.
        warmup_tokens: Tokens of warm-up; the paper's are 375M.
        decay_tokens: Tokens at which the cosine ends; the paper's are 260B.
        min_ratio: Where it ends, as a share of the peak; the paper's is 0.1.
    """
    if tokens < warmup_tokens:
        return tokens / warmup_tokens
    if tokens >= decay_tokens:
        return min_ratio
    progress = (tokens - warmup_tokens) / (decay_tokens - warmup_tokens)
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))
