"""Small reports that the tests of the report and its figures share."""

from __future__ import annotations

from typing import Any

from cleanai.evaluate import Latency, ModelMetrics
from cleanai.report import BudgetRecord, FrozenRecord, GroupRecord, LayerRecord, ProofRecord, Report

HOSTILE = "<script>alert('x')</script>|`$\\frac{&\"\n\x1b[31m卷"


def make_group(
    name: str = "conv1", units: int = 8, removed: tuple[int, ...] = (1, 2, 5), **changes: Any
) -> GroupRecord:
    """A group scored 0.1, 0.2, … where removed and 1.0, 2.0, … where kept: a clean cut up to nine removed units."""
    left = units - len(removed)
    low, high = iter(range(1, units + 1)), iter(range(1, units + 1))
    scores = tuple(next(low) / 10 if index in removed else float(next(high)) for index in range(units))
    layers = (
        LayerRecord(name, f"{name}.weight", 0, "output", units, left),
        LayerRecord("fc", "fc.weight", 1, "input", units, left),
    )
    values = {"kind": "channels", "layers": layers, "scores": scores, "asked_ratio": 0.4, "note": "", **changes}
    return GroupRecord(name=name, units_before=units, units_after=left, removed=removed, **values)


def make_report(**changes: Any) -> Report:
    """A report with every part filled."""
    values: dict[str, Any] = {
        "model_name": "tiny",
        "created": "2026-11-21T12:00:00+00:00",
        "versions": {"cleanai": "0.1.0", "torch": "2.15.0", "python": "3.11.7"},
        "settings": {"criterion": "weight-activation", "pruning_ratio": 0.5, "verify": True, "ignored_layers": ["fc"]},
        "metrics": {
            "original": ModelMetrics(20_000, 0.0801, 400_000, Latency(2.0, 0.1, 500, 1, 4, False), 91.7, 0.25, 1000),
            "pruned": ModelMetrics(5_000, 0.0201, 100_000, Latency(0.5, 0.05, 900, 1, 4, True), 80.2, 0.75, 1000),
            "fine-tuned": ModelMetrics(5_000, 0.0201, 100_000, None, 91.2, 0.3, 1000),
        },
        "groups": (make_group(), make_group("block.conv2", 16, tuple(range(8)))),
        "frozen": (
            FrozenRecord(("fc",), 10, "the output of the model"),
            FrozenRecord(("a", "b"), 3, "my reason"),
            FrozenRecord(("b", "c"), 4, "my reason"),
        ),
        "proof": ProofRecord(True, 3.1e-13, 1e-9, "float64", 2, 0.4),
        "budget": BudgetRecord("macs", 0.7, 0.75, channels=0.458, params=0.75, macs=0.75, note="steps are coarse"),
        "history": [{"epoch": 1, "loss": 0.7, "accuracy": 85.0}, {"epoch": 2, "loss": 0.3, "accuracy": 91.2}],
        "warnings": ["The test set was used for calibration."],
    }
    return Report(**(values | changes))
