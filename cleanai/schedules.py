"""Schedules: how much of the pruning ratio is reached after each of several steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from cleanai.checks import check_count, suggest_names
from cleanai.errors import InputError

Schedule = str | Callable[[int], float]
"""A name from `SCHEDULES`, or a function from the step (1, 2, …) to the share of the whole ratio reached after it."""


def _linear(done: float, ratio: float) -> float:
    """Every step removes the same share of the original: s(t) = t/n."""
    return done


def _geometric(done: float, ratio: float) -> float:
    """Every step removes the same share of what is left: 1 - r·s(t) = (1 - r)^(t/n)."""
    return (1 - (1 - ratio) ** done) / ratio if ratio else done


def _cubic(done: float, ratio: float) -> float:
    """Fast first, then ever more slowly: s(t) = 1 - (1 - t/n)^3 (Zhu & Gupta, "To prune, or not to prune", 2017)."""
    return 1 - (1 - done) ** 3


def _one_shot(done: float, ratio: float) -> float:
    """All in the first step; what remains of the steps is for the callback."""
    return 1.0


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "linear": _linear,
    "geometric": _geometric,
    "cubic": _cubic,
    "one_shot": _one_shot,
}


def list_shares(schedule: Schedule, steps: int, ratio: float) -> tuple[float, ...]:
    """The share of ``ratio`` that is reached after each step: never falling, 1 at the end.

    Raises:
        InputError: an unknown name, or a function that returns something else.

    Example:
        >>> [round(share, 3) for share in list_shares("cubic", 4, 0.5)]
        [0.578, 0.875, 0.984, 1.0]
        >>> list_shares(lambda step: step / 2, 2, 0.5)
        (0.5, 1.0)
    """
    check_count(steps, "iterative_steps")
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            hint = suggest_names(schedule, SCHEDULES)
            raise InputError(f"no schedule is named {schedule!r}; the names are {', '.join(SCHEDULES)}{hint}")
        return tuple(SCHEDULES[schedule](step / steps, ratio) if step < steps else 1.0 for step in range(1, steps + 1))
    if not callable(schedule):
        raise InputError(
            f"schedule is {schedule!r}; give a name ({', '.join(SCHEDULES)}) or a function from the step (1, 2, …) to "
            "the share reached after it"
        )
    shares = tuple(_read_share(schedule(step), step) for step in range(1, steps + 1))
    if any(later < earlier for earlier, later in pairwise(shares)):
        raise InputError(f"the schedule falls ({', '.join(f'{share:g}' for share in shares)}): nothing can grow back")
    if shares[-1] != 1:
        raise InputError(
            f"the schedule ends at {shares[-1]:g} after step {steps}; the last step must reach 1, the whole ratio"
        )
    return shares


def _read_share(value: object, step: int) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 1:
        raise InputError(f"the schedule gives {value!r} for step {step}; it must be a number from 0 to 1")
    return float(value)
