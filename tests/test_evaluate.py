"""Measurements against values computed by hand, on models that must come back exactly as they were."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from cleanai import latency
from cleanai.errors import InputError
from cleanai.evaluate import (
    Latency,
    ModelMetrics,
    count_macs,
    count_parameters,
    count_trainable_parameters,
    evaluate_model,
    measure_latency,
    measure_model,
    model_size_mb,
)
from cleanai.models import resnet18_cifar


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens))


class Attention(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value)


class NeedsValues(nn.Module):
    """Cannot run on the meta device, and uses the kernels that the FLOP counter cannot see into."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(6, nhead=2, dim_feedforward=8, batch_first=True)
        self.lstm = nn.LSTM(6, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() < 0:
            x = -x
        return self.lstm(self.encoder(x))[0]


class Noisy(nn.Module):
    """Has everything that measuring could disturb: BatchNorm statistics, dropout, randomness, a counter, hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.BatchNorm1d(4).eval()
        self.dropout = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.frozen(self.norm(self.linear(x + 0.0 * torch.randn_like(x)))))


def describe_state(model: nn.Module) -> dict[str, Any]:
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [list(module._forward_hooks) + list(module._forward_pre_hooks) for module in model.modules()],
        "identities": [id(tensor) for tensor in [*model.parameters(), *model.buffers()]],
        "values": [tensor.tolist() for tensor in [*model.parameters(), *model.buffers()]],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "random": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
    }


def test_parameters_of_tied_and_frozen_layers() -> None:
    model = Tied()
    assert count_parameters(model) == 21
    assert model_size_mb(model) == pytest.approx(21 * 4 / 1e6)
    extended = nn.Sequential(model, nn.Linear(7, 2).requires_grad_(False))
    assert count_parameters(extended) == 21 + 16
    assert count_trainable_parameters(extended) == 21


def test_size_counts_buffers_and_element_sizes() -> None:
    norm = nn.BatchNorm2d(10)  # 2 × 10 parameters, 2 × 10 statistics, one int64 counter
    assert model_size_mb(norm) == pytest.approx((40 * 4 + 8) / 1e6)
    assert model_size_mb(norm.half()) == pytest.approx((40 * 2 + 8) / 1e6)


@pytest.mark.parametrize(
    ("model", "inputs", "macs"),
    [
        (nn.Linear(5, 7), torch.zeros(3, 5), 3 * 5 * 7),
        (nn.Linear(5, 7), torch.zeros(2, 3, 5), 2 * 3 * 5 * 7),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.zeros(2, 3, 9, 9), 2 * 25 * 8 * 3 * 9),
        (nn.Conv2d(6, 9, 3, groups=3), torch.zeros(1, 6, 5, 5), 9 * 9 * 2 * 9),
        (nn.Conv2d(6, 6, 3, groups=6), torch.zeros(1, 6, 5, 5), 9 * 6 * 9),
        (nn.Conv1d(2, 3, 4), torch.zeros(1, 2, 10), 7 * 3 * 2 * 4),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), torch.zeros(1, 4, 5, 5), 25 * 4 * 6 * 9),
        (Attention(), (torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 6, 8), torch.zeros(2, 3, 6, 4)), 6 * 5 * 6 * (8 + 4)),
        (Tied(), torch.zeros(2, 4, dtype=torch.int64), 2 * 4 * 3 * 7),
    ],
    ids=["linear", "linear3d", "conv", "grouped", "depthwise", "conv1d", "transposed", "sdpa", "tied"],
)
def test_macs_against_hand_computed(model: nn.Module, inputs: Any, macs: int) -> None:
    assert count_macs(model, inputs) == macs


@pytest.mark.parametrize("training", [False, True])
def test_macs_of_multihead_attention_in_both_modes(training: bool) -> None:
    batch, length, width = 2, 5, 12
    model = nn.MultiheadAttention(width, num_heads=3, batch_first=True).train(training)
    x = torch.zeros(batch, length, width)
    projections = 4 * batch * length * width * width
    products = 2 * batch * length * length * width
    assert count_macs(model, (x, x, x)) == projections + products
    assert count_macs(model, {"query": x, "key": x, "value": x}) == projections + products


@pytest.mark.parametrize("training", [False, True])
def test_macs_of_a_model_that_needs_values_miss_no_fused_kernel(training: bool) -> None:
    batch, length = 2, 5
    attention = 4 * batch * length * 6 * 6 + 2 * batch * length * length * 6
    feed_forward = 2 * batch * length * 6 * 8
    lstm = batch * length * 4 * 4 * (6 + 4)
    model = NeedsValues().train(training)
    assert count_macs(model, torch.ones(batch, length, 6)) == attention + feed_forward + lstm
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize(
    ("build", "side", "gmacs"),
    [
        (resnet18_cifar, 32, 0.5554),
        (torchvision.models.resnet50, 224, 4.0892),
        (torchvision.models.vit_b_16, 224, 17.5638),
    ],
    ids=["resnet18_cifar", "resnet50", "vit_b_16"],
)
def test_macs_of_known_networks(build: Callable[[], nn.Module], side: int, gmacs: float) -> None:
    with torch.device("meta"):  # a count needs no weights
        model = build()
    assert round(count_macs(model, torch.zeros(1, 3, side, side)) / 1e9, 4) == gmacs


def test_macs_count_the_evaluation_mode_forward() -> None:
    model = torchvision.models.googlenet(aux_logits=True, init_weights=False)
    x = torch.zeros(1, 3, 64, 64)
    assert count_macs(model.train(), x) == count_macs(model.eval(), x)


def test_macs_with_a_forward_function_that_closes_over_the_model() -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(4, 3), "decoder": nn.Linear(3, 4)})
    assert count_macs(model, torch.zeros(2, 4), forward_fn=lambda _, x: model["encoder"](x)) == 2 * 4 * 3


def test_macs_of_old_style_weight_norm() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = nn.utils.weight_norm(nn.Linear(4, 3))
    assert count_macs(layer, torch.zeros(2, 4)) == 2 * 4 * 3


def test_macs_show_the_models_own_error() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        count_macs(nn.Linear(4, 3), torch.zeros(2, 5))


@pytest.mark.parametrize("fails", [False, True])
def test_measuring_leaves_the_model_alone(fails: bool) -> None:
    model = Noisy()
    model.linear.weight.requires_grad_(False)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    x, y = torch.ones(6, 4), torch.zeros(6, dtype=torch.int64)
    before = describe_state(model)
    inputs = torch.ones(6, 3) if fails else x
    loader = DataLoader(TensorDataset(inputs, y), batch_size=3, shuffle=True)

    def measure(*steps: Callable[[], object]) -> None:
        for step in steps:
            if fails:
                with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                    step()
            else:
                step()

    measure(lambda: count_macs(model, inputs))
    assert calls == []  # a user's statistics are not fed with meta tensors
    measure(
        lambda: measure_latency(model, inputs, min_run_time=0.01, num_threads=1),
        lambda: evaluate_model(model, loader),
        lambda: measure_model(model, inputs, loader=loader, latency=True, min_run_time=0.01),
    )
    assert describe_state(model) == before


def test_latency_restores_the_thread_count_and_describes_itself() -> None:
    threads = torch.get_num_threads()
    model = nn.Linear(16, 16)
    seen = set()
    model.register_forward_hook(lambda *_: seen.add((torch.get_num_threads(), torch.is_inference_mode_enabled())))
    latency = measure_latency(model, (torch.zeros(5, 16),), num_threads=2, min_run_time=0.02)
    assert torch.get_num_threads() == threads
    assert seen == {(2, True)}
    assert latency.num_threads == 2 and latency.batch_size == 5 and latency.runs > 10
    assert 0 < latency.median_ms < 20
    assert latency.iqr_ms >= 0
    assert "batch 5, 2 threads" in str(latency)


def test_latency_grows_with_the_work() -> None:
    small, large = nn.Linear(8, 8), nn.Sequential(*[nn.Linear(512, 512) for _ in range(8)])
    fast = measure_latency(small, torch.zeros(1, 8), min_run_time=0.05)
    slow = measure_latency(large, torch.zeros(64, 512), min_run_time=0.05)
    assert slow.median_ms > 5 * fast.median_ms


@pytest.mark.parametrize("wrong", [{"num_threads": 0}, {"min_run_time": 0.0}])
def test_latency_refuses_senseless_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"measure_latency: (num_threads is 0|min_run_time is 0)"):
        measure_latency(nn.Linear(2, 2), torch.zeros(1, 2), **wrong)


def logits_and_labels() -> tuple[Tensor, Tensor]:
    """Five rows, of which rows 0, 1 and 4 are right."""
    logits = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [2, 0, 0], [0, 2, 0]])
    return logits, torch.tensor([0, 1, 1, 2, 1])


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(*logits_and_labels(), strict=True)


def make_loaders() -> dict[str, Any]:
    x, y = logits_and_labels()
    pairs = [(x[:2], y[:2]), (x[2:], y[2:])]
    return {
        "loader": DataLoader(TensorDataset(x, y), batch_size=2),
        "stream": DataLoader(Stream(), batch_size=2),
        "tuples": pairs,
        "lists": [list(pair) for pair in pairs],
        "generator": (pair for pair in pairs),
        "dicts": [{"input": a, "labels": b} for a, b in pairs],
        "dict with target": [{"input": a, "target": b} for a, b in pairs],
    }


@pytest.mark.parametrize("kind", make_loaders())
def test_accuracy_and_loss_over_every_kind_of_loader(kind: str) -> None:
    x, y = logits_and_labels()
    result = evaluate_model(nn.Identity(), make_loaders()[kind], progress="evaluating")
    assert result.accuracy == pytest.approx(60.0)
    assert result.loss == pytest.approx(functional.cross_entropy(x, y).item())  # batches of 2, 2 and 1 weigh right
    assert result.samples == 5


def test_max_batches_stops_early() -> None:
    taken = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(4):
            taken.append(index)
            yield torch.eye(2), torch.tensor([0, 1])

    assert evaluate_model(nn.Identity(), batches(), max_batches=2).samples == 4
    assert taken in ([0, 1], [0, 1, 2])


def test_dense_predictions_count_every_position() -> None:
    logits = torch.zeros(2, 3, 4)
    logits[:, 1] = 1.0
    labels = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 2]])
    result = evaluate_model(nn.Identity(), [(logits, labels)])
    assert result.accuracy == pytest.approx(100 * 5 / 8)
    assert result.samples == 2


def test_regression_has_a_loss_and_no_accuracy() -> None:
    loader = [(torch.ones(2, 1), torch.zeros(2, 1)), (torch.ones(1, 1) * 3, torch.zeros(1, 1))]
    result = evaluate_model(nn.Identity(), loader, loss_fn=functional.mse_loss)
    assert result.accuracy is None
    assert result.loss == pytest.approx((1 + 1 + 9) / 3)


def test_output_transform_and_nested_outputs() -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"loss": None, "logits": x, "reversed": x.flip(1)}

    x, y = logits_and_labels()
    assert evaluate_model(Nested(), [(x, y)]).accuracy == pytest.approx(60.0)
    flipped = evaluate_model(Nested(), [(x, y)], output_transform=lambda output: output["reversed"])
    assert flipped.accuracy == pytest.approx(100 * (x.flip(1).argmax(1) == y).float().mean().item())


@pytest.mark.parametrize(
    ("loader", "settings", "message"),
    [
        ([], {}, "gave no batches"),
        ([torch.ones(2, 2)], {}, "batch 0 of the loader has no targets"),
        ([(torch.ones(2, 2), torch.tensor([0, 1]))], {"max_batches": 0}, "max_batches is 0"),
        ([(torch.ones(2, 2), torch.tensor([0, 1]))], {"forward_fn": lambda *_: None}, "holds no tensor"),
    ],
    ids=["empty", "no targets", "max_batches", "no tensor"],
)
def test_bad_input_is_named_and_modes_restored(loader: list[Any], settings: dict[str, Any], message: str) -> None:
    model = nn.Dropout().train()
    with pytest.raises(InputError, match=message):
        evaluate_model(model, loader, **settings)
    assert model.training


def test_metrics_survive_json() -> None:
    x, y = logits_and_labels()
    model = nn.Linear(3, 3)
    metrics = measure_model(model, x, loader=[(x, y)], latency=True, min_run_time=0.01)
    assert metrics.parameters == 12 and metrics.macs == 45 and metrics.flops == 90
    assert metrics.size_mb == pytest.approx(48e-6)
    assert metrics.samples == 5 and metrics.latency is not None
    assert ModelMetrics.from_dict(json.loads(json.dumps(metrics.to_dict()))) == metrics
    bare = measure_model(model, x)
    assert bare.latency is None and bare.accuracy is None and bare.loss is None and bare.samples is None
    assert ModelMetrics.from_dict(json.loads(json.dumps(bare.to_dict()))) == bare


def test_a_disturbed_latency_says_so() -> None:
    quiet = Latency(median_ms=1.0, iqr_ms=0.01, runs=10, num_threads=1, batch_size=1, disturbed=False)
    assert "disturbed" not in str(quiet)
    assert "1 thread)" in str(quiet)
    assert "disturbed" in str(Latency(1.0, 0.5, 10, 1, 1, disturbed=True))


def test_models_timed_in_turns_have_the_median_of_their_faster_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [nn.Linear(2, 2), nn.Linear(2, 3)]
    rounds = iter([1.0, 10.0, 3.0, 10.0, 2.0, 10.5])  # first, second, first, ...

    def measure(model: nn.Module, inputs: Tensor, **options: Any) -> Latency:
        assert options["min_run_time"] == 0.5
        return Latency(next(rounds), 0.0, 7, 1, len(inputs), False)

    monkeypatch.setattr(latency, "measure_latency", measure)
    first, second = latency.time_in_turns(models, torch.zeros(4, 2), rounds=3, min_run_time=0.5)
    assert (first.median_ms, first.iqr_ms, first.runs, first.disturbed) == (1.5, 0.5, 21, True)
    assert (second.median_ms, second.iqr_ms, second.disturbed) == (10.0, 0.0, False)
    with pytest.raises(InputError, match="rounds is 1"):
        latency.time_in_turns(models, torch.zeros(4, 2), rounds=1)
