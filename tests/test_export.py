"""Exported models are run and compared; what differs is refused, and no file is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleanai import (
    Export,
    InputError,
    StructuredPruner,
    VerificationError,
    export_onnx,
    export_program,
    export_torchscript,
)
from cleanai.models import digits_resnet

IMAGE = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
EXPORTERS: tuple[Callable[..., Export], ...] = (export_program, export_torchscript, export_onnx)


def skip_without_packages(exporter: Callable[..., Export]) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime") if exporter is export_onnx else ():
        pytest.importorskip(name)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_pruned_model_goes_elsewhere(exporter: Callable[..., Export], tmp_path: Path) -> None:
    skip_without_packages(exporter)
    torch.manual_seed(0)
    pruned = StructuredPruner(digits_resnet(4), IMAGE, drop_layers=["block1"]).prune().train()
    before = {name: value.clone() for name, value in pruned.state_dict().items()}
    random_state = torch.get_rng_state()
    export = exporter(pruned, tmp_path / "folder" / "model.bin", IMAGE)
    assert export.path == tmp_path / "folder" / "model.bin" and list(export.path.parent.iterdir()) == [export.path]
    assert export.max_relative_error < 1e-5
    assert export.size_mb == export.path.stat().st_size / 1e6
    assert export.batches == ((1,) if exporter is export_torchscript else (1, 2))
    assert pruned.training and torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(before[name], value) for name, value in pruned.state_dict().items())


class Noisy(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + torch.rand(2)


class Unfollowable(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).double().fill_(float(str(input.sum().item())))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Any]:
        return {"sum": self.first(left) + self.second(right)}


@pytest.mark.parametrize("exporter", [export_program, export_torchscript])
@pytest.mark.parametrize("as_dict", [False, True])
def test_several_inputs_by_position_and_by_name(exporter: Callable[..., Export], as_dict: bool, tmp_path: Path) -> None:
    right, left = torch.randn(2, 5), torch.randn(2, 3)
    inputs: Any = {"right": right, "left": left} if as_dict else (left, right)
    assert exporter(TwoInputs(), tmp_path / "model", inputs).max_relative_error < 1e-6


@pytest.mark.parametrize("exporter", [export_program, export_torchscript])
def test_an_export_that_computes_something_else_is_refused(exporter: Callable[..., Export], tmp_path: Path) -> None:
    (tmp_path / "old").write_text("an older file")
    with pytest.raises(VerificationError, match="or draw random numbers"):
        exporter(Noisy(3, 2), tmp_path / "old", torch.randn(2, 3))
    assert (tmp_path / "old").read_text() == "an older file"
    assert len(list(tmp_path.iterdir())) == 1


class Remembering(nn.Linear):
    """Adds a number that it computed in Python: a trace keeps the example's."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + float(input.detach().sum())


class Branching(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input if input.sum() > 0 else -input)


@pytest.mark.parametrize("model", [Remembering(3, 2), Branching(3, 2)])
def test_a_value_that_the_exporter_took_for_a_constant_is_noticed(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="does the forward branch on values"):
        export_torchscript(model, tmp_path / "x", torch.randn(2, 3))
    assert not list(tmp_path.iterdir())


def test_the_cause_is_told_and_not_the_next_steps(tmp_path: Path) -> None:
    skip_without_packages(export_onnx)
    with pytest.raises(InputError, match="data-dependent") as caught:
        export_onnx(Branching(3, 2), tmp_path / "x", torch.randn(2, 3))
    assert "\x1b" not in str(caught.value) and "step 1" not in str(caught.value)


def test_bad_input_is_named(tmp_path: Path) -> None:
    bad: Any = "model"
    with pytest.raises(InputError, match="model is a str"):
        export_program(bad, tmp_path / "x", IMAGE)
    with pytest.raises(InputError, match="does not run on example_inputs"):
        export_program(nn.Linear(3, 2), tmp_path / "x", torch.zeros(1, 4))
    fixed = nn.Sequential(nn.Flatten(0), nn.Linear(3, 2))
    with pytest.raises(InputError, match="does not run on twice the batch"):
        export_program(fixed, tmp_path / "x", torch.zeros(1, 3))
    assert export_program(fixed, tmp_path / "fixed", torch.zeros(1, 3), dynamic_batch=False).batches == (1,)
    with pytest.raises(InputError, match=r"cannot be exported as torch\.export"):
        export_program(Unfollowable(3, 2), tmp_path / "x", torch.zeros(2, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["fixed"]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r'pip install "cleanai\[export\]"'):
        export_onnx(nn.Linear(3, 2), tmp_path / "x", torch.zeros(1, 3))
