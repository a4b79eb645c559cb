"""Budgets: what is asked is what goes, never more than the limits allow, ties by position, larger asks for more."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18

from cleanai import InputError, Plan, RandomImportance, StructuredPruner, slice_model
from cleanai.cost import CostModel
from cleanai.coupling import Group
from cleanai.evaluate import count_macs, count_parameters
from cleanai.isolation import list_state
from cleanai.models import digits_resnet
from cleanai.prediction import alive_classes
from cleanai.select import Budget, Ladder, Limits, build_ladder, choose_units, find_layers


def make_group(
    index: int = 0, blocks: Sequence[Sequence[int]] = ((0, 1, 2, 3),), width: int = 1, sources: Sequence[int] = ()
) -> Group:
    size = sum(len(block) for block in blocks)
    return Group(
        index=index,
        name=f"layer{index}",
        kind="channels",
        size=size,
        width=width,
        members=(),
        blocks=tuple(np.array(block) for block in blocks),
        channels=(),
        sources=np.array(sources or [0] * size),
        classes=np.arange(size),
    )


def ladder(scores: Sequence[float], index: int = 0, width: int = 1, **limits: Any) -> Ladder:
    group = make_group(index, [range(len(scores))], width)
    return build_ladder(group, torch.tensor(scores, dtype=torch.float64), Limits(**limits))


def choose(ladders: Sequence[Ladder], ratio: float, over_all: bool = False, **fields: Any) -> dict[int, list[int]]:
    budget = Budget(ratio, fields.pop("target", "channels"), over_all, fields.pop("ratios", {}), **fields)
    return {index: units.tolist() for index, units in choose_units(ladders, budget).items()}


# ---------------------------------------------------------------------------------------------------------- ladders


def test_the_lowest_scores_go_first_and_ties_by_position() -> None:
    steps = ladder([3.0, 1.0, 2.0, 1.0]).steps
    assert [step.tolist() for step in steps] == [[1], [3], [2], [0]]


def test_every_block_gives_the_same_share_at_each_step() -> None:
    scores = torch.tensor([6.0, 1.0, 5.0, 2.0, 4.0, 0.0], dtype=torch.float64)
    group = make_group(blocks=[[0, 1, 2, 3], [4, 5]])
    made = build_ladder(group, scores, Limits())
    assert len(made.steps) == 2 and made.units_per_step == 3
    assert sorted(made.steps[0].tolist()) == [1, 3, 5]  # the two lowest of the first block, the lowest of the second
    assert made.scores[0] == pytest.approx((1.0 + 2.0 + 0.0) / 3)
    assert sorted(made.first(1).tolist()) == [1, 3, 5]
    assert sorted(np.concatenate(made.steps).tolist()) == list(range(6))


def test_the_limits_count_channels_shares_and_multiples() -> None:
    assert ladder([0.0] * 8, min_channels=3).allowed.tolist() == [0, 1, 2, 3, 4, 5]
    assert ladder([0.0] * 8, max_pruning_ratio=0.5).allowed.tolist() == [0, 1, 2, 3, 4]
    assert ladder([0.0] * 8, round_to=4).allowed.tolist() == [0, 4]
    assert ladder([0.0] * 9, round_to=4).allowed.tolist() == [0, 1, 5]
    assert ladder([0.0] * 4, width=16, min_channels=17).allowed.tolist() == [0, 1, 2]
    assert ladder([0.0] * 4, round_to=64).allowed.tolist() == [0]  # nothing fits: nothing goes
    assert ladder([0.0] * 4).allowed.tolist() == [0, 1, 2, 3]  # one always stays


def test_the_limits_count_from_before_earlier_rounds() -> None:
    group = make_group(blocks=[range(6)])  # 6 of 10 are left
    made = build_ladder(group, torch.zeros(6, dtype=torch.float64), Limits(max_pruning_ratio=0.5), original=10)
    assert made.earlier == 4
    assert made.allowed.tolist() == [0, 1]


def test_no_layer_of_a_joined_group_is_emptied() -> None:
    """Units 0 to 3 are one layer's channels, 4 and 5 another's with much lower scores: its best one stays."""
    group = make_group(blocks=[range(6)], sources=[0, 0, 0, 0, 1, 1])
    scores = torch.tensor([9.0, 8.0, 7.0, 6.0, 1.0, 2.0], dtype=torch.float64)
    made = build_ladder(group, scores, Limits())
    assert [step.tolist() for step in made.steps[:4]] == [[4], [3], [2], [1]]
    assert made.allowed.tolist() == [0, 1, 2, 3, 4]
    assert build_ladder(group, scores, Limits(min_channels=2)).allowed.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"min_channels": 0}, "min_channels is 0"),
        ({"round_to": 0}, "round_to is 0"),
        ({"max_pruning_ratio": 0.0}, "max_pruning_ratio is 0"),
        ({"max_pruning_ratio": 1.5}, "max_pruning_ratio is 1.5"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Limits(**limits)


# --------------------------------------------------------------------------------------------------------- choosing


def test_local_takes_the_share_of_every_group() -> None:
    ladders = [ladder([4.0, 3.0, 2.0, 1.0]), ladder([1.0] * 10, index=1)]
    assert choose(ladders, 0.5) == {0: [2, 3], 1: [0, 1, 2, 3, 4]}
    assert choose(ladders, 0.0) == {}


def test_global_ranks_shares_of_the_groups_mean() -> None:
    # The second group's scores are a hundred times larger; in shares of the mean its two lowest are the lowest of all.
    ladders = [ladder([1.0, 1.1, 0.9, 1.0]), ladder([1.0, 199.0, 2.0, 198.0], index=1)]
    assert choose(ladders, 0.25, over_all=True) == {1: [0, 2]}


def test_a_low_score_that_must_stay_does_not_send_a_high_one_in_its_place() -> None:
    """Unit 2 is the only channel of its layer: it stays, and that must not cost unit 0 its place."""
    group = make_group(blocks=[range(3)], sources=[0, 0, 1])
    joined = build_ladder(group, torch.tensor([10.0, 11.0, 1.0], dtype=torch.float64), Limits())
    assert choose([joined, ladder([5.0, 5.0, 5.0, 6.0], index=1)], 1 / 7, over_all=True) == {1: [0]}


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_equal_scores_lose_what_was_asked_and_no_more(ratio: float) -> None:
    ladders = [ladder([1.0] * 20, index=index) for index in range(5)]
    chosen = choose(ladders, ratio, over_all=True)
    assert sum(map(len, chosen.values())) == round(100 * ratio)
    assert choose(ladders, ratio, over_all=True) == chosen


def test_scores_of_zero_everywhere_are_ties_too() -> None:
    ladders = [ladder([0.0] * 10), ladder([0.0] * 10, index=1)]
    assert sum(map(len, choose(ladders, 0.2, over_all=True).values())) == 4


def test_a_ratio_of_its_own_comes_before_the_general_one() -> None:
    ladders = [ladder([1.0] * 10), ladder([1.0] * 10, index=1), ladder([1.0] * 10, index=2)]
    chosen = choose(ladders, 0.5, ratios={0: 0.2, 1: 0.0})
    assert {index: len(units) for index, units in chosen.items()} == {0: 2, 2: 5}
    chosen = choose(ladders, 0.5, over_all=True, ratios={0: 0.2})
    assert len(chosen[0]) == 2 and len(chosen[1]) + len(chosen[2]) == 10


@st.composite
def ladders_of_any_kind(draw: st.DrawFn) -> list[Ladder]:
    limits = Limits(
        min_channels=draw(st.integers(1, 3)),
        round_to=draw(st.sampled_from([1, 1, 2, 4])),
        max_pruning_ratio=draw(st.sampled_from([1.0, 1.0, 0.6])),
    )
    found = []
    for index in range(draw(st.integers(1, 4))):
        bundles = draw(st.integers(1, 8))
        lengths = [bundles * draw(st.integers(1, 2)) for _ in range(draw(st.integers(1, 2)))]
        bounds = np.cumsum([0, *lengths])
        blocks, width, sources = (
            [range(a, b) for a, b in pairwise(bounds)],
            draw(st.integers(1, 3)),
            draw(st.integers(1, 2)),
        )
        group = make_group(index, blocks, width, [unit % sources for unit in range(bounds[-1])])
        # Few different values, so that ties are common.
        scores = draw(st.lists(st.integers(0, 4), min_size=group.size, max_size=group.size))
        found.append(build_ladder(group, torch.tensor(scores, dtype=torch.float64), limits))
    return found


def sum_of_squares(ladders: Sequence[Ladder]) -> Any:
    """A cost that falls with every unit, at another rate in each group."""

    def cost(choice: Mapping[int, Any]) -> float:
        return float(sum((la.group.size - len(choice.get(la.group.index, ()))) ** 2 * la.group.width for la in ladders))

    return cost


RATIOS = st.floats(0, 0.99, allow_nan=False)


@settings(max_examples=150, deadline=None)
@given(ladders_of_any_kind(), RATIOS, RATIOS, st.booleans(), st.sampled_from(["channels", "params", "macs"]))
def test_a_larger_ratio_never_removes_less(
    ladders: list[Ladder], first: float, second: float, over_all: bool, target: str
) -> None:
    cost = sum_of_squares(ladders)
    fields = {} if target == "channels" else {"cost": cost, "full_cost": cost({})}
    low, high = sorted((first, second))
    smaller, larger = (choose(ladders, ratio, over_all, target=target, **fields) for ratio in (low, high))
    if target == "channels":
        for index, units in smaller.items():
            assert set(units) <= set(larger.get(index, ()))
    else:  # to meet the line, finer steps of other ladders may stand in for a coarse one: what counts is the cost
        assert cost(larger) <= cost(smaller)


@settings(max_examples=150, deadline=None)
@given(ladders_of_any_kind(), RATIOS, st.booleans())
def test_no_choice_breaks_a_limit_or_a_block(ladders: list[Ladder], ratio: float, over_all: bool) -> None:
    chosen = choose(ladders, ratio, over_all)
    for made in ladders:
        units = chosen.get(made.group.index, [])
        assert len(units) // made.units_per_step in made.allowed
        assert set(made.group.sources.tolist()) == set(np.delete(made.group.sources, units).tolist())
        shares = {np.isin(block, units).mean() for block in made.group.blocks}
        assert max(shares) - min(shares) < 1e-9


@settings(max_examples=100, deadline=None)
@given(ladders_of_any_kind(), RATIOS)
def test_the_common_search_comes_as_near_as_a_step_allows(ladders: list[Ladder], ratio: float) -> None:
    chosen = choose(ladders, ratio, over_all=True)
    total = sum(la.group.size * la.group.width for la in ladders)
    removed = sum(len(chosen.get(la.group.index, ())) * la.group.width for la in ladders)
    most = sum(int(la.allowed[-1]) * la.units_per_step * la.group.width for la in ladders)
    largest_step = max(
        int(np.diff(la.allowed, append=la.allowed[-1]).max()) * la.units_per_step * la.group.width for la in ladders
    )
    wanted = min(ratio * total, most)
    assert abs(removed - wanted) <= largest_step / 2 + 1e-6


# --------------------------------------------------------------------------------------------- networks to prune


class Attention(nn.Module):
    """Two layers of four heads on a stream of 32 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 32)
        self.attend = nn.MultiheadAttention(32, 4, batch_first=True)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attend(x, x, x)[0]
        return self.head(x + self.down(F.gelu(self.up(x))))


class Transposed(nn.Module):
    """Down and up again, with grouped and transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.mix = nn.Conv2d(32, 48, 1)
        self.up = nn.ConvTranspose2d(48, 24, 4, stride=2, padding=1)
        self.out = nn.Conv2d(24, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.mix(F.relu(self.down2(F.relu(self.down1(x))))))
        return self.out(F.relu(self.up(x)))


def make_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 100), nn.ReLU(), nn.Linear(100, 60), nn.ReLU(), nn.Linear(60, 10))


NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (make_mlp, (2, 20)),
    "digits_resnet": (digits_resnet, (2, 1, 8, 8)),
    "resnet18": (lambda: resnet18(num_classes=10), (1, 3, 64, 64)),
    "attention": (Attention, (2, 7, 12)),
    "transposed": (Transposed, (2, 3, 16, 16)),
}


@cache
def _net(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETS[name][0]().eval()


def net(name: str) -> Any:
    return copy.deepcopy(_net(name))


def example(name: str) -> Tensor:
    return torch.randn(NETS[name][1], generator=torch.Generator().manual_seed(1))


def make_pruner(name: str, ratio: float = 0.5, **options: Any) -> Any:
    return StructuredPruner(net(name), example(name), options.pop("importance", "l2"), ratio, **options)


def shares_removed(plan: Plan) -> dict[str, float]:
    return {group.name: len(group.dropped) / group.size for group in plan.groups}


def torch_macs(model: nn.Module, x: Tensor) -> int:
    """torch's own counter on the meta device, where it sees inside attention."""
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).to("meta")(x.to("meta"))
    return counter.get_total_flops() // 2


# ------------------------------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("over_all", [False, True], ids=["local", "global"])
def test_predicted_cost_is_the_cost_of_the_pruned_model(name: str, over_all: bool) -> None:
    pruner = make_pruner(name, 0.4, importance=RandomImportance(3), global_pruning=over_all)
    plan = pruner.make_plan()
    coupling = pruner.analysis.coupling
    costs = CostModel(coupling, [state for state in list_state(pruner.model) if isinstance(state.tensor, nn.Parameter)])
    whole = alive_classes(coupling, {})
    assert costs.count_parameters(whole) == sum(p.numel() for p in pruner.model.parameters())
    assert costs.count_macs(whole) == torch_macs(pruner.model, example(name)) == count_macs(pruner.model, example(name))
    chosen = {group.index: list(cut.dropped) for group, cut in zip(coupling.groups, plan.groups, strict=True)}
    left = alive_classes(coupling, chosen)
    pruned = slice_model(copy.deepcopy(pruner.model), plan)
    assert costs.count_parameters(left) == sum(p.numel() for p in pruned.parameters())
    assert costs.count_macs(left) == count_macs(pruned, example(name))


@pytest.mark.parametrize("target", ["params", "macs"])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("ratio", "over_all"), [(0.3, False), (0.5, True), (0.75, False)])
def test_the_target_is_met_within_a_point_or_a_step(name: str, target: str, ratio: float, over_all: bool) -> None:
    pruner = make_pruner(name, ratio, target=target, global_pruning=over_all, verify=False)
    count: Any = count_parameters if target == "params" else (lambda model: count_macs(model, example(name)))
    reached = 1 - count(pruner.prune()) / count(pruner.model)
    assert pruner.plan is not None
    # What the largest single step of this plan is worth.
    step = 0.0
    for group in pruner.groups:
        bundle = np.concatenate([block[: len(block) // group.bundles] for block in group.blocks])
        costs = CostModel(
            pruner.analysis.coupling, [s for s in list_state(pruner.model) if isinstance(s.tensor, nn.Parameter)]
        )
        measure = costs.count_parameters if target == "params" else costs.count_macs
        whole = measure(alive_classes(pruner.analysis.coupling, {}))
        if group.bundles > 1:
            step = max(step, 1 - measure(alive_classes(pruner.analysis.coupling, {group.index: bundle})) / whole)
    assert abs(reached - ratio) <= max(0.01, step / 2)


@pytest.mark.parametrize("target", ["channels", "params", "macs"])
@pytest.mark.parametrize("over_all", [False, True], ids=["local", "global"])
def test_a_larger_ratio_removes_a_superset_of_a_real_network(target: str, over_all: bool) -> None:
    plans = []
    for ratio in (0.1, 0.35, 0.6, 0.9, 0.95):
        pruner = make_pruner("digits_resnet", ratio, target=target, global_pruning=over_all, verify=False)
        plans.append({group.name: set(group.dropped) for group in pruner.make_plan().groups})
    for smaller, larger in pairwise(plans):
        assert all(smaller[name] <= larger[name] for name in smaller)
        assert sum(map(len, smaller.values())) < sum(map(len, larger.values()))


# ----------------------------------------------------------------------------------------------- limits in a network


def test_limits_hold_in_every_layer() -> None:
    for options in ({}, {"global_pruning": True}, {"target": "macs"}, {"target": "params", "global_pruning": True}):
        pruner = make_pruner(
            "digits_resnet", 0.9, max_pruning_ratio=0.6, min_channels=7, round_to=2, verify=False, **options
        )
        pruned = pruner.prune()
        for name, layer in pruner.model.named_modules():
            if isinstance(layer, nn.Conv2d):
                kept = pruned.get_submodule(name).out_channels
                assert kept >= 7 and kept % 2 == 0 and kept >= 0.4 * layer.out_channels


def test_limits_hold_over_several_rounds() -> None:
    pruner = make_pruner("mlp", 0.9, max_pruning_ratio=0.5, iterative_steps=3, verify=False)
    assert [layer.out_features for layer in pruner.prune() if isinstance(layer, nn.Linear)] == [50, 30, 10]


# --------------------------------------------------------------------------------------------------- ratios by layer


def test_ratios_by_name_module_and_type() -> None:
    model = net("mlp")
    specs: tuple[tuple[dict[Any, float], list[int]], ...] = (
        ({"0": 0.1}, [90, 30]),
        ({model[0]: 0.1}, [90, 30]),
        ({nn.Linear: 0.2}, [80, 48]),
        ({nn.Linear: 0.2, "2": 0.0}, [80, 60]),
        ({"0": 0.0, "2": 0.75}, [100, 15]),
    )
    for spec, expected in specs:
        pruner: Any = StructuredPruner(model, example("mlp"), "l2", 0.5, layer_pruning_ratios=spec, verify=False)
        widths = [layer.out_features for layer in pruner.prune() if isinstance(layer, nn.Linear)]
        assert widths == [*expected, 10], spec


def test_a_container_counts_for_what_is_made_inside_and_a_layer_inside_before_it() -> None:
    ratios = {"block2": 0.25, "block2.conv1": 0.75}
    pruner = make_pruner("digits_resnet", 0.0, layer_pruning_ratios=ratios)
    shares = shares_removed(pruner.make_plan())
    assert shares["block2.conv1"] == 0.75
    assert shares["block2.conv2"] == 0.25  # coupled with block3's output, which the general ratio would have kept
    assert shares["conv1"] == 0.0


def test_ratios_that_contradict_each_other_are_refused() -> None:
    ratios = {"block2.conv2": 0.25, "block3.conv2": 0.5}  # one residual stream
    with pytest.raises(InputError, match=r"pruned together.*0\.25 and 0\.5.*same one"):
        make_pruner("digits_resnet", 0.3, layer_pruning_ratios=ratios)
    make_pruner("digits_resnet", 0.3, layer_pruning_ratios={"block2.conv2": 0.5, "block3.conv2": 0.5})


def test_two_layers_are_equally_close_however_deep_they_lie() -> None:
    ratios: dict[Any, float] = {"conv1": 0.5, "block1.conv2": 0.25}  # one residual stream; neither is a container
    with pytest.raises(InputError, match=r"conv1 and block1\.conv2 are pruned together"):
        make_pruner("digits_resnet", 0.3, layer_pruning_ratios=ratios)
    pruner = make_pruner("digits_resnet", 0.0, layer_pruning_ratios={"conv1": 0.5, "block1": 0.25})
    shares = shares_removed(pruner.make_plan())
    assert (shares["conv1"], shares["block1.conv1"]) == (0.5, 0.25)
    model = net("digits_resnet")
    whole = StructuredPruner(model, example("digits_resnet"), layer_pruning_ratios={model: 0.25, "block3": 0.5})
    shares = shares_removed(whole.make_plan())
    assert (shares["conv1"], shares["block3.conv1"]) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ({"block9": 0.5}, r"no layer named 'block9'; did you mean .*'block3'"),
        ({nn.Conv3d: 0.5}, "no layer of the type Conv3d"),
        ({3: 0.5}, "3 is no module, name or module type"),
        ({"conv1": 1.0}, r"layer_pruning_ratios\['conv1'\] is 1.0; it must lie in \[0, 1\)"),
        ({"linear": 0.5}, "the layer 'linear' cannot be pruned: the output of the model"),
    ],
)
def test_ratios_for_what_is_not_there_are_refused(ratios: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_pruner("digits_resnet", 0.3, layer_pruning_ratios=ratios)


def test_a_module_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="the Linear given there is not part of the model"):
        make_pruner("mlp", 0.3, layer_pruning_ratios={nn.Linear(2, 2): 0.5})


def test_find_layers_lists_every_path_of_a_shared_module() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert find_layers(model, shared, "ignored_layers") == ["0", "2"]


# ------------------------------------------------------------------------------------------------------ ignored layers


@pytest.mark.parametrize("spec", ["name", "module", "bare"])
def test_an_ignored_layer_keeps_its_inputs_and_outputs(spec: str) -> None:
    model = net("mlp")
    ignored: Any = {"name": ["2"], "module": [model[2]], "bare": "2"}[spec]
    pruner: Any = StructuredPruner(model, example("mlp"), "l2", 0.5, ignored_layers=ignored, verify=False)
    pruned = pruner.prune()
    assert pruned[2].weight.shape == (60, 100)
    assert torch.equal(pruned[2].weight, model[2].weight)
    assert any("ignored layer 2" in frozen.reason for frozen in pruner.frozen)


def test_an_ignored_type_and_container_keep_everything_inside() -> None:
    pruner = make_pruner("attention", 0.5, ignored_layers=[nn.MultiheadAttention], verify=False)
    pruned = pruner.prune()
    assert pruned.attend.in_proj_weight.shape == (96, 32) and pruned.up.out_features == 32
    pruner = make_pruner("digits_resnet", 0.5, ignored_layers=["block2"], verify=False)
    pruned = pruner.prune()
    for name, tensor in pruner.model.block2.state_dict().items():
        assert torch.equal(pruned.block2.state_dict()[name], tensor), name
    assert pruned.block1.conv1.out_channels == 8


def test_a_layer_ignored_by_the_name_of_a_tied_weight_is_ignored() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(self.second(F.relu(self.first(x)))))

    for ignored in ("first", "second"):
        pruner: Any = StructuredPruner(Tied(), torch.randn(2, 8), "l2", 0.5, ignored_layers=[ignored])
        assert pruner.prune().second.weight.shape == (8, 8), ignored


def test_ignoring_a_layer_without_tensors_is_not_passed_over_in_silence() -> None:
    """Either what flows through it stays, or the caller is told that there is nothing to leave alone."""
    try:
        pruner = make_pruner("mlp", 0.5, ignored_layers=["1"], verify=False)
    except InputError:
        return
    assert pruner.prune()[0].out_features == 100


def test_an_unknown_ignored_layer_is_refused_with_a_suggestion() -> None:
    with pytest.raises(
        InputError, match=r"ignored_layers: .*no layer named 'block2\.conv3'; did you mean .*'block2\.conv"
    ):
        make_pruner("digits_resnet", 0.5, ignored_layers=["block2.conv3"])


# ------------------------------------------------------------------------------------------------------------- rounds


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("options", [{}, {"global_pruning": True}, {"target": "macs"}], ids=["local", "global", "macs"])
def test_several_rounds_reach_what_one_does_in_one_valid_plan(steps: int, options: dict[str, Any]) -> None:
    model, x = net("digits_resnet"), example("digits_resnet")
    once = StructuredPruner(model, x, "l2", 0.6, **options)
    often = StructuredPruner(model, x, "l2", 0.6, iterative_steps=steps, **options)
    first, second = once.prune(), often.prune()
    assert once.plan is not None and often.plan is not None and often.verification is not None
    assert often.verification.passed
    assert often.plan.units == once.plan.units
    if options.get("target") == "macs":
        assert count_macs(second, x) == pytest.approx(count_macs(first, x), rel=0.05)
    else:
        assert often.plan.dropped_units == pytest.approx(once.plan.dropped_units, abs=len(often.plan.groups))
    if not options:
        assert [len(group.dropped) for group in often.plan.groups] == [len(group.dropped) for group in once.plan.groups]
    again = slice_model(copy.deepcopy(model), Plan.from_json(often.plan.to_json()))
    for name, tensor in second.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_rounds_score_what_is_left_anew() -> None:
    """A criterion that asks for another unit each time it sees the group gets another one each time."""
    seen: list[int] = []

    def last_unit_first(group: Any) -> Tensor:
        seen.append(group.size)
        return -torch.arange(group.size, dtype=torch.float64)

    pruner = make_pruner("mlp", 0.5, importance=last_unit_first, iterative_steps=5)
    pruner.prune()
    assert pruner.plan is not None
    assert pruner.plan.groups[0].dropped == tuple(range(50, 100))
    assert {100, 90, 80, 70, 60} <= set(seen)
