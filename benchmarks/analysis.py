"""What analysis and slicing cost, as multiples of what nobody can avoid.

    python benchmarks/analysis.py [--models resnet50 vit_b_16] [--rounds 7] [--threads 1]

Two ratios per torchvision model, each the median of ratios measured in pairs, so that a busy machine disturbs both:

- analysis: trace + coupling, less the tracing forward itself, against one forward of batch 1 in evaluation mode;
- slicing: `slice_model` with a plan that removes 30 % of every group, against cloning the parameters that are kept.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import nn

from cleanai import StructuredPruner, slice_model, trace_model
from cleanai.coupling import couple_channels
from cleanai.isolation import shadow_model
from cleanai.layers import prepare_layers
from cleanai.trace import shadow_inputs

LIMITS = {"analysis": 0.5, "slicing": 3.0}


def measure_seconds(action: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure_analysis(model: nn.Module, inputs: torch.Tensor, rounds: int) -> tuple[float, dict[str, float]]:
    """(trace + coupling - tracing forward) / forward, and the milliseconds behind it."""

    def forward() -> None:
        with torch.inference_mode():
            model(inputs)

    def tracing_forward() -> float:
        with shadow_model(model, "meta", prepare=prepare_layers):
            stand_in = shadow_inputs(inputs, "meta")
            return measure_seconds(lambda: model(stand_in))

    def analysis() -> None:
        couple_channels(trace_model(model, inputs))

    forward(), analysis()
    rows = [(measure_seconds(forward), tracing_forward(), measure_seconds(analysis)) for _ in range(rounds)]
    ratio = statistics.median((whole - tracing) / plain for plain, tracing, whole in rows)
    names = ("forward", "tracing forward", "trace + coupling")
    return ratio, {
        name: 1e3 * statistics.median(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


def measure_slicing(model: nn.Module, inputs: torch.Tensor, rounds: int) -> tuple[float, dict[str, float]]:
    """Slicing / cloning the kept parameters, and the milliseconds behind it.

    Both allocate what they make: the clones stay alive while the model is sliced, and the two take turns at going
    first, so that neither is handed the memory that the other has just warmed up.
    """
    plan = StructuredPruner(model, inputs, importance="random", pruning_ratio=0.3).make_plan()
    kept = [parameter.detach() for parameter in slice_model(copy.deepcopy(model), plan).parameters()]
    rows = []
    for number in range(rounds + 1):
        victim = copy.deepcopy(model)
        results: list[object] = []
        actions: list[Callable[[], None]] = [
            lambda results=results: results.append([parameter.clone() for parameter in kept]),
            lambda results=results, victim=victim: results.append(slice_model(victim, plan)),
        ]
        order = (0, 1) if number % 2 else (1, 0)
        times = {index: measure_seconds(actions[index]) for index in order}
        rows.append((times[0], times[1]))
    rows = rows[1:]  # the first round warms up
    ratio = statistics.median(sliced / cloned for cloned, sliced in rows)
    cloned, sliced = (1e3 * statistics.median(column) for column in zip(*rows, strict=True))
    return ratio, {"cloning": cloned, "slicing": sliced}


def main() -> None:
    """Prints the ratios and says whether they are within the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50", "vit_b_16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), median of {arguments.rounds} paired rounds")
    failed = False
    for name in arguments.models:
        model = torchvision.models.get_model(name, weights=None).eval()
        inputs = torch.randn(1, 3, 224, 224)
        for what, measure in (("analysis", measure_analysis), ("slicing", measure_slicing)):
            ratio, times = measure(model, inputs, arguments.rounds)
            within = ratio <= LIMITS[what]
            failed |= not within
            detail = ", ".join(f"{label} {milliseconds:.1f} ms" for label, milliseconds in times.items())
            verdict = "within" if within else "ABOVE"
            print(f"{name:12} {what:9} ratio {ratio:5.2f}  ({verdict} {LIMITS[what]:g}; {detail})")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
