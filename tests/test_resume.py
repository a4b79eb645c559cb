"""A training that is killed at any moment and started again ends with the same bits."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import resume_jobs
import torch
from resume_jobs import RECIPE, make_data, make_net, summarise
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from cleanai.errors import InputError
from cleanai.recipe import EpochRecord, Recipe, TrainingResult
from cleanai.training import train_classifier
from cleanai.training_state import STATE_FILE

SMALL = Recipe(epochs=3, lr=0.05, accumulate=2, seed=3)


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_killed_ten_times_a_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Ten kills in another interpreter, the rest in this one."""
    program, seed = Path(resume_jobs.__file__), 1
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(program), str(tmp_path), "10", str(seed)], env=environment, check=True)
    places = json.loads((tmp_path / "places.json").read_text())
    assert places == sorted(places) and places[-1] > [1, 0]
    assert sum(done > 0 for _, done in places) >= 3  # in the middle of epochs
    whole = json.loads((tmp_path / "whole.json").read_text())
    assert len(whole["history"]) == RECIPE.epochs
    assert summarise(*resume_jobs.train(tmp_path / "state")) == whole
    assert [path.name for path in (tmp_path / "state").iterdir()] == [STATE_FILE]


class Killed(BaseException):
    """Stands for a kill where the process must go on."""


def run(folder: Path | None, *, die_at: int | None = None, workers: int = 0, **arguments: Any) -> dict[str, Any]:
    """A short training, which may die when a loss is asked for the n-th time."""
    calls = 0

    def loss_fn(logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == die_at:
            raise Killed
        return functional.cross_entropy(logits, targets)

    net = make_net()
    loader = DataLoader(
        make_data(40, 1), batch_size=8, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    settings: dict[str, Any] = {
        "loss_fn": loss_fn,
        "folder": folder,
        "state_minutes": 0.0,
        "device": "cpu",
        **arguments,
    }
    return summarise(net, train_classifier(net, loader, settings.pop("recipe", SMALL), **settings))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_it_may_die_in_every_single_batch(optimizer: Any, tmp_path: Path) -> None:
    recipe = dataclasses.replace(SMALL, optimizer=optimizer)
    whole = run(None, recipe=recipe)
    for moment in range(1, 3 * 5 + 1):  # batches of three epochs
        folder = tmp_path / str(moment)
        with pytest.raises(Killed):
            run(folder, die_at=moment, recipe=recipe)
        assert run(folder, recipe=recipe) == whole, moment


def test_persistent_workers_are_no_hindrance(tmp_path: Path) -> None:
    whole = run(None, workers=1)
    with pytest.raises(Killed):
        run(tmp_path, die_at=9, workers=1)
    assert run(tmp_path, workers=1) == whole


def test_a_finished_training_gives_its_result_at_once(tmp_path: Path) -> None:
    whole = run(tmp_path)
    assert run(tmp_path, die_at=1) == whole


def test_early_stopping_and_the_best_weights_are_resumed(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "recipe": Recipe(epochs=9, lr=0.3, patience=2, seed=1),
        "validation": DataLoader(make_data(30, 2), batch_size=10),
        "keep": "best",
    }
    whole = run(None, **settings)
    assert whole["stopped"] == "patience" and whole["best"] < len(whole["history"])
    validations = 3
    per_epoch = 5 + validations
    with pytest.raises(Killed):
        run(tmp_path, die_at=per_epoch * whole["best"] + 3, **settings)
    assert run(tmp_path, **settings) == whole


def test_no_callback_is_lost(tmp_path: Path) -> None:
    """It dies in the callback itself: the epoch's callback is called again."""
    calls: list[int] = []

    def note(record: EpochRecord, model: nn.Module) -> None:
        assert isinstance(model, nn.Sequential)
        calls.append(record.epoch)
        torch.rand(7)  # changes nothing
        if calls == [1, 2]:
            raise Killed

    whole = run(None)
    with pytest.raises(Killed):
        run(tmp_path, on_epoch=note)
    assert run(tmp_path, on_epoch=note) == whole
    assert calls == [1, 2, 2, 3]


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    whole = run(tmp_path)
    leftover = tmp_path / f".{STATE_FILE}.123.tmp"
    leftover.write_bytes(b"half")
    assert run(tmp_path) == whole
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"recipe": dataclasses.replace(SMALL, epochs=4, lr=0.2)},
            "epochs was 3, now it is 4; lr was 0.05, now it is 0.2",
        ),
        ({"max_batches": 2}, "the number of batches was 5, now it is 2"),
        ({"validation": DataLoader(make_data(8, 1))}, "validation was False, now it is True"),
    ],
    ids=["recipe", "batches", "validation"],
)
def test_another_training_is_refused(other: dict[str, Any], message: str, tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        run(tmp_path, **other)
    assert str(tmp_path / STATE_FILE) in str(caught.value) and "delete the file" in str(caught.value)


def train_linear(folder: Path, *, width: int = 64, seed: int = 0) -> TrainingResult:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(width, 2))
    return train_classifier(
        net, [(torch.ones(2, 1, 8, width // 8), torch.tensor([0, 1]))], Recipe(epochs=1), folder=folder
    )


def test_another_model_is_refused(tmp_path: Path) -> None:
    train_linear(tmp_path)
    with pytest.raises(InputError, match=r"the shape of 1.weight was \[2, 64\], now it is \[2, 32\]"):
        train_linear(tmp_path, width=32)
    with pytest.raises(InputError, match="the hash of the model's weights was"):
        train_linear(tmp_path, seed=1)


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    train_linear(tmp_path)
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"cannot be read .* Delete it to begin anew"):
        train_linear(tmp_path)
