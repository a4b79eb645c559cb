"""Training takes the steps of the textbook, follows its schedules, repeats itself exactly, and leaves no trace."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from cleanai.data import load_digits_data, make_loader
from cleanai.errors import InputError
from cleanai.evaluate import evaluate_model
from cleanai.models import digits_resnet
from cleanai.recipe import EpochRecord, Precision, Recipe, TrainingResult
from cleanai.training import train_classifier
from cleanai.training_state import seed_everything


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """One thread: these models gain nothing from a second, and waiting threads are very slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain_recipe(**settings: Any) -> Recipe:
    """Plain gradient descent in one epoch, but for these settings."""
    plain: dict[str, Any] = {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0, "scheduler": "constant"}
    return Recipe(**(plain | settings))


def make_problem(rows: int = 64) -> TensorDataset:
    """Two classes told apart by the sign of the first of three features."""
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 0).long())


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def make_linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).double()


def make_batch(rows: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] > 0).long()


def gradients_by_hand(model: nn.Linear, x: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Of the mean cross-entropy: (softmax - wanted) outer x."""
    error = (torch.softmax(x @ model.weight.detach().T + model.bias.detach(), dim=1) - wanted) / len(x)
    return error.T @ x, error.sum(0)


def one_hot(y: Tensor) -> Tensor:
    return functional.one_hot(y, 2).double()


def step_of(recipe: Recipe, batches: list[Any]) -> tuple[Tensor, Tensor]:
    """What a training adds to the linear model's weight and bias."""
    model = make_linear()
    before = [parameter.detach().clone() for parameter in (model.weight, model.bias)]
    train_classifier(model, batches, recipe)
    return model.weight.detach() - before[0], model.bias.detach() - before[1]


def without_time(result: TrainingResult) -> TrainingResult:
    history = [dataclasses.replace(record, seconds=0.0) for record in result.history]
    return dataclasses.replace(result, history=history)


# ---------------------------------------------------------------------------------------------------------- the steps


def test_one_step_is_the_step_of_the_textbook() -> None:
    x, y = make_batch()
    weight, bias = gradients_by_hand(make_linear(), x, one_hot(y))
    steps = step_of(plain_recipe(lr=0.1), [(x, y)])
    torch.testing.assert_close(steps, (-0.1 * weight, -0.1 * bias))


def test_nesterov_looks_ahead() -> None:
    x, y = make_batch()
    weight, _ = gradients_by_hand(make_linear(), x, one_hot(y))
    step, _ = step_of(plain_recipe(momentum=0.9, lr=0.1), [(x, y)])
    torch.testing.assert_close(step, -0.1 * 1.9 * weight)


def test_weights_decay_and_biases_do_not() -> None:
    x, y = make_batch()
    model = make_linear()
    weight, bias = gradients_by_hand(model, x, one_hot(y))
    steps = step_of(plain_recipe(weight_decay=0.5, lr=0.1), [(x, y)])
    torch.testing.assert_close(steps, (-0.1 * (weight + 0.5 * model.weight.detach()), -0.1 * bias))


def test_adam_goes_by_the_sign_and_adamw_decays_apart_from_it() -> None:
    x, y = make_batch()
    model = make_linear()
    weight, _ = gradients_by_hand(model, x, one_hot(y))
    step, _ = step_of(plain_recipe(optimizer="adamw", weight_decay=0.5, lr=0.01), [(x, y)])
    decay = 0.01 * 0.5 * model.weight.detach()
    torch.testing.assert_close(step, -decay - 0.01 * weight.sign(), rtol=1e-5, atol=1e-8)
    step, _ = step_of(plain_recipe(optimizer="adam", weight_decay=0.5, lr=0.01), [(x, y)])
    torch.testing.assert_close(step, -0.01 * (weight + 0.5 * model.weight.detach()).sign(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("sizes", [(4, 4), (3, 5), (1, 6, 1)], ids=str)
def test_accumulated_batches_are_one_batch(sizes: tuple[int, ...]) -> None:
    x, y = make_batch(8)
    parts = list(zip(x.split(sizes), y.split(sizes), strict=True))
    recipe = plain_recipe(epochs=2, momentum=0.9, accumulate=len(sizes))
    whole = step_of(dataclasses.replace(recipe, accumulate=1), [(x, y)])
    torch.testing.assert_close(step_of(recipe, parts), whole, rtol=1e-12, atol=1e-14)


def test_an_epochs_last_step_may_have_fewer_batches() -> None:
    x, y = make_batch(8)
    halves = list(zip(x.split(4), y.split(4), strict=True))
    rest = make_batch(3, seed=2)
    recipe = plain_recipe(lr=0.3)
    expected = step_of(recipe, [(x, y), rest])
    torch.testing.assert_close(step_of(dataclasses.replace(recipe, accumulate=2), [*halves, rest]), expected)


def test_long_gradients_are_clipped_together() -> None:
    x, y = make_batch()
    weight, bias = gradients_by_hand(make_linear(), 100 * x, one_hot(y))
    norm = math.hypot(weight.norm().item(), bias.norm().item())
    assert norm > 1
    steps = step_of(plain_recipe(lr=0.1, clip_norm=0.25), [(100 * x, y)])
    torch.testing.assert_close(steps, (-0.1 * 0.25 / norm * weight, -0.1 * 0.25 / norm * bias), rtol=1e-5, atol=0)


def test_label_smoothing_spreads_the_target() -> None:
    x, y = make_batch()
    weight, _ = gradients_by_hand(make_linear(), x, 0.8 * one_hot(y) + 0.2 / 2)
    step, _ = step_of(plain_recipe(lr=0.1, label_smoothing=0.2), [(x, y)])
    torch.testing.assert_close(step, -0.1 * weight)


def test_targets_may_be_probabilities() -> None:
    x, y = make_batch()
    soft = 0.7 * one_hot(y) + 0.15
    weight, _ = gradients_by_hand(make_linear(), x, soft)
    step, _ = step_of(plain_recipe(lr=0.1), [(x, soft)])
    torch.testing.assert_close(step, -0.1 * weight)


def test_the_distillation_loss_is_hintons() -> None:
    x, y = make_batch()
    model, teacher = make_linear(), nn.Linear(3, 2).double()
    student_logits, teacher_logits = model(x).detach().numpy(), teacher(x).detach().numpy()
    hot, cold = (np.exp(z / 3) / np.exp(z / 3).sum(1, keepdims=True) for z in (teacher_logits, student_logits))
    divergence = (hot * np.log(hot / cold)).sum(1).mean()
    plain = np.exp(student_logits) / np.exp(student_logits).sum(1, keepdims=True)
    entropy = -np.log(plain[np.arange(8), y.numpy()]).mean()
    recipe = plain_recipe(distillation_weight=0.7, distillation_temperature=3.0)
    record = train_classifier(model, [(x, y)], recipe, teacher=teacher).history[0]
    assert record.train_loss == pytest.approx(0.3 * entropy + 0.7 * 9 * divergence, rel=1e-12)


def test_a_model_has_nothing_to_learn_from_itself() -> None:
    model, teacher = make_linear(), make_linear()
    train_classifier(model, [make_batch()], plain_recipe(lr=1.0, distillation_weight=1.0), teacher=teacher)
    torch.testing.assert_close(model.weight, teacher.weight, rtol=0, atol=1e-15)


def test_the_teacher_answers_in_evaluation_mode_and_is_left_as_it_was() -> None:
    teacher = make_model()
    teacher[1].eval()
    modes, weights = (
        [module.training for module in teacher.modules()],
        {k: v.clone() for k, v in teacher.state_dict().items()},
    )
    recipe = Recipe(epochs=2, distillation_weight=0.5)
    train_classifier(make_model(), DataLoader(make_problem(), batch_size=16), recipe, teacher=teacher)
    assert [module.training for module in teacher.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in teacher.parameters())


# ------------------------------------------------------------------------------------------------------- the schedules


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"scheduler": "cosine"}, [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]),
        ({"scheduler": "linear"}, [1 - step / 8 for step in range(8)]),
        ({"scheduler": "step"}, [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        ({"scheduler": "constant"}, [1] * 8),
        ({"scheduler": "constant", "warmup_epochs": 4}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ({"scheduler": "linear", "warmup_epochs": 3}, [1 / 3, 2 / 3, 1, 1, 0.8, 0.6, 0.4, 0.2]),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_the_learning_rate_follows_its_schedule(settings: dict[str, Any], expected: list[float]) -> None:
    loader = DataLoader(make_problem(), batch_size=64)
    result = train_classifier(nn.Linear(3, 2), loader, Recipe(epochs=8, lr=0.5, **settings))
    assert [record.lr for record in result.history] == pytest.approx([0.5 * factor for factor in expected])


def test_training_ends_in_time_with_a_low_rate() -> None:
    class Slow:
        def __len__(self) -> int:
            return 1000

        def __iter__(self) -> Iterator[Any]:
            for _ in range(1000):
                time.sleep(0.01)
                yield make_problem(8).tensors

    start = time.perf_counter()
    result = train_classifier(nn.Linear(3, 2), Slow(), Recipe(epochs=3, lr=0.1), max_seconds=0.5)
    assert time.perf_counter() - start < 5
    assert len(result.history) == 1 and result.stopped == "time"
    assert result.history[0].lr < 0.02


# ---------------------------------------------------------------------------------------------------------- validation


def wrong_labels() -> DataLoader:
    """Validation that gets worse the more is learned."""
    x, y = make_problem().tensors
    return DataLoader(TensorDataset(x, 1 - y), batch_size=20)


def test_training_stops_when_validation_gets_no_better_and_keeps_the_best() -> None:
    weights: dict[int, Tensor] = {}

    def remember(record: EpochRecord, model: nn.Module) -> None:
        weights[record.epoch] = next(model.parameters()).detach().clone()

    model = nn.Linear(3, 2)
    loader = DataLoader(make_problem(), batch_size=16)
    recipe = Recipe(epochs=9, lr=0.1, patience=2)
    result = train_classifier(model, loader, recipe, validation=wrong_labels(), keep="best", on_epoch=remember)
    assert (result.best_epoch, result.stopped, [*weights]) == (1, "patience", [1, 2, 3])
    assert torch.equal(model.weight, weights[1])
    assert result.history[0].val_accuracy == max(record.val_accuracy or 0 for record in result.history)
    last = nn.Linear(3, 2)
    assert train_classifier(last, loader, Recipe(epochs=3), validation=wrong_labels()).stopped is None


def test_validation_measures_what_evaluate_model_does() -> None:
    model = make_model()
    loader = DataLoader(make_problem(), batch_size=16)
    recipe = Recipe(epochs=2, label_smoothing=0.3)
    record = train_classifier(model, loader, recipe, validation=wrong_labels()).history[-1]
    expected = evaluate_model(model, wrong_labels())
    assert (record.val_loss, record.val_accuracy) == pytest.approx((expected.loss, expected.accuracy))


def test_digits_are_learned() -> None:
    digits = load_digits_data()
    torch.manual_seed(0)
    model = digits_resnet()
    start = time.perf_counter()
    loader = make_loader(digits.train, batch_size=64, shuffle_seed=0)
    records = train_classifier(model, loader, Recipe(epochs=15, lr=0.1)).history
    assert time.perf_counter() - start < 60
    assert [record.epoch for record in records] == list(range(1, 16))
    assert records[-1].train_loss < 0.1 * records[0].train_loss
    accuracy = evaluate_model(model, make_loader(digits.test, batch_size=450)).accuracy
    assert accuracy is not None and accuracy >= 97.0


# ------------------------------------------------------------------------------------------------------ random numbers


def make_random_loader(kind: str) -> Any:
    """Loaders that draw from the global random state, from a generator of their own, and from a sampler's."""
    data = make_problem()
    if kind == "global":
        return DataLoader(data, batch_size=16, shuffle=True)
    generator = torch.Generator().manual_seed(int(torch.randint(1000, ())))
    if kind == "sampler":
        return DataLoader(data, batch_size=16, sampler=RandomSampler(data, generator=generator))
    if kind == "workers":
        return DataLoader(data, batch_size=16, shuffle=True, num_workers=1, persistent_workers=True)

    def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
        return images + 0.1 * torch.randn(images.shape, generator=generator) + 0.1 * random.random() + np.random.rand()  # noqa: NPY002

    return make_loader(data, batch_size=16, shuffle_seed=int(torch.randint(1000, ())), augment=jitter)


@pytest.mark.parametrize("kind", ["global", "own", "sampler", "workers"])
def test_same_seed_same_weights_whatever_ran_before(kind: str) -> None:
    results = []
    for disturbance in (0, 5):
        loader = make_random_loader(kind)
        for _ in range(disturbance):
            list(loader)
        model = make_model()
        torch.rand(disturbance)
        random.seed(disturbance)
        result = train_classifier(model, loader, Recipe(epochs=2, seed=3))
        results.append((without_time(result), model.state_dict()))
    (result, weights), (other, other_weights) = results
    assert result == other
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    model = make_model()
    train_classifier(model, make_random_loader(kind), Recipe(epochs=2, seed=4))
    assert not torch.equal(model.state_dict()["0.weight"], weights["0.weight"])


def test_epochs_differ_in_their_order() -> None:
    seen: list[list[int]] = []

    class Indices(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            seen[-1].append(index)
            return torch.ones(3), index % 2

    loader = DataLoader(Indices(), batch_size=5, shuffle=True)
    for _ in range(2):
        seen.append([])
        train_classifier(nn.Linear(3, 2), loader, Recipe(epochs=2))
    assert seen[0] == seen[1]
    first, second = seen[0][:12], seen[0][12:]
    assert sorted(first) == sorted(second) == list(range(12)) and first != second


def test_samplers_are_told_the_epoch() -> None:
    class Told(RandomSampler):
        epochs: list[int] = []  # noqa: RUF012

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    data = make_problem()
    train_classifier(nn.Linear(3, 2), DataLoader(data, batch_size=16, sampler=Told(data)), Recipe(epochs=3))
    assert Told.epochs == [1, 2, 3]


def test_only_so_many_batches_are_used() -> None:
    rows: list[int] = []

    def count(logits: Tensor, targets: Tensor) -> Tensor:
        rows.append(len(targets))
        return functional.cross_entropy(logits, targets)

    loader = DataLoader(make_problem(), batch_size=16, shuffle=True)
    result = train_classifier(nn.Linear(3, 2), loader, Recipe(epochs=2), max_batches=3, loss_fn=count)
    assert rows == [16] * 6 and len(result.history) == 2


# ------------------------------------------------------------------------------------------------------ without a trace


def test_model_and_random_states_come_back() -> None:
    model = make_model()
    model[1].eval()
    model[4].bias.requires_grad_(False)
    parameters = [(id(parameter), parameter.requires_grad) for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    loader = make_random_loader("own")
    drawn = []
    for epochs in (0, 1):
        seed_everything([5], [loader.generator])
        if epochs:
            train_classifier(model, loader, Recipe(epochs=epochs), validation=wrong_labels())
        own = torch.rand(1, generator=loader.generator).item()
        drawn.append((torch.rand(1).item(), random.random(), np.random.rand(), own))  # noqa: NPY002
    assert drawn[0] == drawn[1]
    assert [module.training for module in model.modules()] == modes
    assert [(id(parameter), parameter.requires_grad) for parameter in model.parameters()] == parameters
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_come_back_after_an_exception() -> None:
    model = make_model().eval()
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train_classifier(model, [(torch.ones(4, 5), torch.zeros(4, dtype=torch.int64))], Recipe(epochs=1))
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_frozen_parameters_stay() -> None:
    model = make_model()
    weight = model.get_parameter("0.weight").requires_grad_(False)
    before = weight.clone()
    train_classifier(model, DataLoader(make_problem(), batch_size=16), Recipe(epochs=1))
    assert torch.equal(weight, before)


def test_types_come_back_from_another_precision() -> None:
    x, y = make_batch()
    model, twin = make_linear().float(), make_linear().float().double()
    weight = model.weight
    train_classifier(model, [(x.float(), y)], Recipe(epochs=3, precision="64-true"))
    train_classifier(twin, [(x.float().double(), y)], Recipe(epochs=3))
    assert model.weight is weight and weight.dtype == torch.float32
    assert torch.equal(weight, twin.weight.float())


def test_half_precision_learns() -> None:
    """In a process of its own, told which instructions to use: on some CPUs oneDNN's bfloat16 kernels crash."""
    code = """
import json, torch
from cleanai.training import Recipe, train_classifier
x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
out = {}
for precision in ("bf16-mixed", "bf16-true"):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    batches = [(x, (x[:, 0] > 0).long())]
    history = train_classifier(model, batches, Recipe(epochs=30, lr=0.2, precision=precision), device="cpu",
                               validation=batches).history
    out[precision] = history[-1].val_accuracy, str({t.dtype for t in model.parameters()})
print(json.dumps(out))
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    for accuracy, types in json.loads(done.stdout).values():
        assert accuracy > 90 and types == "{torch.float32}"


def test_batches_may_be_dicts() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, features: Tensor) -> dict[str, Tensor]:
            return {"logits": self.linear(features)}

    x, y = make_problem().tensors
    result = train_classifier(Named(), [{"features": x, "labels": y}], Recipe(epochs=30, lr=0.5))
    assert result.history[-1].train_accuracy > 90


# ---------------------------------------------------------------------------------------------------------- the errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be a whole number of at least 1"),
        ({"epochs": 2.5}, "epochs is 2.5"),
        ({"lr": 0.0}, "lr is 0.0; it must be a number above 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"optimizer": "lion"}, "optimizer is 'lion'; it must be one of 'sgd', 'adam', 'adamw'"),
        ({"scheduler": "cos"}, "scheduler is 'cos'; it must be one of 'cosine'"),
        ({"precision": "fp16"}, "precision is 'fp16'; it must be one of '32-true', 'bf16-mixed'"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"warmup_epochs": 2}, "warmup_epochs is 2; it must be a number at least 0 and below epochs"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"clip_norm": 0}, "clip_norm is 0; it must be a number above 0, or None"),
        ({"accumulate": True}, "accumulate is True"),
        ({"distillation_weight": 1.5}, "distillation_weight is 1.5; it must be a number from 0 to 1"),
        ({"distillation_temperature": 0}, "distillation_temperature is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_recipe_out_of_range_is_named(settings: dict[str, Any], message: str) -> None:
    settings = {"epochs": 2} | settings
    with pytest.raises(InputError, match=message):
        Recipe(**settings)


def test_precisions_are_fabrics() -> None:
    from lightning_fabric.plugins.precision.precision import _PRECISION_INPUT_STR

    known = {name for name in get_args(_PRECISION_INPUT_STR) if "transformer-engine" not in name}
    assert set(get_args(Precision)) == known


GOOD = (torch.ones(2, 3), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_seconds": 0.0}, "max_seconds is 0.0"),
        ({"max_batches": 0}, "max_batches is 0"),
        ({"keep": "first"}, "'last' or 'best'"),
        ({"keep": "best"}, "keep='best' needs validation="),
        ({"recipe": Recipe(epochs=1, patience=2)}, "patience=2 needs validation="),
        ({"recipe": Recipe(epochs=1, distillation_weight=0.5)}, "teacher is not given and the weight is 0.5"),
        ({"teacher": nn.Linear(3, 2)}, "teacher is given and the weight is 0"),
        (
            {"teacher": nn.Linear(3, 4), "recipe": Recipe(epochs=1, distillation_weight=0.5)},
            r"teacher gives logits of shape \(2, 4\), the model \(2, 2\)",
        ),
        ({"loss_fn": functional.cross_entropy, "recipe": Recipe(epochs=1, label_smoothing=0.1)}, "leave loss_fn"),
        ({"device": "tpu9"}, "device is 'tpu9'"),
        ({"loader": []}, "the loader gives no batches"),
        ({"validation": []}, "the validation loader gives no batches"),
        ({"loader": iter([GOOD])}, "has no length"),
        ({"loader": [torch.ones(2, 3)]}, "has no targets"),
        ({"loader": [(torch.ones(2, 3), torch.ones(2))]}, "must be class probabilities"),
        ({"model": nn.Linear(3, 2).requires_grad_(False)}, "nothing to train"),
        ({"loader": [GOOD] * 20 + [(torch.full((2, 3), torch.nan), GOOD[1])]}, "loss is nan at step 20"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_named(settings: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"model": nn.Linear(3, 2), "loader": [GOOD], "recipe": Recipe(epochs=1), **settings}
    with pytest.raises(InputError, match=message):
        train_classifier(**arguments)


def test_a_loader_that_is_used_up_is_named() -> None:
    class Once:
        def __init__(self) -> None:
            self.batches = iter([GOOD])

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[Any]:
            return self.batches

    with pytest.raises(InputError, match="no batches in epoch 2"):
        train_classifier(nn.Linear(3, 2), Once(), Recipe(epochs=2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(InputError, match="no GPU that torch can use"):
        train_classifier(nn.Linear(3, 2), [GOOD], Recipe(epochs=1), device="cuda")
    with pytest.raises(InputError, match="'16-mixed' needs a GPU"):
        train_classifier(nn.Linear(3, 2), [GOOD], Recipe(epochs=1, precision="16-mixed"))


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    train_classifier(nn.Linear(3, 2), [GOOD], Recipe(epochs=1), progress="training", folder=tmp_path)
    assert capfd.readouterr() == ("", "")
