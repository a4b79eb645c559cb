"""Training learns, follows its schedule, repeats itself exactly, and gives the model's modes back."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cleanai.data import load_digits_data, make_loader
from cleanai.errors import InputError
from cleanai.evaluate import evaluate_model
from cleanai.models import digits_resnet
from cleanai.training import train_classifier


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """One thread: these models gain nothing from a second, and waiting threads are very slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_problem(rows: int = 64) -> TensorDataset:
    """Two classes told apart by the sign of the first of three features."""
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 0).long())


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def test_digits_are_learned() -> None:
    digits = load_digits_data()
    torch.manual_seed(0)
    model = digits_resnet()
    start = time.perf_counter()
    records = train_classifier(model, make_loader(digits.train, batch_size=64, shuffle_seed=0), epochs=15, lr=0.1)
    assert time.perf_counter() - start < 60
    assert [record.epoch for record in records] == list(range(1, 16))
    assert records[-1].train_loss < 0.1 * records[0].train_loss
    accuracy = evaluate_model(model, make_loader(digits.test, batch_size=450)).accuracy
    assert accuracy is not None and accuracy >= 97.0


def test_same_seed_same_weights_whatever_ran_before() -> None:
    results = []
    for disturbance in (0, 5):
        model = make_model()
        torch.rand(disturbance)
        loader = DataLoader(make_problem(), batch_size=16, shuffle=True)  # shuffled by the global random state
        records = train_classifier(model, loader, epochs=2, seed=3)
        results.append((records, model.state_dict()))
    (records, weights), (other_records, other_weights) = results
    assert records == other_records
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def test_model_and_random_state_come_back() -> None:
    model = make_model()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    train_classifier(model, DataLoader(make_problem(), batch_size=16, shuffle=True), epochs=1)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_modes_come_back_after_an_exception() -> None:
    model = make_model().eval()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train_classifier(model, [(torch.ones(4, 5), torch.zeros(4, dtype=torch.int64))], epochs=1)
    assert not any(module.training for module in model.modules())


def test_the_learning_rate_follows_half_a_cosine() -> None:
    model = nn.Linear(3, 2)
    records = train_classifier(model, DataLoader(make_problem(), batch_size=64), epochs=4, lr=0.5)
    expected = [0.5 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert [record.lr for record in records] == pytest.approx(expected)


def test_one_step_is_the_step_of_the_textbook() -> None:
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([1])
    model = nn.Linear(2, 2)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    train_classifier(model, [(x, y)], epochs=1, lr=0.1, momentum=0.0, weight_decay=0.5)
    error = torch.softmax(x @ weight.T + bias, dim=1) - torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(model.weight.detach(), weight - 0.1 * (error.T @ x + 0.5 * weight))
    torch.testing.assert_close(model.bias.detach(), bias - 0.1 * error[0])  # biases do not decay


def test_frozen_parameters_stay() -> None:
    model = make_model()
    weight = model.get_parameter("0.weight").requires_grad_(False)
    before = weight.clone()
    train_classifier(model, DataLoader(make_problem(), batch_size=16), epochs=1)
    assert torch.equal(weight, before)


def test_batches_may_be_dicts() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, features: Tensor) -> dict[str, Tensor]:
            return {"logits": self.linear(features)}

    x, y = make_problem().tensors
    records = train_classifier(Named(), [{"features": x, "labels": y}], epochs=30, lr=0.5)
    assert records[-1].train_accuracy > 90


def test_training_ends_in_time_with_a_low_rate() -> None:
    class Slow:
        def __len__(self) -> int:
            return 1000

        def __iter__(self) -> Iterator[Any]:
            for _ in range(1000):
                time.sleep(0.01)
                yield make_problem(8).tensors

    start = time.perf_counter()
    records = train_classifier(nn.Linear(3, 2), Slow(), epochs=3, lr=0.1, max_seconds=0.5)
    assert time.perf_counter() - start < 5
    assert len(records) == 1
    assert records[0].lr < 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs >= 1"),
        ({"lr": 0.0}, "lr > 0"),
        ({"max_seconds": 0.0}, "max_seconds > 0"),
        ({"loader": []}, "gives no batches"),
        ({"loader": [torch.ones(2, 3)]}, "has no targets"),
        ({"model": nn.Linear(3, 2).requires_grad_(False)}, "nothing to train"),
        ({"loader": [(torch.full((2, 3), torch.nan), torch.tensor([0, 1]))]}, "loss is nan at step 0"),
    ],
    ids=["epochs", "lr", "time", "empty", "no targets", "frozen", "nan"],
)
def test_bad_input_is_named(settings: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "model": nn.Linear(3, 2),
        "loader": [(torch.ones(2, 3), torch.tensor([0, 1]))],
        "epochs": 1,
        **settings,
    }
    with pytest.raises(InputError, match=message):
        train_classifier(**arguments)
