"""Results of experiments that the tests of their documents share: really pruned networks with made measurements."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import nn

from cleanai import StructuredPruner
from cleanai.evaluate import Latency, ModelMetrics, count_macs, count_parameters, model_size_mb
from cleanai.experiments.config import ExperimentConfig
from cleanai.experiments.results import (
    FINETUNED,
    ORIGINAL,
    PRUNED,
    DataFacts,
    Environment,
    ExperimentResults,
    MethodResult,
    ModelState,
    Preparation,
)
from cleanai.models import digits_resnet
from cleanai.report import Report

CODES = {"coverage": "NC", "wanda": "W", "magnitude": "M", "taylor": "T"}
CREATED = "2026-11-21T12:34:56+00:00"


def make_metrics(model: nn.Module, example: torch.Tensor, accuracy: float, milliseconds: float) -> ModelMetrics:
    """Real costs of a model with a made accuracy and time."""
    latency = Latency(milliseconds, milliseconds / 50, 400, 1, 1, disturbed=False)
    return ModelMetrics(
        count_parameters(model), model_size_mb(model), count_macs(model, example), latency, accuracy, 0.5, 450
    )


def make_history(epochs: int, start: float, end: float) -> list[dict[str, Any]]:
    """One record per epoch, as the training writes them."""
    shares = [1 - 0.5**epoch for epoch in range(epochs)]
    return [
        {
            "epoch": number,
            "train_loss": 1.5 - share,
            "train_accuracy": start + (end - start) * share + 1,
            "lr": 0.01,
            "val_loss": 1.6 - share,
            "val_accuracy": start + (end - start) * share,
            "seconds": 3.0,
        }
        for number, share in enumerate(shares, 1)
    ]


def make_preparation(metrics: ModelMetrics, epochs: int = 6) -> Preparation:
    """A preparation from 10.22 % to the metrics' accuracy, or, without epochs, none."""
    after = ModelState(metrics, metrics.parameters)
    before = ModelState(dataclasses.replace(metrics, accuracy=10.22, loss=2.345), metrics.parameters)
    history = make_history(epochs, 10.2, metrics.accuracy or 0.0)
    files = {"model_pretrained": "checkpoints/TS1/model_pretrained.safetensors"}
    return Preparation("imagenet", before if epochs else after, after, history, False, epochs or None, 18.5, files)


@functools.cache
def prune_digits(method: str) -> tuple[Report, ModelMetrics, ModelMetrics]:
    """A small network cut by half its channels, and the metrics before and after."""
    torch.manual_seed(list(CODES).index(method))
    model, example = digits_resnet(width=16), torch.zeros(1, 1, 8, 8)
    pruner = StructuredPruner(model, example, importance="magnitude", pruning_ratio=0.5, iterative_steps=1)
    pruned = pruner.prune()
    original = make_metrics(model, example, 91.73, 2.0)
    smaller = make_metrics(pruned, example, 60.5, 1.25)
    return pruner.report(metrics={ORIGINAL: original, PRUNED: smaller}), original, smaller


def make_result(method: str = "coverage", *, final: float | None = 90.25, pruned: float = 60.5) -> MethodResult:
    """One method's result: 91.73 % before, 60.50 % after the cut, 90.25 % after fine-tuning unless told otherwise."""
    report, original, smaller = prune_digits(method)
    metrics = {ORIGINAL: original, PRUNED: dataclasses.replace(smaller, accuracy=pruned)}
    if final is not None:
        metrics[FINETUNED] = dataclasses.replace(smaller, accuracy=final)
    history = make_history(8, pruned, final) if final is not None else None
    code = CODES[method]
    files = {f"model_pruned_{code}": f"checkpoints/TS1_{method}/model_pruned_{code}.safetensors"}
    seconds = {"prune": 2.5} | ({"finetune": 24.0} if final is not None else {})
    report = dataclasses.replace(report, metrics=metrics, history=history, created=CREATED)
    return MethodResult(method, code, report, False, 8 if history else None, seconds, files)


def make_results(*found: MethodResult, epochs: int = 6, **changes: Any) -> ExperimentResults:
    """An experiment with these methods, coverage alone if none is given."""
    found = found or (make_result(),)
    values: dict[str, Any] = {
        "name": "TS1",
        "config": ExperimentConfig(
            scenario="TS1",
            model="digits_resnet",
            data="digits",
            pruning_ratio=0.5,
            prepare_epochs=epochs,
            methods=tuple(result.method for result in found),
        ),
        "data": DataFacts("digits (scikit-learn)", 10, 1000, 147, 200, 450),
        "environment": Environment(
            {"cleanai": "0.1.0", "torch": "2.15.0", "python": "3.11.7"},
            "Linux, 2 × Intel Xeon",
            "cpu",
            1,
            1,
            CREATED,
            "cleanai run TS1 --profile smoke --set pruning_ratio=0.5",
        ),
        "preparation": make_preparation(found[0].report.metrics[ORIGINAL], epochs),
        "methods": {result.method: result for result in found},
        "warnings": [],
    }
    return ExperimentResults(**(values | changes))


def make_four_methods() -> ExperimentResults:
    """Four methods, the second of them best in the end."""
    finals = {"coverage": 90.25, "wanda": 91.9, "magnitude": 89.0, "taylor": 90.25}
    return make_results(*(make_result(method, final=final) for method, final in finals.items()))


def make_large_results() -> ExperimentResults:
    """A ResNet-50 with random weights: many groups and long names."""
    import torchvision

    torch.manual_seed(0)
    model, example = torchvision.models.resnet50(weights=None), torch.zeros(1, 3, 64, 64)
    pruner = StructuredPruner(model, example, importance="magnitude", pruning_ratio=0.1, verify=False)
    pruned = pruner.prune()
    metrics = {ORIGINAL: make_metrics(model, example, 80.1, 60.0), PRUNED: make_metrics(pruned, example, 42.0, 51.0)}
    report = pruner.report(metrics=metrics)
    results = make_results(MethodResult("magnitude", "M", report, False, None, {"prune": 5.0}, {}), epochs=0)
    config = results.config.replace(scenario="TS3", model="resnet50", pruning_ratio=0.1)
    return dataclasses.replace(results, name="TS3_ResNet50_Digits", config=config)
