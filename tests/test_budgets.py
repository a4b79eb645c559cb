"""Budgets met: coarse steps filled up, sets of isomorphic groups, ranks by cost, latency, and real networks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from test_select import Attention, make_group, make_mlp
from torch import Tensor, nn

import cleanai.pruner
from cleanai import InputError, MagnitudeImportance, StructuredPruner, analyze_model, slice_model
from cleanai.cost import CostModel
from cleanai.evaluate import count_macs, count_parameters
from cleanai.isolation import list_state
from cleanai.latency import LatencyRatio, compare_latency
from cleanai.models import digits_resnet
from cleanai.prediction import alive_classes
from cleanai.select import Budget, Ladder, Limits, build_ladder, choose_units, describe_structure, rank_steps
from cleanai.texts import terms

# --------------------------------------------------------------------------------------------------- costs of layers


def predicted_macs(model: nn.Module, inputs: Any, **options: Any) -> int:
    coupling = analyze_model(model, inputs, **options).coupling
    return CostModel(coupling, list_state(model)).count_macs(alive_classes(coupling, {}))


def test_an_lstm_multiplies_every_position_by_every_matrix() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(6, 8, num_layers=2, bidirectional=True), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0])

    x = torch.randn(5, 2, 6)
    per_position = 2 * (4 * 8 * 6 + 4 * 8 * 8) + 2 * (4 * 8 * 16 + 4 * 8 * 8)  # two directions, two layers
    assert predicted_macs(Net().eval(), x) == 5 * 2 * (per_position + 16 * 3)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2, "batch_first": True}])
def test_recurrent_layers_cost_what_torch_counts(kind: Any, options: dict[str, Any]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(6, 10)
            self.rnn = kind(10, 8, **options)
            self.head = nn.Linear(16 if "bidirectional" in options else 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(self.mix(x))[0])

    model, x = Net().eval(), torch.randn(4, 3, 6)
    assert predicted_macs(model, x) == count_macs(model, x)
    pruner = StructuredPruner(model, x, "l2", 0.5, target="macs")
    pruned = pruner.prune()
    assert 1 - count_macs(pruned, x) / count_macs(model, x) == pytest.approx(0.5, abs=0.06)


# -------------------------------------------------------------------------------------------------- ladders by hand


def ladder(
    scores: Sequence[float], index: int = 0, width: int = 1, bundles: int | None = None, **limits: Any
) -> Ladder:
    group = make_group(index, [range(len(scores))], width)
    made = build_ladder(group, torch.tensor(scores, dtype=torch.float64), Limits(**limits))
    if bundles is None:
        return made
    steps = tuple(np.concatenate(part) for part in np.array_split(np.array(made.steps), bundles))
    each = [float(np.mean([scores[unit] for unit in step])) for step in steps]
    return Ladder(group, steps, np.array(each), np.arange(bundles), len(scores), 0)


def spend(
    ladders: Sequence[Ladder], prices: Sequence[float], ratio: float, **fields: Any
) -> tuple[float, dict[int, int]]:
    """The share of the cost that goes, and how many units, where a unit of each ladder has a price."""

    def cost(choice: Mapping[int, Any]) -> float:
        return sum(
            p * (la.group.size - len(choice.get(la.group.index, ()))) for la, p in zip(ladders, prices, strict=True)
        )

    whole = cost({})
    budget = Budget(ratio, "params", fields.pop("over_all", False), fields.pop("ratios", {}), cost, whole, **fields)
    chosen = choose_units(ladders, budget)
    return 1 - cost(chosen) / whole, {index: len(units) for index, units in chosen.items()}


@pytest.mark.parametrize("over_all", [False, True], ids=["local", "global"])
@pytest.mark.parametrize("ratio", np.round(np.arange(0.02, 0.8, 0.03), 2))
def test_finer_steps_of_other_ladders_make_up_for_coarse_ones(ratio: float, over_all: bool) -> None:
    """Ladder 0 goes in steps of an eighth of the whole; ladder 1 in steps of a half percent."""
    coarse, fine = ladder([1.0] * 8, bundles=4), ladder([1.0] * 100, index=1)
    reached, units = spend([coarse, fine], [100 / 8, 1.0], ratio, over_all=over_all)
    assert abs(reached - ratio) <= 0.005 + 1e-9
    assert units.get(0, 0) % 2 == 0


def test_steps_are_taken_back_where_nothing_finer_is_left_ahead() -> None:
    """The fine ladder comes first and is empty when the coarse step crosses the line: some of it comes back."""
    coarse, fine = ladder([5.0] * 2 + [6.0] * 2, bundles=2), ladder([1.0] * 50, index=1)
    reached, units = spend([coarse, fine], [50 / 4, 1.0], 0.6, over_all=True, normalizer="none")
    assert units == {0: 2, 1: 35} and reached == pytest.approx(0.6)


def test_filling_respects_the_limits_of_every_ladder() -> None:
    coarse = ladder([1.0] * 8, bundles=2)
    capped = ladder([1.0] * 20, index=1, max_pruning_ratio=0.25)
    reached, units = spend([coarse, capped], [10.0, 4.0], 0.4)
    assert units.get(1, 0) <= 5
    assert reached == pytest.approx(max(0.375, 0.25 + 0.125), abs=0.13)


SMALL = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(SMALL, st.integers(1, 4), st.sampled_from([1.0, 3.0, 40.0])), min_size=1, max_size=4),
    st.lists(st.floats(0, 0.99), min_size=3, max_size=6),
    st.booleans(),
)
def test_a_larger_ratio_never_leaves_more(spec: list[Any], ratios: list[float], over_all: bool) -> None:
    ladders = []
    for index, (scores, coarse, _) in enumerate(spec):
        size = len(scores) * coarse
        ladders.append(ladder([float(s) for s in scores for _ in range(coarse)], index, bundles=max(1, size // coarse)))
    prices = [price for *_, price in spec]
    reached = [spend(ladders, prices, ratio, over_all=over_all)[0] for ratio in sorted(ratios)]
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(reached))
    assert spend(ladders, prices, ratios[0], over_all=over_all) == spend(ladders, prices, ratios[0], over_all=over_all)


# ------------------------------------------------------------------------------------------------------- isomorphic


def test_every_set_of_groups_gives_its_share_and_ranks_inside() -> None:
    # Groups 0 and 1 are alike, 2 is not: its scores are lower than all others and would go first.
    ladders = [ladder([1.0, 1.0, 3.0, 3.0]), ladder([1.0, 2.0, 2.0, 3.0], 1), ladder([0.1, 0.1, 0.1, 0.1], 2)]
    budget = Budget(0.5, "channels", True, {}, sets={0: "a", 1: "a", 2: "b"}, normalizer="none")
    chosen = {index: units.tolist() for index, units in choose_units(ladders, budget).items()}
    assert chosen == {0: [0, 1], 1: [0, 1], 2: [0, 1]}
    uneven = [ladder([1.0, 1.0, 1.0, 3.0]), ladder([2.0, 4.0, 4.0, 4.0], 1), ladder([0.1, 0.1, 0.1, 0.1], 2)]
    chosen = {index: units.tolist() for index, units in choose_units(uneven, budget).items()}
    assert chosen == {0: [0, 1, 2], 1: [0], 2: [0, 1]}


def test_sets_keep_level_on_the_way_to_a_cost() -> None:
    ladders = [ladder([1.0] * 10), ladder([9.0] * 20, 1), ladder([5.0] * 40, 2)]
    _, units = spend(ladders, [1.0, 1.0, 1.0], 0.5, over_all=True, normalizer="none", sets={0: "a", 1: "b", 2: "b"})
    assert units == {0: 5, 2: 30}  # half of each set; in b, the lower scores


def test_groups_of_one_structure_are_isomorphic_whatever_their_sizes() -> None:
    model = torchvision.models.resnet18(num_classes=10).eval()
    analysis = analyze_model(model, torch.randn(1, 3, 32, 32))
    kinds: dict[Any, list[str]] = {}
    for group in analysis.groups:
        kinds.setdefault(describe_structure(model, group), []).append(group.name)
    inside = [f"layer{stage}.{block}.conv1" for stage in range(1, 5) for block in range(2)]
    assert inside in kinds.values()
    streams = [names for names in kinds.values() if names != inside]
    assert ["layer2.0.conv2", "layer3.0.conv2"] in [sorted(names) for names in streams]  # same blocks and shortcuts
    assert all("conv1" not in names or names == ["conv1"] for names in streams)  # the first one also reads the image


def test_isomorphic_pruning_gives_every_kind_its_share_of_a_network() -> None:
    model = torchvision.models.resnet18(num_classes=10).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".conv1." in name:
                parameter *= 1e-3  # would all go first without being ranked among themselves
    pruner = StructuredPruner(
        model, torch.randn(1, 3, 32, 32), MagnitudeImportance(normalizer="none"), 0.5, isomorphic=True
    )
    shares: dict[Any, list[tuple[int, int]]] = {}
    for group, cut in zip(pruner.groups, pruner.make_plan().groups, strict=True):
        shares.setdefault(describe_structure(model, group), []).append((len(cut.dropped), cut.size))
    for members in shares.values():
        dropped, size = np.sum(members, axis=0)
        assert dropped / size == pytest.approx(0.5, abs=0.01)
    inside = next(members for members in shares.values() if len(members) == 8)
    assert len({dropped / size for dropped, size in inside}) > 1  # ranked together, not one by one


# --------------------------------------------------------------------------------------------------- ranked by cost


def ranks(made: Ladder, savings: Sequence[float]) -> list[float]:
    budget = Budget(0.5, "macs", True, {}, normalizer="none", savings=lambda _: np.array(savings))
    return rank_steps(made, budget).tolist()


def test_ranks_are_scores_per_saving() -> None:
    assert ranks(ladder([1.0, 2.0, 4.0]), [2.0, 2.0, 2.0])[:2] == [0.5, 1.0]


def test_a_cheap_step_behind_an_expensive_one_is_taken_with_it() -> None:
    """Alone they cost 3/1 and 5/15 per saving; going both ways at once costs 8/16. A running maximum would say 3."""
    assert ranks(ladder([3.0, 5.0, 9.0]), [1.0, 15.0, 1.0])[:2] == [0.5, 0.5]


def test_steps_beyond_the_limits_pull_nothing_forward() -> None:
    found = ranks(ladder([3.0, 5.0, 5.0, 5.0], max_pruning_ratio=0.5), [1.0, 1.0, 1000.0, 1000.0])
    assert found == [3.0, 5.0, np.inf, np.inf]


def test_steps_that_go_only_together_have_one_price() -> None:
    assert ranks(ladder([1.0, 3.0, 5.0, 7.0, 9.0, 9.0], round_to=2), [1.0] * 6)[:4] == [2.0, 2.0, 6.0, 6.0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 10)), min_size=2, max_size=12))
def test_ranks_never_fall_and_add_up_to_the_hull(steps: list[tuple[float, float]]) -> None:
    made = ladder(sorted(score for score, _ in steps))
    savings = np.array([saving for _, saving in steps])
    found = np.array(ranks(made, savings.tolist()))[: int(made.allowed[-1])]
    assert (np.diff(found) >= -1e-9 * np.abs(found[1:])).all()
    below = np.cumsum(found * savings[: len(found)])
    losses = np.cumsum(made.scores)[: len(found)]
    assert (below <= losses + 1e-9 * (1 + losses)).all()  # a hull from below
    assert below[-1] == pytest.approx(losses[-1])


def test_cost_aware_takes_from_the_layer_that_saves_most() -> None:
    """Equal scores: a unit of the first layer saves 20 + 60 MACs, one of the second 100 + 10; there are 8600."""

    class Same:
        cost_aware = True
        normalizer = "none"

        def __call__(self, group: Any) -> Tensor:
            return torch.ones(group.size)

    model, x = make_mlp(), torch.randn(1, 20)
    options: dict[str, Any] = {"target": "macs", "global_pruning": True, "max_pruning_ratio": 0.5}
    cuts = StructuredPruner(model, x, Same(), 0.295, **options).make_plan().groups
    assert [len(cut.dropped) for cut in cuts] == [0, 23]  # 0.295 * 8600 = 2537 = 23.1 * 110
    plain = StructuredPruner(model, x, Same(), 0.295, cost_aware=False, **options).make_plan().groups
    assert [len(cut.dropped) for cut in plain] == [32, 0]  # ties by the order of groups
    asked = StructuredPruner(model, x, "l2", 0.3, cost_aware=True, **options)
    assert asked.cost_aware and not StructuredPruner(model, x, "l2", 0.3, **options).cost_aware


def test_cost_aware_needs_ranks_across_groups_and_scores_above_zero() -> None:
    model, x = make_mlp(), torch.randn(2, 20)
    with pytest.raises(InputError, match="cost_aware=True ranks units of several groups: use it with global_pruning"):
        StructuredPruner(model, x, "l2", 0.5, cost_aware=True)
    scorer = MagnitudeImportance(normalizer="standardise")
    pruner = StructuredPruner(model, x, scorer, 0.5, cost_aware=True, global_pruning=True)
    with pytest.raises(InputError, match=r"negative \(normalizer 'standardise'\)"):
        pruner.prune()


# ------------------------------------------------------------------------------------------------------ real networks

BUILDERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "digits_resnet": (digits_resnet, (1, 1, 8, 8)),
    "attention": (Attention, (1, 7, 12)),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(num_classes=10), (1, 3, 64, 64)),
    "squeezenet1_1": (lambda: torchvision.models.squeezenet1_1(num_classes=10), (1, 3, 64, 64)),
    "shufflenet_v2_x0_5": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10), (1, 3, 64, 64)),
    "regnet_y_400mf": (lambda: torchvision.models.regnet_y_400mf(num_classes=10), (1, 3, 64, 64)),
    "swin_t": (lambda: torchvision.models.swin_t(num_classes=10), (1, 3, 64, 64)),
}


@cache
def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return BUILDERS[name][0]().eval()


@cache
def pruner_of(name: str) -> StructuredPruner:
    """One analysed network for many budgets."""
    return StructuredPruner(network(name), torch.randn(BUILDERS[name][1]), "l2", 0.5, verify=False)


def reach(name: str, ratio: float, target: str, scope: str) -> float:
    """What a plan really removes of parameters or MACs."""
    pruner = copy.copy(pruner_of(name))
    pruner.pruning_ratio, pruner.target = ratio, target
    pruner.global_pruning, pruner.isomorphic = scope == "global", scope == "isomorphic"
    pruned = slice_model(copy.deepcopy(pruner.model), pruner.make_plan())
    if target == "params":
        return 1 - count_parameters(pruned) / count_parameters(pruner.model)
    return 1 - count_macs(pruned, pruner.example_inputs) / count_macs(pruner.model, pruner.example_inputs)


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in ("digits_resnet", "attention")])
@pytest.mark.parametrize(
    ("target", "ratio", "scope"),
    [("params", 0.5, "local"), ("macs", 0.3, "global"), ("macs", 0.7, "local"), ("params", 0.7, "isomorphic")],
)
def test_a_torchvision_network_meets_the_target_within_a_point(
    name: str, target: str, ratio: float, scope: str
) -> None:
    assert reach(name, ratio, target, scope) == pytest.approx(ratio, abs=0.01)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(["digits_resnet", "attention"]),
    st.sampled_from(["params", "macs"]),
    st.sampled_from(["local", "global", "isomorphic"]),
    st.lists(st.floats(0, 0.95), min_size=3, max_size=3),
)
def test_a_larger_ratio_never_leaves_a_larger_network(name: str, target: str, scope: str, ratios: list[float]) -> None:
    reached = [reach(name, ratio, target, scope) for ratio in sorted(ratios)]
    assert all(later >= earlier for earlier, later in pairwise(reached))


@pytest.mark.parametrize("target", ["params", "macs"])
@pytest.mark.parametrize("steps", [2, 4])
def test_steps_meet_the_target_too(target: str, steps: int) -> None:
    model, x = network("digits_resnet"), torch.randn(1, 1, 8, 8)
    pruner = StructuredPruner(
        model, x, "l2", 0.6, target=target, iterative_steps=steps, schedule="cubic", global_pruning=True
    )
    pruned = pruner.prune()
    count: Any = count_parameters if target == "params" else lambda m: count_macs(m, x)
    assert 1 - count(pruned) / count(model) == pytest.approx(0.6, abs=0.01)


# ------------------------------------------------------------------------------------------------------------ latency


def make_wide() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 8)).eval()


def pretend(model: nn.Module, reference: nn.Module, inputs: Any, **options: Any) -> LatencyRatio:
    """A machine without noise, on which time is MACs plus a fifth that stays."""
    share = count_macs(model, inputs) / count_macs(reference, inputs)
    return LatencyRatio(0.2 + 0.8 * share, 0.01, options["pairs"])


@pytest.mark.parametrize("options", [{}, {"global_pruning": True}, {"iterative_steps": 2, "inplace": True}])
def test_latency_is_met_with_few_measurements(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: Any, **kwargs: Any) -> LatencyRatio:
        calls.append(1)
        return pretend(*args, **kwargs)

    monkeypatch.setattr(cleanai.pruner, "compare_latency", counted)
    model, x = make_wide(), torch.randn(4, 64)
    before = copy.deepcopy(model)
    pruner = StructuredPruner(model, x, "l2", 0.4, target="latency", **options)
    pruned = pruner.prune()
    assert 1 - pretend(pruned, before, x, pairs=2).ratio == pytest.approx(0.4, abs=0.01)
    assert len(calls) <= 14 * pruner.iterative_steps
    metrics = {"original": pruner._measure(before, False), "pruned": pruner._measure(pruned, False)}
    report = pruner.report(metrics=metrics)
    assert report.budget.target == "latency" and report.budget.reached == pytest.approx(0.4, abs=0.01)
    assert "latency timed in 9 pairs with the original, IQR 0.010" in report.budget.note
    assert "9 çift" in terms("tr", report.budget.note)


def test_latency_out_of_reach_goes_as_far_as_it_can_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanai.pruner, "compare_latency", pretend)
    model, x = make_wide(), torch.randn(4, 64)
    pruner = StructuredPruner(model, x, "l2", 0.9, target="latency", max_pruning_ratio=0.75)
    pruned: Any = pruner.prune()
    assert pruned[0].out_features == 128
    metrics = {"original": pruner._measure(model, False), "pruned": pruner._measure(pruned, False)}
    assert "max_pruning_ratio holds groups back" in pruner.report(metrics=metrics).budget.note


def test_latency_is_really_measured() -> None:
    model, x = make_wide(), torch.randn(64, 64)
    small = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    found = compare_latency(small, model, x, pairs=3, min_run_time=0.01)
    assert 0 < found.ratio < 0.7 and found.spread >= 0 and found.pairs == 3
    with pytest.raises(InputError, match="at least 2"):
        compare_latency(small, model, x, pairs=1)
