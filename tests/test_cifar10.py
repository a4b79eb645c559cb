"""The trained ResNet-20 on CIFAR-10, pruned by 30 %: the report agrees with an independent recount.

Needs the data and the weights under the data root (CLEANAI_DATA, see data/README.md) and skips without them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cleanai import Report, StructuredPruner, WeightActivationImportance
from cleanai.data import DataMissingError, load_cifar10, trained_weights_path
from cleanai.evaluate import measure_model
from cleanai.models import load_weights, resnet20

RATIO = 0.3


class Run:
    """The whole pipeline once: measured, calibrated on training images, pruned, measured again, reported."""

    def __init__(self, folder: Path) -> None:
        self.test = load_cifar10("test")
        self.calibration = load_cifar10("train", limit=640, seed=0)
        self.model = load_weights(resnet20(), trained_weights_path("resnet20"))
        self.example = torch.zeros(1, 3, 32, 32)
        self.pruner = StructuredPruner(
            self.model,
            self.example,
            importance=WeightActivationImportance(weight_ratio=0.5, activation_ratio=0.5),
            pruning_ratio=RATIO,
        )
        self.pruner.collect_activations(DataLoader(self.calibration, batch_size=64), num_batches=10, progress=False)
        self.scores = self.pruner.score_groups()
        self.pruned = self.pruner.prune()
        loader = DataLoader(self.test, batch_size=500)
        self.report = self.pruner.report(
            model_name="ResNet-20",
            metrics={
                "original": measure_model(self.model, self.example, loader=loader),
                "pruned": measure_model(self.pruned, self.example, loader=loader),
            },
        )
        self.files = {suffix: self.report.save(folder / f"report.{suffix}") for suffix in ("json", "html", "md")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    try:
        return Run(tmp_path_factory.mktemp("cifar10"))
    except DataMissingError as error:
        pytest.skip(f"needs CIFAR-10 and the trained ResNet-20 under the data root (CLEANAI_DATA): {error.missing}")


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Percent right, counted here and not by the library."""
    images, labels = data.tensors
    model.eval()
    with torch.inference_mode():
        right = sum(
            int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    return 100 * right / len(labels)


def macs_from_shapes(weights: dict[str, Tensor]) -> int:
    """Every output pixel times every weight; the sizes of the maps are those of He et al.: 32, 16, 8."""
    pixels = {"conv1": 1024, "layer1": 1024, "layer2": 256, "layer3": 64}
    convolutions = {name: w for name, w in weights.items() if w.dim() == 4}
    total = sum(pixels[name.partition(".")[0]] * w.numel() for name, w in convolutions.items())
    return total + weights["linear.weight"].numel()


def parameters_from_state(weights: dict[str, Tensor]) -> int:
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(tensor.numel() for name, tensor in weights.items() if not name.endswith(buffers))


def test_the_trained_network_is_right_on_917_of_1000_images(run: Run) -> None:
    assert len(run.test) == 10_000
    measured = accuracy(run.model, run.test)
    assert measured == pytest.approx(91.7, abs=0.1)
    assert run.report.metrics["original"].accuracy == pytest.approx(measured, abs=0.011)
    assert run.report.metrics["original"].samples == 10_000


def test_the_pruned_accuracy_is_the_one_a_recount_gives(run: Run) -> None:
    measured = accuracy(run.pruned, run.test)
    assert run.report.metrics["pruned"].accuracy == pytest.approx(measured, abs=0.011)
    assert measured < run.report.metrics["original"].accuracy  # ty: ignore[unsupported-operator]


def test_parameters_and_macs_are_those_of_the_shapes(run: Run) -> None:
    before, after = run.model.state_dict(), run.pruned.state_dict()
    original, pruned = run.report.metrics["original"], run.report.metrics["pruned"]
    assert (original.parameters, pruned.parameters) == (parameters_from_state(before), parameters_from_state(after))
    assert original.parameters == 269_722
    assert (original.macs, pruned.macs) == (macs_from_shapes(before), macs_from_shapes(after))
    assert (original.flops, pruned.flops) == (2 * original.macs, 2 * pruned.macs)
    budget = run.report.budget
    assert budget.params == pytest.approx(1 - pruned.parameters / original.parameters)
    assert budget.macs == pytest.approx(1 - pruned.macs / original.macs)
    # 30 % of the channels is more than 30 % of the parameters, and the report does not pretend otherwise.
    assert budget.target == "channels" and budget.channels == pytest.approx(RATIO, abs=0.02)
    assert budget.params > RATIO + 0.05


def test_the_groups_are_those_of_the_tensors(run: Run) -> None:
    before, after = run.model.state_dict(), run.pruned.state_dict()
    assert len(run.report.groups) >= 9 + 1  # one inside each block, and the stages that the shortcuts hold together
    inside = {group.name for group in run.report.groups}
    assert {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)} <= inside
    for group in run.report.groups:
        scores = run.scores[group.name]
        assert scores is not None and group.scores == pytest.approx(scores.tolist())
        assert len(group.removed) == group.units_before - group.units_after
        for layer in group.layers:
            assert (layer.before, layer.after) == (
                before[layer.parameter].shape[layer.dim],
                after[layer.parameter].shape[layer.dim],
            )
        if group.name.endswith("conv1") and "." in group.name:
            # A block's inner channels are free: the lowest scores went, and the kept filters are the original's.
            assert len(group.removed) == round(RATIO * group.units_before)
            assert set(group.removed) == set(scores.argsort()[: len(group.removed)].tolist())
            kept = [index for index in range(group.units_before) if index not in group.removed]
            norm = group.name.replace("conv", "bn")
            assert torch.equal(after[f"{norm}.running_var"], before[f"{norm}.running_var"][kept])


def test_it_is_proven_and_says_so(run: Run) -> None:
    proof = run.report.proof
    assert proof.passed and proof.dtype == "float64"
    assert proof.max_relative_error is not None and proof.max_relative_error <= 1e-9


def test_the_files_say_the_same(run: Run) -> None:
    assert Report.load(run.files["json"]) == run.report
    data = json.loads(run.files["json"].read_text(encoding="utf-8"))
    assert data["metrics"]["pruned"]["parameters"] == parameters_from_state(run.pruned.state_dict())
    assert data["settings"]["calibration_samples"] == 640 and data["settings"]["pruning_ratio"] == RATIO
    for suffix in ("html", "md"):
        text = run.files[suffix].read_text(encoding="utf-8")
        assert "ResNet-20" in text and "269,722" in text
        assert f"{run.report.metrics['pruned'].parameters:,}" in text
        for group in run.report.groups:
            assert group.name in re.sub(r"\\", "", text)
        original = run.report.metrics["original"].accuracy
        assert original is not None and f"{original:.2f}".rstrip("0") in text
