import math
from itertools import pairwise

import pytest

from hfgpt.training.schedule import learning_rate_factor


PAPER = {"warmup_tokens": 375_000_000, "decay_tokens": 260_000_000_000, "min_ratio": 0.1}


@pytest.mark.parametrize(
    ("tokens", "factor"),
    [
        (0, 0.0),
        (187_500_000, 0.5),
        (375_000_000, 1.0),
        ((375_000_000 + 260_000_000_000) // 2, 0.55),
        (260_000_000_000, 0.1),
        (300_000_000_000, 0.1),
    ],
)
def test_the_papers_schedule(tokens, factor):
    assert learning_rate_factor(tokens, **PAPER) == pytest.approx(factor, abs=1e-6)


def test_it_rises_then_falls_without_a_jump():
    values = [learning_rate_factor(tokens, 100, 1000, 0.1) for tokens in range(1200)]
    peak = values.index(max(values))
    assert peak == 100
    assert values[:peak] == sorted(values[:peak])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert max(abs(a - b) for a, b in pairwise(values)) <= 0.01 + 1e-9


def test_no_warm_up_starts_at_the_peak():
    assert learning_rate_factor(0, 0, 1000, 0.1) == 1.0
    assert math.isclose(learning_rate_factor(500, 0, 1000, 0.0), 0.5)
