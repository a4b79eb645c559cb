"""Latency against latency: models timed in turns, so that what disturbs the machine disturbs all of them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from cleanai.errors import InputError
from cleanai.evaluate import ForwardFn, Latency, measure_latency

DISTURBED = 0.1  # a spread beyond this share of the median: something else used the machine, as torch's timer says


@dataclass(frozen=True)
class LatencyRatio:
    """How long one model takes as a share of what another takes.

    Attributes:
        ratio: the median over the pairs.
        spread: the interquartile range over the pairs.
        pairs: how often both were timed, one right after the other.
    """

    ratio: float
    spread: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.ratio:.3f} ± {self.spread:.3f} (IQR of {self.pairs} pairs)"


def time_in_turns(
    models: Sequence[nn.Module],
    example_inputs: Any,
    *,
    rounds: int = 5,
    min_run_time: float = 0.3,
    forward_fn: ForwardFn | None = None,
    num_threads: int = 1,
) -> list[Latency]:
    """Each model's latency: median and spread over the faster half of rounds in which all are timed, one after another.

    What else the machine does comes and goes: it hits all of them, and makes the slower rounds slow.

    Args:
        rounds: how often all of them are timed; at least two, from which a spread can be told.
        min_run_time: seconds for each model in each round.

    Raises:
        InputError: fewer than two rounds.

    Example:
        >>> import torch
        >>> len(time_in_turns([nn.Linear(8, 8), nn.Linear(8, 4)], torch.zeros(1, 8), rounds=2, min_run_time=0.001))
        2
    """
    options: dict[str, Any] = {"forward_fn": forward_fn, "num_threads": num_threads, "min_run_time": min_run_time}
    if rounds < 2:
        raise InputError(f"time_in_turns: rounds is {rounds}; it takes at least 2 to tell the spread")
    timed = [[measure_latency(model, example_inputs, **options) for model in models] for _ in range(rounds)]
    return [_join_rounds(column) for column in zip(*timed, strict=True)]


def _join_rounds(rounds: Sequence[Latency]) -> Latency:
    faster = sorted(each.median_ms for each in rounds)[: len(rounds) // 2 + 1]
    lower, median, upper = statistics.quantiles(faster, n=4, method="inclusive")
    return dataclasses.replace(
        rounds[0],
        median_ms=median,
        iqr_ms=upper - lower,
        runs=sum(each.runs for each in rounds),
        disturbed=upper - lower > DISTURBED * median,
    )


def compare_latency(
    model: nn.Module,
    reference: nn.Module,
    example_inputs: Any,
    *,
    forward_fn: ForwardFn | None = None,
    pairs: int = 5,
    min_run_time: float = 0.05,
    num_threads: int = 1,
) -> LatencyRatio:
    """The latency of a model as a share of a reference's: the median over pairs of measurements taken in turns.

    Raises:
        InputError: fewer than two pairs, from which no spread could be told.

    Example:
        >>> import torch
        >>> layer = nn.Linear(8, 8)
        >>> compare_latency(layer, layer, torch.zeros(1, 8), pairs=3, min_run_time=0.001).pairs
        3
    """
    if pairs < 2:
        raise InputError(f"compare_latency: pairs is {pairs}; it takes at least 2 to tell the spread")
    options: dict[str, Any] = {"forward_fn": forward_fn, "num_threads": num_threads, "min_run_time": min_run_time}
    ratios = []
    for turn in range(pairs):
        both = (model, reference) if turn % 2 else (reference, model)  # who goes first has the colder cache
        times = {id(each): measure_latency(each, example_inputs, **options).median_ms for each in both}
        ratios.append(times[id(model)] / times[id(reference)])
    lower, _, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return LatencyRatio(statistics.median(ratios), upper - lower, pairs)
