"""Schedules: shares of the ratio after each step, never falling, 1 at the end."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleanai import InputError
from cleanai.schedules import SCHEDULES, list_shares


def test_linear_is_even() -> None:
    assert list_shares("linear", 4, 0.5) == (0.25, 0.5, 0.75, 1.0)


def test_geometric_keeps_the_same_share_of_what_is_left() -> None:
    kept = [1.0, *(1 - 0.75 * share for share in list_shares("geometric", 2, 0.75))]
    assert kept == pytest.approx([1.0, 0.5, 0.25])
    assert list_shares("geometric", 4, 0.0) == (0.25, 0.5, 0.75, 1.0)  # nothing to remove: the limit


def test_cubic_is_the_curve_of_the_paper() -> None:
    """Zhu & Gupta, eq. 1 with initial sparsity 0: s_t = s_f + (0 - s_f)(1 - t/n)^3."""
    shares = list_shares("cubic", 5, 0.8)
    final = 0.8
    assert [final * share for share in shares] == pytest.approx([final - final * (1 - t / 5) ** 3 for t in range(1, 6)])


def test_one_shot_is_all_at_once() -> None:
    assert list_shares("one_shot", 3, 0.5) == (1.0, 1.0, 1.0)


def test_a_function_of_the_step() -> None:
    assert list_shares(lambda step: {1: 0.1, 2: 0.1, 3: 1}[step], 3, 0.5) == (0.1, 0.1, 1.0)


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 40), st.floats(0, 0.999))
def test_no_schedule_falls_and_all_end_at_one(name: str, steps: int, ratio: float) -> None:
    shares = list_shares(name, steps, ratio)
    assert len(shares) == steps and shares[-1] == 1.0
    assert all(0 <= earlier <= later + 1e-12 <= 1 + 2e-12 for earlier, later in pairwise((0.0, *shares)))


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("cosine", "no schedule is named 'cosine'; the names are linear, geometric, cubic, one_shot"),
        (0.5, "schedule is 0.5; give a name"),
        (lambda step: 1 - step / 4, "the schedule falls"),
        (lambda step: step / 8, "ends at 0.5 after step 4; the last step must reach 1"),
        (lambda step: step, "gives 2 for step 2; it must be a number from 0 to 1"),
        (lambda step: "all", "gives 'all' for step 1"),
        (lambda step: float("nan"), "gives nan for step 1"),
        (lambda step: np.nan, "gives nan for step 1"),
    ],
)
def test_what_is_no_schedule_is_refused(schedule: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        list_shares(schedule, 4, 0.5)


@pytest.mark.parametrize("steps", [0, 1.5, True, -1])
def test_steps_are_whole_numbers(steps: Any) -> None:
    with pytest.raises(InputError, match="iterative_steps is"):
        list_shares("linear", steps, 0.5)
