"""Activation statistics: what a direct computation gives, from any loader, with the model left as it was."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from cleanai import ActivationStatistics, InputError, StructuredPruner, collect_statistics
from cleanai.calibration import ChannelStatistics


class Net(nn.Module):
    """A convolution, BatchNorm, a depthwise and a transposed convolution, a linear layer over the last dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.fc = nn.Linear(4, 2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = F.relu(self.up(self.depthwise(self.drop(x))))
        return self.fc(x.flatten(2).transpose(1, 2))


class TwoInputs(nn.Module):
    """Takes an image and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(1, 4, 3), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        return self.out(self.conv(image).mean((2, 3)) + self.fc(vector))


def make_net() -> Any:
    torch.manual_seed(0)
    net: Any = Net()
    with torch.no_grad():
        net.norm.running_mean.normal_()
        net.norm.running_var.uniform_(0.5, 1.5)
    return net


def images(count: int = 14) -> Tensor:
    return torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def collect(model: nn.Module, loader: Any, **options: Any) -> ActivationStatistics:
    return collect_statistics(model, loader, progress=False, **options)


def side(statistics: ActivationStatistics, layer: str, which: str) -> ChannelStatistics:
    found = statistics.get(layer, which)
    assert found is not None, f"no statistics for the {which} of {layer}"
    return found


def assert_same(first: ActivationStatistics, second: ActivationStatistics) -> None:
    assert first.sides.keys() == second.sides.keys()
    for key, ours in first.sides.items():
        theirs = second.sides[key]
        assert ours.count == theirs.count
        for name in ("total", "absolute", "square", "low", "high"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-12, atol=1e-12)
        assert ours.above.keys() == theirs.above.keys()
        assert all(torch.equal(ours.above[threshold], theirs.above[threshold]) for threshold in ours.above)


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "classes": [type(module) for module in model.modules()],
        "gradients": [(p.requires_grad, p.grad is None) for p in model.parameters()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "random": torch.get_rng_state(),
    }


def assert_as_before(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    for name, tensor in before["state"].items():
        assert torch.equal(after["state"][name], tensor), name
    assert torch.equal(after["random"], before["random"])
    for key in ("modes", "hooks", "classes", "gradients", "attributes"):
        assert after[key] == before[key], key


# -------------------------------------------------------------------------------------------------------- the numbers


def test_statistics_equal_a_direct_computation() -> None:
    net, x = make_net(), images()
    statistics = collect(net, [x])
    net.eval()
    with torch.no_grad():
        written = net.conv(x)
        read = F.relu(net.norm(written))
        up_input = net.depthwise(read)
        up_output = net.up(up_input)
        tokens = F.relu(up_output).flatten(2).transpose(1, 2)
    expected = {
        ("conv", "input"): x.transpose(0, 1),
        ("conv", "output"): written.transpose(0, 1),
        ("depthwise", "input"): read.transpose(0, 1),
        ("depthwise", "output"): up_input.transpose(0, 1),
        ("up", "input"): up_input.transpose(0, 1),
        ("up", "output"): up_output.transpose(0, 1),
        ("fc", "input"): tokens.movedim(-1, 0),
        ("fc", "output"): net.fc(tokens).detach().movedim(-1, 0),
    }
    assert statistics.sides.keys() == expected.keys()
    for (layer, which), values in expected.items():
        rows = values.flatten(1).double()
        ours = side(statistics, layer, which)
        assert ours.count == rows.shape[1]
        torch.testing.assert_close(ours.mean, rows.mean(1))
        torch.testing.assert_close(ours.mean_absolute, rows.abs().mean(1))
        torch.testing.assert_close(ours.root_mean_square, rows.square().mean(1).sqrt())
        torch.testing.assert_close(ours.deviation, rows.std(1, correction=0))
        torch.testing.assert_close(ours.frequency(), (rows > 0).double().mean(1))
        assert torch.equal(ours.low, rows.amin(1)) and torch.equal(ours.high, rows.amax(1))
        assert torch.equal(ours.largest, rows.abs().amax(1))
        assert ours.total.dtype is torch.float64
    assert (statistics.batches, statistics.samples) == (1, 14)


def test_one_two_or_seven_batches_agree() -> None:
    net, x = make_net().double(), images(14).double()
    whole = collect(net, [x])
    for size in (7, 2):
        split = collect(net, list(x.split(size)))
        assert_same(split, whole)
        assert (split.batches, split.samples) == (14 // size, 14)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 13), max_size=6, unique=True), st.lists(st.floats(-2, 2), max_size=3))
def test_batches_of_any_sizes_and_their_merge_agree(bounds: list[int], thresholds: list[float]) -> None:
    net, x = make_net().double(), images(14).double()
    parts = [part for part in x.tensor_split(sorted(bounds)) if len(part)]
    whole = collect(net, [x], thresholds=thresholds)
    assert_same(collect(net, parts, thresholds=thresholds), whole)
    merged = collect(net, parts[:1], thresholds=thresholds)
    for part in parts[1:]:
        merged = collect(net, [part], thresholds=thresholds).merge(merged)
    assert_same(merged, whole)


@pytest.mark.parametrize("shape", [(6, 5), (2, 6, 3), (1, 6, 40, 50), (3, 1, 6, 2, 7)])
@pytest.mark.parametrize("piece", [1, 7, 100, 10**6])
def test_pieces_of_a_tensor_are_summed_as_one(shape: tuple[int, ...], piece: int, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    values = torch.randn(shape)
    for dim in range(len(shape)):
        monkeypatch.setattr("cleanai.calibration._PIECE", 10**9)
        whole = ChannelStatistics.of(values, dim, (0.0, 0.5))
        monkeypatch.setattr("cleanai.calibration._PIECE", piece)
        parts = ChannelStatistics.of(values, dim - len(shape), (0.0, 0.5))
        assert_same(ActivationStatistics({("", ""): parts}), ActivationStatistics({("", ""): whole}))


def test_values_above_several_thresholds_are_counted_in_one_pass() -> None:
    net, x = make_net(), images()
    read = side(collect(net, [x], thresholds=(0, 0.5, -1.0)), "conv", "input")
    rows = x.transpose(0, 1).flatten(1)
    for threshold in (0.0, 0.5, -1.0):
        assert read.above[threshold].tolist() == (rows > threshold).sum(1).tolist()
        assert torch.equal(read.keep([2]).frequency(threshold), read.frequency(threshold)[[2]])
    with pytest.raises(InputError, match=r"without counting values above 0.25 \(but above 0, 0.5, -1\)"):
        read.frequency(0.25)
    with pytest.raises(InputError, match="cannot be merged: collect both with the same thresholds"):
        read.merge(side(collect(net, [x]), "conv", "input"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0", None, True])
def test_thresholds_must_be_numbers(value: Any) -> None:
    with pytest.raises(InputError, match="thresholds holds"):
        collect(make_net(), [images()], thresholds=(0.0, value))


def test_norms_and_embeddings_are_watched_where_asked_for() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Embedding(7, 6), nn.LayerNorm(6), nn.Linear(6, 4)).eval()
    words = torch.randint(0, 7, (5, 3))
    statistics = collect(net, [words], norms=True)
    assert statistics.sides.keys() == {
        *(("0", "output"), ("1", "input"), ("1", "output"), ("2", "input"), ("2", "output"))
    }
    torch.testing.assert_close(side(statistics, "0", "output").mean, net[0](words).double().mean((0, 1)))
    assert {layer for layer, _ in collect(net, [words]).sides} == {"2"}
    assert side(collect(make_net(), [images()], norms=True), "norm", "output").count == 14 * 25


def test_uneven_batches_count_by_their_size() -> None:
    net, x = make_net().double(), images(14).double()
    assert_same(collect(net, [x[:1], x[1:12], x[12:]]), collect(net, [x]))


def test_merging_two_passes_is_one_pass() -> None:
    net, x = make_net().double(), images(14).double()
    merged = collect(net, [x[:5]]).merge(collect(net, [x[5:]]))
    assert_same(merged, collect(net, [x]))
    assert merged.samples == 14
    two_batches = collect(net, [x[:5], x[5:]])
    for key, ours in merged.sides.items():
        assert torch.equal(ours.square, two_batches.sides[key].square)  # bit by bit


def test_keep_and_after_pick_channels() -> None:
    statistics = collect(make_net(), [images()])
    kept = statistics.after({("conv", "output"): torch.tensor([0, 4])})
    assert torch.equal(side(kept, "conv", "output").total, side(statistics, "conv", "output").total[[0, 4]])
    assert torch.equal(side(kept, "conv", "input").total, side(statistics, "conv", "input").total)


def test_evaluation_mode_whatever_the_models_mode() -> None:
    net, x = make_net(), images()
    assert_same(collect(net.train(), [x]), collect(copy.deepcopy(net).eval(), [x]))


def test_at_most_num_batches_are_drawn() -> None:
    drawn = []

    def endless() -> Iterator[Tensor]:
        while True:
            drawn.append(1)
            yield images(2)

    statistics = collect(make_net(), endless(), num_batches=3)
    assert statistics.batches == 3
    assert len(drawn) <= 4


def test_attention_layers_are_watched_inside_the_encoder() -> None:
    """torch's fused encoder layer would pass the hooks by."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    statistics = collect(layer, [torch.randn(3, 5, 8)])
    assert {name for name, _ in statistics.sides} == {"self_attn.out_proj", "linear1", "linear2"}
    assert side(statistics, "linear2", "input").count == 15


def test_little_memory_is_needed_for_a_large_tensor() -> None:
    """Double precision of all of it at once would take several times its own size."""
    values = torch.zeros(64, 32, 64, 64)  # 32 MiB
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        ChannelStatistics.of(values, 1)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest < 16 * 2**20


# --------------------------------------------------------------------------------------------------------- the loader


def as_pairs(x: Tensor) -> list[Any]:
    return [(part, torch.zeros(len(part))) for part in x.split(5)]


@pytest.mark.parametrize(
    "loader",
    [
        lambda x: list(x.split(5)),
        lambda x: [(part,) for part in x.split(5)],
        as_pairs,
        lambda x: [list(pair) for pair in as_pairs(x)],
        lambda x: DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=5),
        lambda x: DataLoader(TensorDataset(x), batch_size=5),
        lambda x: [{"x": part, "labels": torch.zeros(len(part))} for part in x.split(5)],
        lambda x: [{"x": part} for part in x.split(5)],
        lambda x: (part for part in x.split(5)),
    ],
    ids=["tensors", "singles", "pairs", "lists", "DataLoader", "unlabelled", "labelled dicts", "dicts", "generator"],
)
def test_every_kind_of_loader_gives_the_same_statistics(loader: Any) -> None:
    net, x = make_net().double(), images().double()
    assert_same(collect(net, loader(x)), collect(net, [x]))


@pytest.mark.parametrize(
    ("example", "batch"),
    [
        (lambda i, v: (i, v), lambda i, v: (i, v)),
        (lambda i, v: (i, v), lambda i, v: (i, v, torch.zeros(len(i)))),
        (lambda i, v: (i, v), lambda i, v: [i, v, torch.zeros(len(i))]),
        (lambda i, v: {"image": i, "vector": v}, lambda i, v: {"image": i, "vector": v, "labels": torch.zeros(len(i))}),
        (lambda i, v: {"image": i, "vector": v}, lambda i, v: ({"image": i, "vector": v}, torch.zeros(len(i)))),
        (
            lambda i, v: {"image": i, "vector": v},
            lambda i, v: {"image": i, "vector": v, "sample_id": torch.arange(len(i))},
        ),
    ],
    ids=["tuple", "tuple and labels", "list and labels", "dict and labels", "dict in a pair", "dict and more"],
)
def test_models_with_several_inputs(example: Any, batch: Any) -> None:
    torch.manual_seed(0)
    net = TwoInputs().double()
    image, vector = torch.randn(6, 1, 5, 5).double(), torch.randn(6, 3).double()
    pruner = StructuredPruner(net, example(image[:1], vector[:1]), "activation")
    statistics = pruner.collect_activations(
        [batch(image[:4], vector[:4]), batch(image[4:], vector[4:])], progress=False
    )
    assert_same(statistics, collect(net, [(image, vector, None)]))
    assert statistics.samples == 6
    pruner.prune()


def test_forward_fn_decides_how_a_batch_goes_in() -> None:
    net, x = make_net(), images()
    twice = collect(net, [x], forward_fn=lambda model, batch: model(batch * 2))
    assert_same(twice, collect(net, [x * 2]))


def test_batches_of_another_precision_or_layout() -> None:
    net, x = make_net().double(), images().double()
    assert_same(collect(net, [x.contiguous(memory_format=torch.channels_last)]), collect(net, [x]))


# -------------------------------------------------------------------------------------- nothing is left behind


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_before(training: bool) -> None:
    net = make_net().train(training)
    net.conv.training = not training  # a mixture of modes comes back as a mixture
    net.conv.weight.requires_grad_(False)
    net.register_forward_hook(lambda *_: None)
    before = snapshot(net)
    collect(net, DataLoader(TensorDataset(images()), batch_size=4, shuffle=True))
    assert_as_before(net, before)


@pytest.mark.parametrize("where", ["model", "loader", "data"])
def test_the_model_is_as_before_when_a_batch_raises(where: str) -> None:
    net = make_net().train()
    before = snapshot(net)

    def loader() -> Iterator[Tensor]:
        yield images(2)
        if where == "loader":
            raise OSError("the disk is gone")
        yield torch.randn(2, 7, 5, 5) if where == "model" else images(2) * float("nan")

    error, words = {
        "model": (InputError, r"cannot run on batch 1 of the loader"),
        "loader": (OSError, "the disk is gone"),
        "data": (InputError, "the input of the layer conv holds NaN"),
    }[where]
    with pytest.raises(error, match=words):
        collect(net, loader())
    assert_as_before(net, before)


def test_a_buffer_that_the_forward_counts_in_is_as_before() -> None:
    """The values of buffers are the caller's too, also where evaluation mode writes to them in place."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 4)
            self.calls: Tensor
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.fc(x)

    net = Counting()
    collect(net, [torch.randn(2, 3)] * 3)
    assert net.calls == 0


def test_memory_does_not_grow_with_the_batches() -> None:
    net = make_net().eval()
    seen: list[weakref.ref[Tensor]] = []
    net.conv.register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    statistics = collect(net, [images(4) for _ in range(6)])
    gc.collect()
    assert len(seen) == 6
    assert all(reference() is None for reference in seen)
    sums = [[s.total, s.absolute, s.square, s.low, s.high, *s.above.values()] for s in statistics.sides.values()]
    channels = 3 + 6 + 6 + 6 + 6 + 4 + 4 + 2
    assert sum(tensor.numel() for part in sums for tensor in part) == 6 * channels
    for part in statistics.sides.values():
        assert part.total.untyped_storage().nbytes() == part.total.numel() * 8


# ------------------------------------------------------------------------------------------------------ bad data


EMPTY = {"list": [], "tuple": (), "iterator": iter(()), "loader": DataLoader(TensorDataset(torch.zeros(0, 3, 5, 5)))}


@pytest.mark.parametrize("loader", EMPTY.values(), ids=EMPTY)
def test_an_empty_loader_is_refused(loader: Any) -> None:
    with pytest.raises(InputError, match="the loader is empty: activations need at least one batch"):
        collect(make_net(), loader)


@pytest.mark.parametrize("number", [0, -1])
def test_a_number_of_batches_below_one_is_refused(number: int) -> None:
    with pytest.raises(InputError, match=r"num_batches is .*at least 1, or None"):
        collect(make_net(), [images()], num_batches=number)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_activations_that_are_not_finite_name_the_first_layer(value: float) -> None:
    net = make_net()
    with torch.no_grad():
        net.norm.running_mean[2] = value
    with pytest.raises(InputError, match="the input of the layer depthwise holds NaN or infinite values"):
        collect(net, [images()])


def test_a_batch_that_does_not_fit_says_what_batches_must_hold() -> None:
    with pytest.raises(InputError, match=r"batch 0 of the loader.*batches must hold what example_inputs holds"):
        collect(TwoInputs(), [torch.randn(2, 1, 5, 5)])
