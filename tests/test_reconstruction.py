"""The reconstruction score: what brute force gives on a tiny net, and what must hold on every kind of net."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nets import CASES
from torch import Tensor, nn

from cleanai import InputError, StructuredPruner
from cleanai.importance import MixedImportance, find_importance
from cleanai.importance.reconstruction import ReconstructionImportance
from cleanai.matrices import LayerMatrix
from cleanai.models import cifar_resnet

RIDGE = 1e-9


def score_all(net: nn.Module, batches: list[Any], importance: Any = None, **options: Any) -> dict[str, Tensor | None]:
    pruner = StructuredPruner(net, batches[0][:2], importance or ReconstructionImportance(RIDGE), **options)
    pruner.collect_activations(batches, progress=False)
    return pruner.score_groups()


def make_mlp(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()


DATA = torch.randn(400, 4, generator=torch.Generator().manual_seed(7)).double()


def brute_force(rows: Tensor, weight: Tensor, gain: Tensor, units: list[list[int]], gone: set[int]) -> float:
    """The error of the best linear map (with a bias) from what is left of the rows, weighted by the outputs' gain."""
    columns = [column for unit, own in enumerate(units) if unit not in gone for column in own]
    target = rows @ weight.T
    joined = torch.cat([rows[:, columns], torch.ones(len(rows), 1)], 1)
    error = joined @ torch.linalg.lstsq(joined, target).solution - target
    return float((error.square().mean(0) * gain).sum())


def greedy(rows: Tensor, weight: Tensor, gain: Tensor, units: list[list[int]]) -> Tensor:
    """Unit after unit, each time the one without which the error is smallest: by how much that made it grow."""
    scores, gone, before = torch.zeros(len(units)).double(), set(), 0.0
    while len(gone) < len(units):
        errors = {
            unit: brute_force(rows, weight, gain, units, gone | {unit})
            for unit in range(len(units))
            if unit not in gone
        }
        best = min(errors, key=lambda unit: errors[unit])
        scores[best] = max(errors[best] - before, float(scores.max()) * (1 + 1e-9))
        gone.add(best)
        before = errors[best]
    return scores


def gain_of_last(output: Tensor) -> Tensor:
    """A last layer's outputs are all that counts: an error of 1 in one of them, in shares of all their variance."""
    return torch.ones(output.shape[1]).double() / output.var(0, correction=0).sum()


@pytest.mark.parametrize("seed", range(3))
def test_the_scores_of_a_linear_reader_are_those_of_brute_force(seed: int) -> None:
    net = make_mlp(seed)
    hidden = net[:2](DATA).detach()
    seen = StructuredPruner(net, DATA[:2], ReconstructionImportance(RIDGE))
    gain = seen.collect_activations([DATA], progress=False).moments["2"].gain[0]
    expected = gain_of_last(net(DATA).detach())
    assert torch.allclose(gain, expected, rtol=0.15)  # by random combinations of the outputs
    found = score_all(net, [DATA])["0"]
    assert found is not None
    brute = greedy(hidden, net[2].weight.detach(), gain, [[unit] for unit in range(6)])
    assert found.argsort().tolist() == brute.argsort().tolist()
    assert found.tolist() == pytest.approx(brute.tolist(), rel=1e-4)


def test_the_first_to_go_is_the_one_whose_repair_costs_least() -> None:
    net = make_mlp(4)
    hidden, weight = net[:2](DATA).detach(), net[2].weight.detach()
    found = score_all(net, [DATA])["0"]
    alone = [brute_force(hidden, weight, torch.ones(3).double(), [[u] for u in range(6)], {u}) for u in range(6)]
    assert found is not None and int(found.argmin()) == min(range(6), key=alone.__getitem__)


def test_convolutions_remove_all_columns_of_a_channel() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 2)).double().eval()
    x = torch.randn(20, 2, 6, 6).double()
    hidden, matrix = net[:2](x).detach(), LayerMatrix(net[2])
    made = net[2](hidden).detach()
    rows = matrix.read(hidden, matrix.sample(made, made.numel(), ""))[0]
    pruner = StructuredPruner(net, x[:2], ReconstructionImportance(RIDGE))
    gain = pruner.collect_activations([x], progress=False).moments["2"].gain[0]
    found = pruner.score_groups()["0"]
    brute = greedy(rows, matrix.weight[0], gain, [list(range(4 * u, 4 * u + 4)) for u in range(5)])
    assert found is not None and found.tolist() == pytest.approx(brute.tolist(), rel=1e-4)


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.make, self.left, self.right = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.make(x).relu()
        return torch.cat([self.left(hidden), self.right(hidden)], 1)


def test_the_losses_of_several_readers_add_up() -> None:
    torch.manual_seed(1)
    net = TwoReaders().double().eval()
    pruner = StructuredPruner(net, DATA[:2], ReconstructionImportance(RIDGE))
    moments = pruner.collect_activations([DATA], progress=False).moments
    found = pruner.score_groups()["make"]
    weight = torch.cat([net.left.weight, net.right.weight]).detach()
    gain = torch.cat([moments[name].gain[0] for name in ("left", "right")])
    brute = greedy(net.make(DATA).relu().detach(), weight, gain, [[unit] for unit in range(6)])
    assert found is not None and found.tolist() == pytest.approx(brute.tolist(), rel=1e-4)


def test_a_dead_unit_and_one_of_two_equal_ones_go_first() -> None:
    net = make_mlp(2)
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = 0.0, -1.0  # never active, but read with large weights
        net[2].weight[:, 1] = 1e6
        net[0].weight[4], net[0].bias[4] = 3 * net[0].weight[0], 3 * net[0].bias[0]
    found = score_all(net, [DATA], ReconstructionImportance(1e-7))["0"]
    assert found is not None
    order = found.argsort().tolist()
    assert order[0] == 1 and order[1] in (0, 4) and found[1] == 0.0
    assert found[order[1]] < 1e-4 * found[order[2]] and found[order[1]] != max(found[0], found[4])


def test_the_scale_of_a_channel_does_not_matter() -> None:
    net = make_mlp(3)
    scaled = copy.deepcopy(net)
    with torch.no_grad():
        for unit, factor in ((0, 0.1), (3, 20.0)):
            scaled[0].weight[unit] *= factor
            scaled[0].bias[unit] *= factor
            scaled[2].weight[:, unit] /= factor
    first, second = score_all(net, [DATA])["0"], score_all(scaled, [DATA])["0"]
    assert first is not None and second is not None
    assert second.tolist() == pytest.approx(first.tolist(), rel=1e-3)


def test_the_scale_of_the_data_and_the_number_of_batches_do_not_matter() -> None:
    net = make_mlp(5)
    net[0].bias.data.zero_()
    net[2].bias.data.zero_()
    first, second = score_all(net, [DATA])["0"], score_all(net, [DATA * 3])["0"]
    assert first is not None and second is not None
    assert second.tolist() == pytest.approx(first.tolist(), rel=1e-6)
    sums = [
        StructuredPruner(net, DATA[:2], "reconstruction").collect_activations(list(DATA.split(size)), progress=False)
        for size in (400, 200, 57)
    ]
    for seen in sums[1:]:
        for layer, moments in seen.moments.items():
            assert torch.allclose(moments.moments.square, sums[0].moments[layer].moments.square, rtol=1e-10)


def test_an_in_place_function_does_not_hide_how_much_an_output_matters() -> None:
    gains = []
    for inplace in (False, True):
        torch.manual_seed(0)
        block = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace), nn.Linear(5, 3), nn.ReLU(inplace))
        net = Wrapped(block).double().eval()
        pruner = StructuredPruner(net, DATA[:2], "reconstruction")
        gains.append(pruner.collect_activations([DATA], progress=False).moments)
    assert gains[0].keys() == gains[1].keys() and "body.block.2" in gains[0]
    for layer, seen in gains[0].items():
        assert torch.allclose(seen.gain, gains[1][layer].gain), layer


class Body(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] + self.block(x)


class Wrapped(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.body = Body(block)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * 2


def test_frozen_weights_behind_word_numbers_are_seen_too() -> None:
    case = CASES["embedding"]
    net = case.make()
    batches = [case.inputs(16)] * 2
    free = score_all(net, batches)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    frozen = score_all(net, batches)
    assert any(values is not None for values in free.values())
    for name, values in free.items():
        other = frozen[name]
        assert (values is None) == (other is None)
        assert values is None or other is None or other.tolist() == pytest.approx(values.tolist(), rel=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        *("residual", "option_a", "dense", "grouped", "depthwise", "grouped_transposed", "unet", "attention_separate"),
        *("multihead_attention", "encoder_layer", "gqa_flag", "lstm", "tied_embedding", "flatten_nchw", "in_place"),
    ],
)
def test_every_kind_of_group_is_scored_and_pruned(name: str) -> None:
    case = CASES[name]
    net = case.make()
    torch.manual_seed(0)
    batches = [case.inputs(16) for _ in range(2)]
    pruner = StructuredPruner(net, batches[0], "reconstruction", 0.3, global_pruning=True)
    pruner.collect_activations(batches, progress=False)
    scores = {key: values for key, values in pruner.score_groups().items() if values is not None}
    assert scores and all(bool(values.isfinite().all()) and bool((values >= 0).all()) for values in scores.values())
    assert all(len(set(values.tolist())) == len(values) for values in scores.values() if values.sum() > 0)
    pruner.prune()
    assert pruner.verification is not None and pruner.verification.passed
    assert pruner.plan is not None and not pruner.plan.is_empty


def test_stream_channels_count_what_the_blocks_return() -> None:
    torch.manual_seed(0)
    net = cifar_resnet(8).eval()
    batches = [torch.randn(16, 3, 8, 8) for _ in range(2)]
    pruner = StructuredPruner(net, batches[0], "reconstruction")
    moments = pruner.collect_activations(batches, progress=False).moments
    blocks = [path for path in moments if not LayerMatrix.fits(net.get_submodule(path))]
    assert len(blocks) == 3
    last = max(blocks)
    spread = moments[last].moments.covariance[0].diagonal()
    assert torch.allclose(moments[last].gain, 1 / spread.sum().expand(1, 64))
    # Read by the identity and by nothing else: the losses of the last stage's channels begin with what they spread.
    stream = next(group for group in pruner.groups if any(c.module == last for c in group.channels))
    assert any(c.side == "result" for c in stream.channels)
    values = pruner.score_groups()[stream.name]
    assert values is not None and bool((values > 0).all())
    with_blocks = float(values.sum())
    for path in blocks:
        del moments[path]
    alone = pruner.score_groups()[stream.name]
    assert alone is None or float(alone.sum()) < with_blocks


def test_moments_are_asked_for_by_name() -> None:
    net = make_mlp()
    pruner = StructuredPruner(net, DATA[:2], "reconstruction")
    with pytest.raises(InputError, match="needs activations"):
        pruner.prune()
    plain = StructuredPruner(net, DATA[:2], "wanda")
    pruner.statistics = plain.collect_activations([DATA], progress=False)
    with pytest.raises(InputError, match="needs second moments: call collect_activations"):
        pruner.prune()
    other = StructuredPruner(
        nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), DATA[:2].float(), "reconstruction"
    )
    pruner.statistics = other.collect_activations([DATA.float()], progress=False)
    with pytest.raises(InputError, match=r"other sizes|collect_activations again"):
        pruner.prune()


@pytest.mark.parametrize("ridge", [0, -1.0, True, "much"])
def test_the_ridge_is_checked(ridge: Any) -> None:
    with pytest.raises(InputError, match=r"ridge is .*; it must be positive"):
        ReconstructionImportance(ridge)


def test_by_name_and_in_a_mixture() -> None:
    found = find_importance("reconstruction")
    assert isinstance(found, ReconstructionImportance) and found.normalizer == "none"
    net = make_mlp()
    mixed: Any = MixedImportance({"reconstruction": 1.0, "l2": 1.0})
    scores = score_all(net, [DATA], mixed)["0"]
    parts = [score_all(net, [DATA], name)["0"] for name in ("reconstruction", "l2")]
    assert scores is not None and all(part is not None for part in parts)
    pairs: Any = parts
    expected = sum(part / part.mean() for part in pairs)
    assert (scores / scores.mean()).tolist() == pytest.approx((expected / expected.mean()).tolist())


@pytest.mark.parametrize("name", ["residual", "grouped", "depthwise", "attention_separate"])
def test_in_steps_the_moments_follow_the_cuts(name: str) -> None:
    case = CASES[name]
    net = case.make()
    torch.manual_seed(0)
    batches = [case.inputs(16) for _ in range(2)]
    pruner = StructuredPruner(net, batches[0], "reconstruction", 0.5, iterative_steps=2, inplace=True)
    pruner.collect_activations(batches, progress=False)
    pruner.prune()
    statistics: Any = pruner.statistics
    fresh: Any = StructuredPruner(net, batches[0], "reconstruction").collect_activations(batches, progress=False)
    assert statistics.moments
    for layer, seen in statistics.moments.items():
        assert seen.moments.square.shape == fresh.moments[layer].moments.square.shape, layer
        assert seen.gain.shape == fresh.moments[layer].gain.shape, layer


def test_more_goes_where_less_is_lost() -> None:
    """Ranked together, the layer that others can make up for gives more."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    with torch.no_grad():
        for unit in range(6, 12):
            net[0].weight[unit], net[0].bias[unit] = 2 * net[0].weight[unit - 6], 2 * net[0].bias[unit - 6]
        net[2].bias += 1.0  # all of them active
    pruner = StructuredPruner(net, DATA[:2], ReconstructionImportance(RIDGE), 0.3, global_pruning=True)
    pruner.collect_activations([DATA], progress=False)
    plan = pruner.make_plan()
    dropped = {cut.name: set(cut.dropped) for cut in plan.groups}
    assert len(dropped["0"]) == 6 and not dropped["2"]
    assert not any({unit, unit + 6} <= dropped["0"] for unit in range(6))
