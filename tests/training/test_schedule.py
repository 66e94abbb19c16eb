"""The schedules against the paper's numbers, worked out here in fractions, and against stepping through a run."""

import math
import random
from fractions import Fraction
from itertools import islice, pairwise

import pytest

from hfgpt.model import PRESETS
from hfgpt.training.schedule import BatchSchedule, batch_size_tokens, learning_rate_factor


PAPER = {"warmup_tokens": 375_000_000, "decay_tokens": 260_000_000_000, "min_ratio": 0.1}
BILLION = 10**9
PLACES = [0, 375_000_000, 4 * BILLION, 12 * BILLION, 260 * BILLION, 300 * BILLION]

# Table 2.1 and appendix B: peak learning rate in units of 1e-5, full batch in tokens, tokens over which it grows.
PUBLISHED = {
    "gpt3-125m": (60, 500_000, 4 * BILLION),
    "gpt3-350m": (30, 500_000, 4 * BILLION),
    "gpt3-760m": (25, 500_000, 4 * BILLION),
    "gpt3-1.3b": (20, 1_000_000, 6 * BILLION),
    "gpt3-2.7b": (16, 1_000_000, 6 * BILLION),
    "gpt3-6.7b": (12, 2_000_000, 8 * BILLION),
    "gpt3-13b": (10, 2_000_000, 8 * BILLION),
    "gpt3-175b": (6, 3_200_000, 12 * BILLION),
}
PI = Fraction("3.14159265358979323846264338327950288419716939937510")


def cosine(angle):
    """By its series, exact to far more places than a float has."""
    total, term = Fraction(0), Fraction(1)
    for k in range(1, 40):
        total += term
        term *= -angle * angle / ((2 * k - 1) * (2 * k))
    return total


def published_rate(peak, tokens):
    """The learning rate of appendix B as a fraction."""
    warm, end = 375_000_000, 260 * BILLION
    if tokens < warm:
        return peak * Fraction(tokens, warm)
    if tokens > end:
        return peak / 10
    return peak * (Fraction(1, 10) + Fraction(9, 20) * (1 + cosine(PI * Fraction(tokens - warm, end - warm))))


def test_every_preset_is_in_the_table():
    assert set(PRESETS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("tokens", PLACES)
def test_the_papers_schedules_of_every_preset(name, tokens):
    preset = PRESETS[name]
    units, full, ramp = PUBLISHED[name]
    rate = preset.learning_rate * learning_rate_factor(tokens, **PAPER)
    assert rate == pytest.approx(float(published_rate(Fraction(units, 100_000), tokens)), rel=1e-12, abs=0)
    grown = 32_000 + (full - 32_000) * min(Fraction(tokens, ramp), 1)
    batch = batch_size_tokens(tokens, preset.batch_size_tokens, 32_000, preset.batch_ramp_tokens)
    assert batch == pytest.approx(float(grown), rel=1e-12)
    # The step that begins there: the multiple of 16 sequences nearest to it.
    schedule = BatchSchedule(2048, 16, preset.batch_size_tokens, 32_000, preset.batch_ramp_tokens)
    step = schedule.sequences(-(-tokens // 2048)) * 2048
    assert step % 32_768 == 0 and abs(step - grown) <= 16_384


def test_the_papers_schedules_in_numbers():
    """Some of the above by hand."""
    rates = [6e-4 * learning_rate_factor(tokens, **PAPER) for tokens in PLACES]
    assert rates == pytest.approx([0.0, 6e-4, 5.99740290e-4, 5.97333079e-4, 6e-5, 6e-5], rel=1e-8)
    assert learning_rate_factor(187_500_000, **PAPER) == 0.5
    assert learning_rate_factor((375_000_000 + 260 * BILLION) // 2, **PAPER) == pytest.approx(0.55)
    batches = [batch_size_tokens(tokens, 3_200_000, 32_000, 12 * BILLION) for tokens in PLACES]
    assert batches == [32_000, 131_000, 1_088_000, 3_200_000, 3_200_000, 3_200_000]


@pytest.mark.parametrize("name", PUBLISHED)
def test_rate_and_batch_neither_jump_nor_turn(name):
    units, full, ramp = PUBLISHED[name]
    peak = units * 1e-5
    steepest_rate = max(peak / 375e6, 0.9 * peak * math.pi / 2 / (260e9 - 375e6))
    steepest_batch = (full - 32_000) / ramp
    drawn = random.Random(units)
    places = sorted(
        {place + by for place in [*PLACES, ramp] for by in (-2, -1, 0, 1, 2) if place + by >= 0}
        | {drawn.randrange(300 * BILLION) for _ in range(3000)}
        | {drawn.randrange(ramp) for _ in range(1000)}
        | {drawn.randrange(375_000_000) for _ in range(500)}
    )
    rates = [peak * learning_rate_factor(tokens, **PAPER) for tokens in places]
    batches = [batch_size_tokens(tokens, full, 32_000, ramp) for tokens in places]
    for (a, b), (rate, next_rate), (batch, next_batch) in zip(pairwise(places), pairwise(rates), pairwise(batches)):
        assert abs(next_rate - rate) <= 1.0001 * steepest_rate * (b - a) + 1e-15
        assert 0 <= next_batch - batch <= 1.0001 * steepest_batch * (b - a) + 1e-6
        assert next_rate >= rate if b <= 375_000_000 else next_rate <= rate
    assert max(rates) == peak and rates[-1] == pytest.approx(peak / 10)


def test_no_warm_up_starts_at_the_peak():
    assert learning_rate_factor(0, 0, 1000, 0.1) == 1.0
    assert math.isclose(learning_rate_factor(500, 0, 1000, 0.0), 0.5)


# The batch of every step

EDGES = {
    "the increment is above the full batch": BatchSchedule(32, 10, 100, 50, 1000),
    "the increment is far above the first batch": BatchSchedule(32, 8, 32 * 64, 1, 32 * 1000),
    "a ramp that is no multiple of anything": BatchSchedule(7, 3, 1013, 29, 20_011),
    "it starts full": BatchSchedule(32, 2, 512, 512, 10_000),
    "no ramp": BatchSchedule(32, 2, 512),
    "no ramp, the start is not looked at": BatchSchedule(32, 2, 512, 32_000, 0),
    "the ramp is shorter than a sequence": BatchSchedule(32, 2, 512, 64, 5),
    "the ramp is shorter than a step": BatchSchedule(32, 2, 512, 64, 65),
    "a ramp of one token": BatchSchedule(1, 1, 9, 1, 1),
    "the full batch is no multiple": BatchSchedule(32, 3, 500, 96, 3_000),
    "the ramp ends between two levels": BatchSchedule(10, 4, 100, 10, 1_000),
    "halves": BatchSchedule(1, 2, 9, 1, 16),
    "sequences of one token": BatchSchedule(1, 1, 50, 3, 777),
}


def random_schedules(count):
    drawn = random.Random(5)
    for _ in range(count):
        length, full = drawn.randint(1, 64), drawn.randint(1, 1500)
        ramp = drawn.choice([0, drawn.randint(1, 50), drawn.randint(1, 60_000)])
        yield BatchSchedule(length, drawn.randint(1, 12), full, drawn.randint(1, full), ramp)


def nominal(schedule, tokens):
    if tokens >= schedule.ramp_tokens:
        return Fraction(schedule.full_tokens)
    grown = (schedule.full_tokens - schedule.start_tokens) * Fraction(tokens, schedule.ramp_tokens)
    return schedule.start_tokens + grown


def brute_force_steps(schedule, count):
    """(sequences before, sequences of the step): the nearest multiple, found by trying all; of two the larger."""
    seen, steps = 0, []
    for _ in range(count):
        wanted = nominal(schedule, seen * schedule.sequence_length)
        unit = schedule.increment * schedule.sequence_length
        batch = min(range(unit, int(wanted) + 2 * unit, unit), key=lambda tokens: (abs(tokens - wanted), -tokens))
        steps.append((seen, batch // schedule.sequence_length))
        seen += steps[-1][1]
    return steps


@pytest.mark.parametrize("schedule", EDGES.values(), ids=EDGES)
def test_a_batch_is_the_whole_multiple_nearest_to_the_nominal_one(schedule):
    _check_batches(schedule)


def test_so_it_is_in_random_schedules():
    for schedule in random_schedules(100):
        _check_batches(schedule)


def _check_batches(schedule):
    steps = brute_force_steps(schedule, 150)
    assert list(islice(schedule.steps(), 150)) == steps
    sizes = [size for _, size in steps]
    assert min(sizes) >= schedule.increment and all(size % schedule.increment == 0 for size in sizes)
    assert sizes == sorted(sizes)
    assert schedule.full_sequences == max(schedule.increment, *sizes, schedule.sequences(10**9))
    # A run that goes on at any step has the steps that one without a stop has.
    assert list(islice(schedule.steps(steps[60][0]), 90)) == steps[60:]


@pytest.mark.parametrize("schedule", EDGES.values(), ids=EDGES)
def test_counting_steps_is_the_same_as_taking_them(schedule):
    _check_counting(schedule)


def test_so_it_is_in_random_schedules_too():
    for schedule in random_schedules(100):
        _check_counting(schedule)


def _check_counting(schedule):
    steps = brute_force_steps(schedule, 150)
    ends = [seen + size for seen, size in steps]
    drawn = random.Random(schedule.full_tokens)
    for start in (0, *drawn.sample(range(1, 140), 4)):
        seen = steps[start][0]
        for taken in (0, 1, *drawn.sample(range(150 - start), 6)):
            position = schedule.position_after(taken, seen)
            assert position == (ends[start + taken - 1] if taken else seen)
        for last in (start, *(drawn.randrange(start, 150) for _ in range(6))):
            tokens, unit = ends[last] * schedule.sequence_length, schedule.sequence_length
            # At a step's end exactly, and a token to either side of it.
            assert schedule.steps_until(tokens, seen) == last - start + 1
            assert schedule.steps_until(tokens - unit + 1, seen) == last - start + 1
            assert schedule.steps_until(tokens + 1, seen) == last - start + 2
            short = tokens - steps[last][1] * unit  # where the last step begins
            assert schedule.steps_until(short, seen) == last - start
    assert schedule.steps_until(0) == schedule.steps_until(-5) == 0
    assert schedule.steps_until(ends[3] * schedule.sequence_length, ends[5]) == 0


@pytest.mark.parametrize("name", ["gpt3-125m", "gpt3-6.7b", "gpt3-175b"])
def test_the_papers_runs_end_exactly(name):
    """300B tokens, counted in a moment and by taking every step."""
    preset = PRESETS[name]
    schedule = BatchSchedule(2048, 16, preset.batch_size_tokens, 32_000, preset.batch_ramp_tokens)
    goal, seen, steps, changes, size = 300 * BILLION, 0, 0, [], 0
    for first, count in schedule.steps():
        if first * 2048 >= goal:
            seen = first
            break
        if count != size:
            changes.append((steps, first))
            size = count
        steps += 1
    assert schedule.steps_until(goal) == steps
    assert schedule.position_after(steps) == seen
    assert 0 <= seen * 2048 - goal < size * 2048
    assert size == schedule.full_sequences
    assert len(changes) == schedule.full_sequences // 16  # each multiple is met, one after the other
    for step, first in changes:
        assert schedule.position_after(step) == first
        assert schedule.steps_until(goal, first) == steps - step
        if step:
            assert schedule.sequences(schedule.position_after(step - 1)) == schedule.sequences(first) - 16


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0, 1, 1), "`sequence_length` must be at least 1, got 0"),
        ((1, 0, 1), "`increment` must be at least 1, got 0"),
        ((1, 1, -3), "`full_tokens` must be at least 1, got -3"),
        ((1, 1, 10, 5, -1), "`batch_ramp_tokens` must be at least 0, got -1"),
        ((1, 1, 10, 0, 5), r"`batch_ramp_start_tokens` \(0\) must be above 0"),
        ((1, 1, 10, 11, 5), r"`batch_ramp_start_tokens` \(11\).*`batch_size_tokens`, 10"),
    ],
)
def test_what_is_no_schedule_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        BatchSchedule(*values)
