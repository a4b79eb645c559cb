"""Neuron coverage: the analyzer sees what the next layers read, exactly and in constant memory; its pruner keeps it."""

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
from nets import CASES
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from cleanai import CoverageAnalyzer, CoveragePruner, InputError, StructuredPruner
from cleanai.importance import NeuronCoverageImportance

METRICS: Any = ("normalized_mean", "frequency", "mean_absolute", "combined")


class Net(nn.Module):
    """Convolutions with a norm, a nonlinearity and a depthwise layer, flattened into a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.depthwise = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6)
        self.conv2, self.fc1, self.fc2 = nn.Conv2d(6, 4, 1), nn.Linear(16, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(F.relu(self.norm(self.conv1(x)))))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(torch.sigmoid(self.fc1(x.flatten(1))))


def make_net(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    net: Any = Net().eval()
    with torch.no_grad():
        net.norm.running_mean.normal_()
        net.norm.bias.normal_()
    return net


def images(count: int = 14, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def analyze(net: nn.Module, loader: Any, **options: Any) -> CoverageAnalyzer:
    analyzer = CoverageAnalyzer(net, **options)
    analyzer.collect(loader, progress=False)
    return analyzer


def read_values(net: Any, x: Tensor) -> dict[str, Tensor]:
    """What the next layer reads of each layer's output channels, as rows."""
    with torch.no_grad():
        conv1 = F.relu(net.norm(net.conv1(x)))
        depthwise = F.relu(net.depthwise(conv1))
        conv2 = F.max_pool2d(F.relu(net.conv2(depthwise)), 2)
        fc1 = torch.sigmoid(net.fc1(conv2.flatten(1)))
        found = {"conv1": conv1, "depthwise": depthwise, "conv2": conv2, "fc1": fc1, "fc2": net.fc2(fc1)}
    return {name: values.transpose(0, 1).flatten(1).double() for name, values in found.items()}


# ------------------------------------------------------------------------------------------------------ the numbers


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_coverage_equals_a_direct_computation_on_what_is_read(threshold: float) -> None:
    net, x = make_net(), images()
    analyzer = analyze(net, [x], thresholds=(threshold,))
    rows = read_values(net, x)
    mean = {name: values.abs().mean(1) for name, values in rows.items()}
    often = {name: (values > threshold).double().mean(1) for name, values in rows.items()}
    shares = {name: values / values.max() for name, values in mean.items()}
    expected = {
        "mean_absolute": mean,
        "normalized_mean": shares,
        "frequency": often,
        "combined": {name: (shares[name] * often[name]).sqrt() for name in rows},
    }
    for metric in METRICS:
        found = analyzer.compute_neuron_coverage(metric)
        assert found.keys() == rows.keys()
        for name, values in expected[metric].items():
            torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-7)


def test_coverage_of_a_concatenation_and_a_residual_is_that_of_what_is_read() -> None:
    net = CASES["dense"].make()
    x = CASES["dense"].inputs(6)
    found = analyze(net, [x]).compute_neuron_coverage("mean_absolute")
    with torch.no_grad():
        a = F.relu(net.conv1(x))
        b = F.relu(net.conv2(a))
        both = F.relu(net.bn(torch.cat([a, b], 1))).abs().mean((0, 2, 3)).double()
    torch.testing.assert_close(found["conv1"], (both[:4] + a.abs().mean((0, 2, 3)).double()) / 2)
    torch.testing.assert_close(found["conv2"], both[4:])
    net = CASES["residual"].make()
    x = CASES["residual"].inputs(6)
    found = analyze(net, [x]).compute_neuron_coverage("mean_absolute")
    with torch.no_grad():
        stem = net.stem(x)
        inner = F.relu(net.bn1(net.conv1(stem)))
        out = F.relu(stem + net.bn2(net.conv2(inner))).mean((2, 3)).mean(0)
    torch.testing.assert_close(found["conv1"], inner.mean((0, 2, 3)).double())
    torch.testing.assert_close(found["conv2"], out.double())


def test_channels_that_can_only_go_together_are_still_told_apart() -> None:
    """Behind a group norm a unit is a whole group, and what a frozen layer writes is no unit at all."""
    net = CASES["group_norm"].make()
    x = CASES["group_norm"].inputs(6)
    found = analyze(net, [x]).compute_neuron_coverage("mean_absolute")
    with torch.no_grad():
        first = F.relu(net.norm1(net.conv1(x)))
        second = F.relu(net.norm2(net.conv2(first)))
    torch.testing.assert_close(found["conv1"], first.mean((0, 2, 3)).double())
    torch.testing.assert_close(found["conv2"], second.mean((0, 2, 3)).double())

    class Shown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            x = F.relu(self.first(x))
            y = F.relu(self.second(x))
            return self.third(y), x, y

    torch.manual_seed(0)
    net, x = Shown(), torch.randn(7, 3)
    found = analyze(net, [x]).compute_neuron_coverage("mean_absolute")
    _, first, second = net(x)
    torch.testing.assert_close(found["first"], first.detach().mean(0).double())
    torch.testing.assert_close(found["second"], second.detach().mean(0).double())


@pytest.mark.parametrize(
    "name", ["grouped", "depthwise", "shuffle_unit", "transposed", "attention_sdpa", "squeeze_excite"]
)
def test_every_layer_has_one_value_for_each_output_channel(name: str) -> None:
    net = CASES[name].make()
    analyzer = analyze(net, [CASES[name].inputs(4)])
    for metric in METRICS:
        for layer, values in analyzer.compute_neuron_coverage(metric).items():
            module = net.get_submodule(layer)
            assert len(values) == getattr(module, "out_channels", getattr(module, "out_features", None))
            assert bool(values.isfinite().all()) and bool((values >= 0).all())
            assert metric == "mean_absolute" or float(values.max()) <= 1


def test_normalised_coverage_and_frequency_do_not_depend_on_the_scale() -> None:
    net = make_net()
    with torch.no_grad():
        for layer in (net.conv1, net.depthwise, net.conv2, net.fc1, net.fc2):
            layer.bias.zero_()
        net.norm.bias.zero_()
        net.norm.running_mean.zero_()
    first, second = (analyze(net, [images() * factor]) for factor in (1, 7))
    for metric in ("normalized_mean", "frequency", "combined"):
        ours, theirs = first.compute_neuron_coverage(metric), second.compute_neuron_coverage(metric)
        for layer in ("conv1", "depthwise", "conv2"):
            torch.testing.assert_close(ours[layer], theirs[layer], rtol=1e-5, atol=1e-9)
    ours, theirs = (each.compute_neuron_coverage("mean_absolute")["conv2"] for each in (first, second))
    torch.testing.assert_close(ours * 7, theirs)


def test_a_model_that_cannot_be_traced_is_judged_by_what_its_layers_write() -> None:
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Any:
            return torch.from_numpy(F.relu(self.fc(x)).detach().numpy())

    torch.manual_seed(0)
    net, x = Untraceable(), torch.randn(5, 3)
    found = analyze(net, [x]).compute_neuron_coverage("mean_absolute")["fc"]
    torch.testing.assert_close(found, net.fc(x).detach().abs().double().mean(0))


def test_norms_are_listed_where_asked_for() -> None:
    net, x = make_net(), images()
    found = analyze(net, [x], norms=True).compute_neuron_coverage("frequency")
    expected = (net.norm(net.conv1(x)) > 0).double().mean((0, 2, 3))
    torch.testing.assert_close(found["norm"], expected)


# ------------------------------------------------------------------------------------------------ dead and saturated


def test_dead_and_saturated_neurons_are_found() -> None:
    net = make_net()
    with torch.no_grad():
        net.norm.weight[2], net.norm.bias[2] = 0.0, -3.0  # relu(-3)
        net.norm.weight[4], net.norm.bias[4] = 0.0, 2.0  # always 2
        net.depthwise.weight[1], net.depthwise.bias[1] = 0.0, 0.0
        net.fc1.weight[3], net.fc1.bias[3] = 1e-5, 12.0  # sigmoid ~ 1
    analyzer = analyze(net, [images()])
    dead, saturated = analyzer.find_dead(), analyzer.find_saturated()
    assert {layer: found.tolist() for layer, found in dead.items()}["conv1"] == [2]
    assert 1 in dead["depthwise"].tolist()
    assert saturated["conv1"].tolist() == [4] and 3 in saturated["fc1"].tolist()
    assert "fc1" not in dead
    for metric in METRICS:
        coverage = analyzer.compute_neuron_coverage(metric)
        assert coverage["conv1"][2] == 0 and sorted(coverage["conv1"].tolist())[1] > 0
    assert analyzer.compute_neuron_coverage("frequency")["conv1"][4] == 1


def test_tolerances_widen_what_is_dead_or_saturated() -> None:
    net: Any = nn.Sequential(nn.Linear(1, 3), nn.ReLU6(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.01], [1.0], [1.0]]))
        net[0].bias.copy_(torch.tensor([0.0, 0.0, 20.0]))
    analyzer = analyze(net, [torch.linspace(-1, 1, 50)[:, None]])
    assert analyzer.find_dead() == {}
    assert analyzer.find_dead(0.02)["0"].tolist() == [0]
    assert analyzer.find_saturated()["0"].tolist() == [2]
    assert set(analyzer.find_saturated(10.0)["0"].tolist()) == {0, 1, 2}


# ------------------------------------------------------------------------------------------- passes, merges, memory


def assert_same_coverage(first: CoverageAnalyzer, second: CoverageAnalyzer) -> None:
    for metric in METRICS:
        ours, theirs = first.compute_neuron_coverage(metric), second.compute_neuron_coverage(metric)
        assert ours.keys() == theirs.keys()
        for layer in ours:
            torch.testing.assert_close(ours[layer], theirs[layer], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batches", [2, 7])
def test_one_two_or_seven_batches_agree(batches: int) -> None:
    net, x = make_net().double(), images().double()
    assert_same_coverage(analyze(net, x.chunk(batches)), analyze(net, [x]))


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 13), min_size=1, max_size=4, unique=True))
def test_shards_merge_to_the_whole(bounds: list[int]) -> None:
    net, x = make_net().double(), images().double()
    shards = [analyze(net, [part]) for part in x.tensor_split(sorted(bounds))]
    merged = shards[0]
    for shard in shards[1:]:
        merged = shard.merge(merged)
    assert_same_coverage(merged, analyze(net, [x]))
    assert merged.statistics is not None and merged.statistics.samples == 14


def test_a_second_pass_adds_to_the_first() -> None:
    net, x = make_net().double(), images().double()
    analyzer = CoverageAnalyzer(net)
    analyzer.collect([x[:5]], progress=False)
    analyzer.collect([x[5:]], progress=False)
    assert_same_coverage(analyzer, analyze(net, [x]))


@pytest.mark.parametrize(
    "loader",
    [
        lambda x: DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=5),
        lambda x: (part for part in x.split(5)),
        lambda x: [{"x": part, "labels": torch.zeros(len(part))} for part in x.split(5)],
        lambda x: x.split(5),
    ],
    ids=["DataLoader", "generator", "dicts", "tuple"],
)
def test_every_kind_of_loader_gives_the_same_coverage(loader: Any) -> None:
    net, x = make_net().double(), images().double()
    assert_same_coverage(analyze(net, loader(x)), analyze(net, [x]))


def test_at_most_max_batches_are_drawn() -> None:
    drawn = []

    def endless() -> Iterator[Tensor]:
        while True:
            drawn.append(1)
            yield images(2)

    analyzer = CoverageAnalyzer(make_net())
    assert analyzer.collect(endless(), max_batches=3, progress=False).batches == 3
    assert len(drawn) <= 4


def test_memory_does_not_grow_and_hooks_are_gone() -> None:
    net = make_net()
    seen: list[weakref.ref[Tensor]] = []
    handle = net.conv1.register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    analyzer = analyze(net, [images(4) for _ in range(6)])
    gc.collect()
    assert len(seen) >= 6 and all(reference() is None for reference in seen)
    handle.remove()
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
    assert analyzer.statistics is not None
    sums = list(analyzer.statistics.sides.values())
    assert max(part.total.numel() for part in sums) == 16


@pytest.mark.parametrize("what", ["loader", "data", "model"])
def test_the_model_is_as_before_also_when_a_batch_raises(what: str) -> None:
    net = make_net().train()
    net.conv1.eval()
    net.conv2.weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    random = torch.get_rng_state()

    def loader() -> Iterator[Tensor]:
        yield images(2)
        if what == "loader":
            raise OSError("the disk is gone")
        yield images(2) * float("nan") if what == "data" else torch.zeros(2, 5, 8, 8)

    with pytest.raises(OSError if what == "loader" else InputError):
        analyze(net, loader())
    analyze(net, DataLoader(TensorDataset(images()), batch_size=4, shuffle=True))
    assert [module.training for module in net.modules()] == modes
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not net.conv2.weight.requires_grad and net.conv1.weight.requires_grad and net.conv1.weight.grad is None


def test_another_device_is_worked_on_with_a_copy() -> None:
    net = make_net()
    analyzer = analyze(net, [images()], device="cpu")
    assert_same_coverage(analyzer, analyze(net, [images()]))
    assert CoverageAnalyzer(net, "cpu")._model_on_device() is net
    assert CoverageAnalyzer(net.to("meta"), torch.device("meta"))._model_on_device() is net


# ----------------------------------------------------------------------------------------------------------- errors


def test_what_cannot_be_answered_is_refused() -> None:
    net = make_net()
    analyzer = CoverageAnalyzer(net)
    for ask in (analyzer.compute_neuron_coverage, analyzer.find_dead, analyzer.find_saturated):
        with pytest.raises(InputError, match=r"nothing has been collected yet: call collect\(loader\) first"):
            ask()
    with pytest.raises(InputError, match="nothing to merge yet"):
        analyzer.merge(analyzer)
    with pytest.raises(InputError, match="the loader is empty"):
        analyzer.collect([], progress=False)
    with pytest.raises(InputError, match="the loader is empty"):
        analyzer.collect(iter([]), progress=False)
    analyzer.collect([images()], progress=False)
    wrong: Any = "mean"
    with pytest.raises(InputError, match="metric is 'mean'; use 'normalized_mean'"):
        analyzer.compute_neuron_coverage(wrong)
    with pytest.raises(InputError, match=r"without counting values above 0.5.*thresholds=\(0.5,\)"):
        analyzer.compute_neuron_coverage("frequency", 0.5)
    with pytest.raises(InputError, match="models with different layers"):
        analyzer.merge(analyze(nn.Linear(3, 2), [torch.ones(1, 3)]))
    with pytest.raises(InputError, match="thresholds is empty"):
        CoverageAnalyzer(net, thresholds=())
    with pytest.raises(InputError, match="model is a int"):
        CoverageAnalyzer(3)  # ty: ignore[invalid-argument-type]


def test_several_thresholds_are_answered_from_one_pass() -> None:
    analyzer = analyze(make_net(), [images()], thresholds=(0.5, 0.0))
    usual, other = (analyzer.compute_neuron_coverage("frequency", threshold) for threshold in (None, 0.0))
    rows = read_values(make_net(), images())["conv1"]
    torch.testing.assert_close(usual["conv1"], (rows > 0.5).double().mean(1))
    torch.testing.assert_close(other["conv1"], (rows > 0).double().mean(1))


def test_it_says_what_it_saw() -> None:
    analyzer = CoverageAnalyzer(make_net())
    assert repr(analyzer) == "CoverageAnalyzer(Net, nothing collected yet)"
    analyzer.collect([images()], progress=False)
    assert repr(analyzer) == "CoverageAnalyzer(Net, ActivationStatistics(5 layers, 1 batches, 14 samples))"


# ------------------------------------------------------------------------------------------------------- the pruner


@pytest.mark.parametrize("metric", METRICS)
def test_the_coverage_pruner_collects_by_itself(metric: Any) -> None:
    net, x = make_net(), images()
    ours = CoveragePruner(net, x[:2], [x], 0.5, metric=metric, threshold=0.25, progress=False)
    theirs = StructuredPruner(net, x[:2], NeuronCoverageImportance(metric, 0.25), 0.5)
    theirs.collect_activations([x], progress=False)
    pruned = ours.prune()
    assert ours.verification is not None and ours.verification.passed
    for name, tensor in theirs.prune().state_dict().items():
        assert torch.equal(pruned.state_dict()[name], tensor)
    first, second = ours.score_groups(), theirs.score_groups()
    assert all(torch.equal(first[name], second[name]) for name in first)  # ty: ignore[invalid-argument-type]


def test_the_coverage_pruner_keeps_what_is_active() -> None:
    net, x = make_net(), images()
    pruner = CoveragePruner(net, x[:2], [x], 0.5, max_batches=1, progress=False, ignored_layers=["fc1"])
    scores = pruner.score_groups()["conv1"]
    plan = pruner.make_plan()
    assert scores is not None
    assert set(plan.groups[0].dropped) == set(scores.argsort()[:3].tolist())


def test_the_adaptive_coverage_pruner_collects_afresh() -> None:
    net, x = make_net(), images()
    passes = []

    class Loader(list[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            passes.append(1)
            return super().__iter__()

    pruner = CoveragePruner(net, x[:2], Loader([x]), 0.5, adaptive=True, iterative_steps=3, progress=False)
    pruner.prune()
    assert pruner.verification is not None and pruner.verification.passed
    assert sum(passes) >= 3
