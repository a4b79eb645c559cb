"""Scores: computed by hand on a net small enough to do so, higher = keep, and a user's own scorer like any other."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cleanai import (
    ActivationImportance,
    InputError,
    MagnitudeImportance,
    RandomImportance,
    ScoredGroup,
    StructuredPruner,
    WandaImportance,
    WeightActivationImportance,
    collect_statistics,
)
from cleanai.importance import CRITERIA, find_importance

# Two inputs, three hidden units (unit 1 is never active), two outputs.
W1 = torch.tensor([[3.0, 4.0], [0.0, 1.0], [-1.0, 2.0]])
B1 = torch.tensor([0.0, -100.0, 1.0])
W2 = torch.tensor([[1.0, -2.0, 0.0], [2.0, 2.0, -5.0]])
X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-2.0, 0.0]])
HIDDEN = F.relu(X @ W1.T + B1)


def make_net() -> Any:
    net: Any = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        net[0].weight.copy_(W1)
        net[0].bias.copy_(B1)
        net[2].weight.copy_(W2)
    return net


def score(importance: Any, net: nn.Module | None = None, data: Tensor = X, group: str = "0") -> Tensor:
    net = make_net() if net is None else net
    found = collect_all(StructuredPruner(net, data[:1], importance), data).score_groups()[group]
    assert found is not None
    return found


def collect_all(pruner: StructuredPruner, data: Tensor) -> StructuredPruner:
    pruner.collect_activations([data], progress=False)
    if getattr(pruner.importance, "needs_gradients", False):
        pruner.collect_gradients([data], lambda model, batch: model(batch).square().mean(), progress=False)
    return pruner


def equals(expected: Tensor | list[float]) -> Any:
    return pytest.approx(torch.as_tensor(expected, dtype=torch.float64).tolist(), rel=1e-6)


# ------------------------------------------------------------------------------------------------------ by hand


def test_magnitude_is_the_mean_norm_of_the_rows_and_columns_a_unit_owns() -> None:
    assert score(MagnitudeImportance(1)).tolist() == equals([(7 + 3) / 2, (1 + 4) / 2, (3 + 5) / 2])
    rows, columns = torch.tensor([5.0, 1.0, 5.0**0.5]), torch.tensor([5.0**0.5, 8.0**0.5, 5.0])
    assert score(MagnitudeImportance(2)).tolist() == equals((rows + columns) / 2)


def test_activation_is_the_mean_absolute_value_the_reader_sees() -> None:
    assert score(ActivationImportance()).tolist() == equals(HIDDEN.mean(0))


def test_wanda_is_the_root_mean_square_times_the_weights_that_read_it() -> None:
    expected = HIDDEN.square().mean(0).sqrt() * W2.abs().sum(0)
    assert score(WandaImportance()).tolist() == equals(expected)


@pytest.mark.parametrize(("weight", "activation"), [(0.5, 0.5), (0.25, 0.75), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("p", [1, 2])
def test_weight_and_activation_are_mixed_in_shares_of_their_means(weight: float, activation: float, p: int) -> None:
    magnitude, active = score(MagnitudeImportance(p)), score(ActivationImportance())
    expected = weight * magnitude / magnitude.mean() + activation * active / active.mean()
    assert score(WeightActivationImportance(weight, activation, p)).tolist() == equals(expected)


def test_convolutions_sum_over_kernels_and_positions() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2)).eval()
    data = torch.randn(3, 2, 6, 6)
    hidden = F.relu(net[0](data)).detach()
    first, second = net[0].weight.detach(), net[2].weight.detach()
    rows, columns = first.flatten(1).norm(dim=1), second.transpose(0, 1).flatten(1).norm(dim=1)
    assert score("l2", net, data).tolist() == equals((rows + columns) / 2)
    rows, columns = first.abs().sum((1, 2, 3)), second.abs().sum((0, 2, 3))
    assert score("l1", net, data).tolist() == equals((rows + columns) / 2)
    assert score("activation", net, data).tolist() == equals(hidden.mean((0, 2, 3)))
    assert score("wanda", net, data).tolist() == equals(hidden.square().mean((0, 2, 3)).sqrt() * columns)


def test_a_grouped_reader_multiplies_a_channel_by_its_own_group_only() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=4, bias=False), nn.Conv2d(4, 2, 1)
    ).eval()
    data = torch.randn(3, 2, 5, 5)
    hidden = F.relu(net[0](data)).detach()
    depthwise, last = net[2].weight.detach().flatten(), net[3].weight.detach()[:, :, 0, 0]
    after = net[2](hidden).detach()
    rms = hidden.square().mean((0, 2, 3)).sqrt(), after.square().mean((0, 2, 3)).sqrt()
    expected = (rms[0] * depthwise.abs() + rms[1] * last.abs().sum(0)) / 2
    assert score("wanda", net, data).tolist() == equals(expected)


def test_a_unit_of_several_channels_sums_them() -> None:
    """After a flatten each channel is read at nine positions."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)).eval()
    data = torch.randn(5, 1, 4, 4)
    hidden = F.relu(net[0](data)).detach()
    columns = net[3].weight.detach().reshape(2, 3, 9)
    assert score("activation", net, data).tolist() == equals(hidden.mean(0).sum((1, 2)))
    rms = hidden.square().mean(0).sqrt().flatten(1)
    assert score("wanda", net, data).tolist() == equals((rms * columns.abs().sum(0)).sum(1))
    expected = (net[0].weight.detach().flatten(1).norm(dim=1) + columns.transpose(0, 1).flatten(1).norm(dim=1)) / 2
    assert score("l2", net, data).tolist() == equals(expected)


# ------------------------------------------------------------------------------------------------- what must hold


def seeing_criteria() -> list[Any]:
    """The criteria that look at weights, activations or gradients of any layer."""
    return [make() for name, make in CRITERIA.items() if name not in ("random", "bn_scale")]


@pytest.mark.parametrize("importance", seeing_criteria(), ids=repr)
def test_a_dead_channel_scores_lowest_and_goes_first(importance: Any) -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 2)
    ).eval()
    with torch.no_grad():
        for tensor in (net[0].weight, net[0].bias, net[1].weight, net[1].bias):
            tensor[5] = 0.0
        net[3].weight[:, 5] = 0.0
    data = torch.randn(4, 3, 6, 6)
    pruner = StructuredPruner(net, data[:1], importance, layer_pruning_ratios={"0": 0.125, "3": 0.0})
    scores = collect_all(pruner, data).score_groups()["0"]
    assert scores is not None and int(scores.argmin()) == 5 and scores[5] == 0.0
    assert sorted(scores.tolist())[1] > 0
    pruner.prune()
    assert pruner.plan is not None and pruner.plan.groups[0].dropped == (5,)


@pytest.mark.parametrize("importance", [ActivationImportance(), WandaImportance()], ids=repr)
def test_a_silent_channel_with_large_weights_scores_lowest_where_activations_count(importance: Any) -> None:
    found = score(importance)
    assert found.argmin() == 1 and found[1] == 0.0


@pytest.mark.parametrize("importance", seeing_criteria(), ids=repr)
def test_the_lowest_scores_are_removed_and_the_highest_kept(importance: Any) -> None:
    torch.manual_seed(1)
    net: Any = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    pruner = StructuredPruner(net, torch.randn(1, 6), importance, 0.4)
    scores = collect_all(pruner, torch.randn(50, 6)).score_groups()["0"]
    pruner.prune()
    assert pruner.plan is not None and scores is not None
    assert set(pruner.plan.groups[0].dropped) == set(scores.argsort()[:8].tolist())
    assert pruner.plan.groups[0].scores == pytest.approx(scores.tolist())


# Curvature is estimated with a random sign for each position: see test_criteria.py for what it is on average.
EXACT = [criterion for criterion in seeing_criteria() if not getattr(criterion, "needs_curvature", False)]


@pytest.mark.parametrize("importance", EXACT, ids=repr)
def test_scores_follow_the_units_when_they_are_reordered(importance: Any) -> None:
    torch.manual_seed(2)
    net: Any = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)).eval()
    order = torch.randperm(9)
    shuffled: Any = copy.deepcopy(net)
    with torch.no_grad():
        shuffled[0].weight.copy_(net[0].weight[order])
        shuffled[0].bias.copy_(net[0].bias[order])
        shuffled[2].weight.copy_(net[2].weight[:, order])
    data = torch.randn(30, 6)
    assert score(importance, shuffled, data).tolist() == equals(score(importance, net, data)[order])


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 100))
def test_the_mixture_does_not_depend_on_the_scale_of_its_parts(factor: float) -> None:
    """Twice the weights into and out of the units, or twice the data: the same scores."""
    base = score(WeightActivationImportance())
    bigger = make_net()
    with torch.no_grad():
        for parameter in (bigger[0].weight, bigger[0].bias, bigger[2].weight):
            parameter.mul_(factor)
    assert score(WeightActivationImportance(), bigger).tolist() == pytest.approx(base.tolist(), rel=1e-4)


def test_signs_do_not_count() -> None:
    net = make_net()
    with torch.no_grad():
        net[2].weight.neg_()
    for importance in seeing_criteria():
        if not getattr(importance, "needs_gradients", False):  # the loss depends on them
            assert score(importance, net).tolist() == equals(score(importance))


def test_random_scores_depend_on_the_seed_and_the_group_only() -> None:
    torch.manual_seed(0)
    first = score(RandomImportance(1))
    torch.manual_seed(5)
    assert torch.equal(score(RandomImportance(1)), first)
    assert not torch.equal(score(RandomImportance(2)), first)
    net: Any = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    found = StructuredPruner(net, X, RandomImportance(1)).score_groups()
    assert not torch.equal(found["0"], found["1"])  # ty: ignore[invalid-argument-type]
    assert bool((first >= 0).all()) and bool((first < 1).all())


def test_every_letter_of_a_name_and_the_seed_count_in_random_scores() -> None:
    """Names that end alike, as those of residual blocks do, must not draw alike."""
    parts = {f"{stage}_with_a_long_name_that_ends_alike": nn.Linear(5, 5) for stage in "ab"}
    net: Any = nn.Sequential(OrderedDict({**parts, "head": nn.Linear(5, 2)}))
    drawn = [StructuredPruner(net, torch.ones(1, 5), RandomImportance(seed)).score_groups() for seed in (0, 5)]
    scores = [values.tolist() for found in drawn for values in found.values() if values is not None]
    assert len(scores) == 4 and len({tuple(values) for values in scores}) == 4


def test_scores_of_a_group_are_float64_on_the_cpu_without_gradient() -> None:
    for importance in (*seeing_criteria(), RandomImportance()):
        found = score(importance)
        assert found.dtype is torch.float64 and found.shape == (3,) and not found.requires_grad


def test_low_precision_weights_are_summed_in_double() -> None:
    net: Any = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).to(torch.bfloat16)
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].weight[1, 0] += 2**-7
        net[2].weight.fill_(1.0)
    found = StructuredPruner(net, torch.randn(2, 4, dtype=torch.bfloat16), "l1").score_groups()["0"]
    assert found is not None and found[1] - found[0] == 2**-8


# ---------------------------------------------------------------------------------------------------- the arguments


@pytest.mark.parametrize(("weight", "activation"), [(0.5, 0.6), (0.2, 0.2), (1.0, 1.0)])
def test_ratios_that_do_not_sum_to_one_are_refused(weight: float, activation: float) -> None:
    with pytest.raises(InputError, match=r"weight_ratio \+ activation_ratio is .*must sum to 1"):
        WeightActivationImportance(weight_ratio=weight, activation_ratio=activation)


@pytest.mark.parametrize("value", [-0.5, 1.5, float("nan"), "half"])
def test_a_ratio_outside_its_range_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"weight_ratio is .*between 0 and 1"):
        WeightActivationImportance(weight_ratio=value, activation_ratio=0.5)


@pytest.mark.parametrize("make", [MagnitudeImportance, lambda p: WeightActivationImportance(p=p)])
def test_an_unknown_norm_is_refused(make: Any) -> None:
    with pytest.raises(InputError, match=r"p is 3; use 1 .* or 2"):
        make(p=3)


def test_only_what_is_used_is_asked_for() -> None:
    assert WeightActivationImportance().needs_activations
    assert not WeightActivationImportance(1.0, 0.0).needs_activations
    net = make_net()
    StructuredPruner(net, X, WeightActivationImportance(1.0, 0.0)).prune()  # no calibration needed
    for importance in (ActivationImportance(), WandaImportance(), WeightActivationImportance()):
        with pytest.raises(InputError, match="needs activations: call collect_activations"):
            StructuredPruner(net, X, importance).prune()


@pytest.mark.parametrize("name", CRITERIA)
def test_every_name_gives_its_scorer(name: str) -> None:
    assert find_importance(name) == CRITERIA[name]()
    assert find_importance(find_importance(name)) == CRITERIA[name]()


def test_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(InputError, match=r"no importance is named 'magnitud'; the names are l1, l2, magnitude"):
        StructuredPruner(make_net(), X, "magnitud")


@pytest.mark.parametrize("wrong", [None, 3, object()])
def test_what_is_no_scorer_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="callable on a group that returns one score per unit"):
        StructuredPruner(make_net(), X, wrong)


@pytest.mark.parametrize("scorer", [MagnitudeImportance, WandaImportance, WeightActivationImportance])
def test_a_class_in_place_of_an_instance_is_refused_at_once(scorer: Any) -> None:
    with pytest.raises(InputError, match=rf"{scorer.__name__}\(\)"):
        StructuredPruner(make_net(), X, scorer)


# ------------------------------------------------------------------------------------------------ a user's own scorer


def test_a_function_scores() -> None:
    def last_first(group: ScoredGroup) -> Tensor:
        return -torch.arange(group.size)

    pruned: Any = StructuredPruner(make_net(), X, last_first, 0.34).prune()
    assert pruned[0].weight.tolist() == W1[:2].tolist()


def test_an_object_scores_with_everything_a_group_offers() -> None:
    class NormTimesActivation:
        needs_activations = True

        def __call__(self, group: ScoredGroup) -> Tensor:
            assert (group.name, group.kind, group.size) == ("0", "channels", 3)
            assert {member.parameter for member in group.members} == {"0.weight", "0.bias", "2.weight"}
            total = torch.zeros(group.size, dtype=torch.float64)
            for member, weight in group.weights():
                total += group.powers(member, weight, 1)
            ((layer, statistics),) = group.activations("input")
            assert layer == "2"
            part = group.sum_channels(layer, "input", statistics.mean)
            assert part is not None
            return total * part

    expected = torch.tensor([10.0, 5.0, 8.0]) * HIDDEN.mean(0)
    assert score(NormTimesActivation()).tolist() == equals(expected)
    with pytest.raises(InputError, match="needs activations"):
        StructuredPruner(make_net(), X, NormTimesActivation()).prune()


def test_a_scorer_that_needs_activations_without_saying_so_is_told() -> None:
    def forgetful(group: ScoredGroup) -> Tensor:
        return group.activations()[0][1].mean

    with pytest.raises(InputError, match=r"scoring the group 0 needs activations: call collect_activations"):
        StructuredPruner(make_net(), X, forgetful).prune()


def test_plain_lists_and_integers_are_scores_too() -> None:
    for values in ([3, 1, 2], (3.0, 1.0, 2.0), torch.tensor([3, 1, 2]), torch.tensor([3.0, 1, 2]).requires_grad_()):
        scorer: Any = lambda group, values=values: values
        pruner = StructuredPruner(make_net(), X, scorer, 0.34)
        pruner.prune()
        assert pruner.plan is not None and pruner.plan.groups[0].dropped == (1,)


def test_a_group_a_scorer_cannot_judge_is_kept_and_named() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    scorer: Any = lambda group: None if group.name == "0" else torch.arange(group.size)
    pruner = StructuredPruner(net, X, scorer, 0.5)
    pruned: Any = pruner.prune()
    assert [layer.out_features for layer in pruned if isinstance(layer, nn.Linear)] == [8, 3, 2]
    assert any("0" in warning and "does not see" in warning for warning in pruner.warnings)
    record = pruner.report().groups[0]
    assert record.units_after == 8 and record.scores is None and "not scored" in record.note


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (torch.ones(2), r"scores of shape \(2,\) for the group 0, which has 3 channels"),
        (torch.ones(3, 1), r"scores of shape \(3, 1\)"),
        (torch.tensor(1.0), r"scores of shape \(\)"),
        (torch.tensor([1.0, float("nan"), 2.0]), "NaN or infinite scores for the group 0"),
        (torch.tensor([1.0, float("inf"), 2.0]), "NaN or infinite scores for the group 0"),
        ("high", "returned a str for the group 0"),
        ({"0": 1.0}, "returned a dict for the group 0"),
    ],
    ids=repr,
)
def test_scores_that_cannot_be_used_are_refused_and_nothing_changes(returned: Any, words: str) -> None:
    net = make_net()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InputError, match=words):
        StructuredPruner(net, X, lambda group: returned, inplace=True).prune()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_an_error_in_a_scorer_comes_through_and_nothing_changes() -> None:
    def broken(group: ScoredGroup) -> Tensor:
        raise ZeroDivisionError("mine")

    net = make_net()
    with pytest.raises(ZeroDivisionError, match="mine"):
        StructuredPruner(net, X, broken, inplace=True).prune()
    assert net[0].weight.shape == (3, 2)


def test_activations_where_a_layer_is_used_twice_are_those_of_both_uses() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared, self.out = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x))
            return self.out(self.shared(self.shared(x)))

    torch.manual_seed(0)
    net = Twice().eval()
    statistics = collect_statistics(net, [X], progress=False).get("shared", "input")
    once = F.relu(net.first(X))
    both = torch.cat([once, net.shared(once)]).detach()
    assert statistics is not None and statistics.count == 8
    assert statistics.mean_absolute.tolist() == equals(both.abs().mean(0))
