"""The criteria: each computed by hand, invariant to what it must be invariant to, and usable on every kind of net."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import CASES
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from cleanai import InputError, StructuredPruner
from cleanai.importance import (
    CRITERIA,
    NORMALIZERS,
    REDUCTIONS,
    ActivationImportance,
    AdaptiveNeuronCoverageImportance,
    BNScaleImportance,
    FPGMImportance,
    HessianImportance,
    LAMPImportance,
    MagnitudeImportance,
    MixedImportance,
    NeuronCoverageImportance,
    RandomImportance,
    TaylorImportance,
    WandaImportance,
    add_criteria,
    find_importance,
    normalize_scores,
)
from cleanai.importance.group import thresholds_of

SEEING = [name for name in CRITERIA if name != "random"]  # what looks at weights, activations or gradients
METRICS = ("normalized_mean", "frequency", "mean_absolute", "combined")

# Two inputs, three hidden units, two outputs.
W1 = torch.tensor([[3.0, 4.0], [0.0, 1.0], [-1.0, 2.0]])
B1 = torch.tensor([0.0, -100.0, 1.0])
W2 = torch.tensor([[1.0, -2.0, 0.0], [2.0, 2.0, -5.0]])
X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-2.0, 0.0]])
LABELS = torch.tensor([0, 1, 1, 0])
HIDDEN = F.relu(X @ W1.T + B1)


def make_net(bias: Tensor | None = B1) -> Any:
    net: Any = nn.Sequential(nn.Linear(2, 3, bias=bias is not None), nn.ReLU(), nn.Linear(3, 2, bias=False)).eval()
    with torch.no_grad():
        net[0].weight.copy_(W1)
        net[2].weight.copy_(W2)
        if bias is not None:
            net[0].bias.copy_(bias)
    return net


def make_conv_net(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    net: Any = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 2)
    ).eval()
    with torch.no_grad():
        net[1].weight.uniform_(0.5, 1.5)
        net[1].bias.normal_()
    return net


def images(count: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def ready(importance: Any, net: nn.Module, batches: Any, **options: Any) -> StructuredPruner:
    """A pruner that has collected what the criterion needs."""
    example = batches[0][0][:2]
    pruner = StructuredPruner(net, example, importance, **options)
    if getattr(pruner.importance, "needs_activations", False):
        pruner.collect_activations(batches, progress=False)
    if getattr(pruner.importance, "needs_gradients", False):
        pruner.collect_gradients(batches, progress=False)
    return pruner


def score(importance: Any, net: nn.Module | None = None, batches: Any = None, group: str = "0") -> Tensor:
    found = ready(importance, make_net() if net is None else net, batches or [(X, LABELS)]).score_groups()[group]
    assert found is not None
    return found


def equals(expected: Any, rel: float = 1e-6) -> Any:
    return pytest.approx(torch.as_tensor(expected, dtype=torch.float64).tolist(), rel=rel, abs=1e-12)


# ----------------------------------------------------------------------------------------------------- weights, by hand


def test_bn_scale_is_the_size_of_gamma() -> None:
    net = make_conv_net()
    with torch.no_grad():
        net[1].weight[3] = -2.0
    assert score(BNScaleImportance(), net, [(images(), torch.zeros(8).long())]).tolist() == equals(net[1].weight.abs())


def test_bn_scale_sees_every_norm_a_channel_passes() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.ReLU(), FrozenBatchNorm2d(8), nn.BatchNorm2d(8, affine=False)
    )
    net.append(nn.Conv2d(8, 2, 1)).eval()
    with torch.no_grad():
        net[1].weight.normal_()
        net[3].weight.normal_()
    data = [(images(), torch.zeros(8).long())]
    # The group norm leaves units of four channels each.
    first, second = (norm.weight.detach().abs().reshape(2, 4).sum(1) for norm in (net[1], net[3]))
    assert score(BNScaleImportance(), net, data).tolist() == equals((first + second) / 2)
    assert score(BNScaleImportance(reduction="max"), net, data).tolist() == equals(torch.maximum(first, second))


def test_bn_scale_skips_a_group_without_norms_by_name() -> None:
    net = make_conv_net()
    pruner = ready("bn_scale", net, [(images(), torch.zeros(8).long())])
    assert pruner.score_groups()["3"] is None
    pruned: Any = pruner.prune()
    assert pruned[3].out_channels == 6 and pruned[0].out_channels == 4
    assert any("3" in warning and "does not see" in warning for warning in pruner.warnings)


def test_fpgm_sums_the_distances_to_all_other_filters() -> None:
    def distances(vectors: list[list[float]]) -> Tensor:
        points = torch.tensor(vectors)
        return torch.stack([sum(((p - q).square().sum().sqrt() for q in points), torch.zeros(())) for p in points])

    rows, columns = distances([[3, 4], [0, 1], [-1, 2]]), distances([[1, 2], [-2, 2], [0, -5]])
    assert score(FPGMImportance()).tolist() == equals((rows + columns) / 2)
    assert rows.tolist() == equals([18**0.5 + 20**0.5, 18**0.5 + 2**0.5, 20**0.5 + 2**0.5])


def test_fpgm_does_not_change_when_all_filters_are_moved() -> None:
    net = make_conv_net()
    before = score(FPGMImportance(), net, [(images(), torch.zeros(8).long())])
    with torch.no_grad():
        net[0].weight += torch.randn(3, 3, 3) * 5
        net[3].weight += torch.randn(6, 1, 3, 3) * 5
    assert score(FPGMImportance(), net, [(images(), torch.zeros(8).long())]).tolist() == equals(before, rel=1e-5)
    assert score("l2", net, [(images(), None)]).tolist() != equals(score("l2", make_conv_net(), [(images(), None)]))


def test_fpgm_scores_what_the_others_can_replace_lowest() -> None:
    net: Any = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[10.0, 0.0], [14.0, 0.0], [12.0, 4.0], [12.0, 0.0], [12.0, -4.0]]))
        net[2].weight.fill_(1.0)
    assert int(score(FPGMImportance(), net).argmin()) == 3  # in the middle, though not the smallest
    assert int(score("l2", net).argmin()) == 0


def test_fpgm_compares_a_unit_of_several_channels_as_a_whole() -> None:
    """Behind a flatten a channel is read by nine columns."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)).eval()
    data = [(torch.randn(5, 1, 4, 4), torch.zeros(5).long())]
    filters = net[0].weight.detach().double().flatten(1)
    columns = net[3].weight.detach().double().reshape(2, 4, 9).transpose(0, 1).flatten(1)
    expected = (torch.cdist(filters, filters).sum(1) + torch.cdist(columns, columns).sum(1)) / 2
    assert score(FPGMImportance(), net, data).tolist() == equals(expected)


def test_lamp_is_the_share_of_what_is_not_smaller() -> None:
    rows, columns = torch.tensor([1, 1 / 31, 5 / 30]), torch.tensor([5 / 38, 8 / 33, 1])  # of 25, 1, 5 and 5, 8, 25
    assert score(LAMPImportance()).tolist() == equals((rows + columns) / 2)


@settings(max_examples=10, deadline=None)
@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_lamp_does_not_depend_on_the_scale_of_a_layer(first: float, second: float) -> None:
    net = make_net()
    with torch.no_grad():
        net[0].weight.mul_(first)
        net[2].weight.mul_(second)
    assert score(LAMPImportance(), net).tolist() == equals(score(LAMPImportance()), rel=1e-5)
    assert LAMPImportance().normalizer == "none"


def test_lamp_gives_equal_filters_equal_scores() -> None:
    net = make_net()
    with torch.no_grad():
        net[0].weight.fill_(2.0)
        net[2].weight.fill_(2.0)
    assert score(LAMPImportance(), net).tolist() == equals([1 / 3] * 3)


# ------------------------------------------------------------------------------------------------- gradients, by hand


def half_square(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0]).square().sum(1).mean() / 2


def test_taylor_is_the_mean_square_of_what_a_unit_contributes_to_the_loss() -> None:
    """For ½‖W2 W1 x‖², g·w of a row of W1 and of the column of W2 that reads it are both y·W2_u h_u."""
    net = make_net(bias=None)
    net[1] = nn.Identity()
    batches = [(X[:1],), (X[1:],)]
    contributions = []
    for (x,) in batches:
        h = x @ W1.T
        y = h @ W2.T
        contributions.append(torch.stack([(y * (h[:, u : u + 1] * W2[:, u])).sum(1).mean() for u in range(3)]))
    expected = torch.stack(contributions).square().mean(0)
    pruner = StructuredPruner(net, X, "taylor")
    pruner.collect_gradients(batches, half_square, progress=False)
    found = pruner.score_groups()["0"]
    assert found is not None and found.tolist() == equals(expected)
    pruner = StructuredPruner(net, X, TaylorImportance(change="absolute"))
    pruner.collect_gradients(batches, half_square, progress=False)
    found = pruner.score_groups()["0"]
    assert found is not None and found.tolist() == equals(torch.stack(contributions).abs().mean(0))


def test_taylor_tells_what_the_loss_loses_to_first_order() -> None:
    """A channel whose output the loss does not depend on has 0 however large its weights are."""
    net = make_net(bias=None)
    with torch.no_grad():
        net[0].weight[2] = 50.0
        net[2].weight[:, 2] = 0.0
    found = score("taylor", net)
    assert found[2] == 0 and bool((found[:2] > 0).all())


def quadratic(model: Any, batch: Any) -> Tensor:
    """½ Σ c w² with a coefficient c for each weight: the Hessian is diagonal and known."""
    first, second = coefficients()
    return ((first * model[0].weight.square()).sum() + (second * model[2].weight.square()).sum()) / 2


def coefficients() -> tuple[Tensor, Tensor]:
    return torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([[1.0, 0.5, 2.0], [3.0, 0.25, 4.0]])


@pytest.mark.parametrize("seed", range(3))
def test_hessian_of_a_quadratic_loss_is_exact(seed: int) -> None:
    pruner = StructuredPruner(make_net(), X, "hessian")
    pruner.collect_gradients([X], quadratic, seed=seed, progress=False)
    first, second = coefficients()
    rows, columns = (first * W1.square()).sum(1) / 2, (second * W2.square()).sum(0) / 2
    found = pruner.score_groups()["0"]
    assert found is not None and found.tolist() == equals((rows + columns) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_hessian_counts_what_the_weights_of_a_unit_do_together(seed: int) -> None:
    """For ½ E‖W1 x‖² the loss without row u is lower by exactly ½ E(w_u·x)², also through the off-diagonal of H."""
    pruner = StructuredPruner(make_net(), X, HessianImportance(reduction="first"))
    loss = lambda model, batch: (batch @ model[0].weight.T).square().sum(1).mean() / 2
    pruner.collect_gradients([X], loss, seed=seed, progress=False)
    found = pruner.score_groups()["0"]
    assert found is not None and found.tolist() == equals((X @ W1.T).square().mean(0) / 2)


def test_hessian_of_a_network_is_met_in_expectation() -> None:
    """For ½ E‖W2 W1 x‖²: ½ E(w_u·x)² ‖W2_u‖², from the side of the rows and of the columns."""
    net = make_net(bias=None)
    net[1] = nn.Identity()
    pruner = StructuredPruner(net, X, "hessian")
    pruner.collect_gradients([(X,)], half_square, probes=2000, progress=False)
    expected = (X @ W1.T).square().mean(0) * W2.square().sum(0) / 2
    found = pruner.score_groups()["0"]
    assert found is not None and found.tolist() == equals(expected, rel=0.1)


def test_negative_curvature_counts_by_its_size() -> None:
    pruner = StructuredPruner(make_net(), X, "hessian")
    pruner.collect_gradients([X], lambda model, batch: -quadratic(model, batch), progress=False)
    other = StructuredPruner(make_net(), X, "hessian")
    other.collect_gradients([X], quadratic, progress=False)
    ours, theirs = pruner.score_groups()["0"], other.score_groups()["0"]
    assert ours is not None and theirs is not None and torch.equal(ours, theirs) and bool((ours > 0).all())


# ----------------------------------------------------------------------------------------------- activations, by hand


def test_coverage_is_what_its_name_says() -> None:
    mean, often = HIDDEN.mean(0), (HIDDEN > 0).double().mean(0)
    shares = mean / mean.max()
    expected = {
        "mean_absolute": mean,
        "normalized_mean": shares,
        "frequency": often,
        "combined": (shares * often).sqrt(),
    }
    assert often.tolist() == [0.75, 0.0, 0.75]
    for metric in METRICS:
        assert score(NeuronCoverageImportance(metric)).tolist() == equals(expected[metric])
        assert score(AdaptiveNeuronCoverageImportance(metric)).tolist() == equals(expected[metric])


def test_frequency_counts_what_lies_above_the_threshold() -> None:
    for threshold in (0.0, 2.0, 3.5, 7.0):
        expected = HIDDEN.gt(threshold).double().mean(0)
        assert score(NeuronCoverageImportance("frequency", threshold)).tolist() == equals(expected)


def test_coverage_of_a_unit_of_several_channels_is_their_mean() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)).eval()
    data = torch.randn(5, 1, 4, 4)
    hidden = F.relu(net[0](data)).detach()
    batches = [(data, torch.zeros(5).long())]
    expected = (hidden > 0).double().mean((0, 2, 3))
    assert score(NeuronCoverageImportance("frequency"), net, batches).tolist() == equals(expected)
    largest = hidden.mean(0).max()
    assert score("coverage", net, batches).tolist() == equals(hidden.mean((0, 2, 3)) / largest)


@pytest.mark.parametrize("make", [NeuronCoverageImportance, AdaptiveNeuronCoverageImportance])
@pytest.mark.parametrize("metric", METRICS)
def test_high_coverage_is_kept(metric: Any, make: Any) -> None:
    """Channel i is active the more often and the more strongly the larger i is: the first ones go."""
    net: Any = nn.Sequential(nn.Linear(1, 10), nn.ReLU(), nn.Linear(10, 2)).eval()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net[0].weight.copy_((order.float() + 1)[:, None])
        net[0].bias.copy_(order.float() - 9)
    x = torch.linspace(-1, 1, 200)[:, None]
    pruned: Any = ready(make(metric), net, [(x, None)], pruning_ratio=0.5).prune()
    assert sorted(pruned[0].bias.tolist()) == [-4.0, -3.0, -2.0, -1.0, 0.0]


# ----------------------------------------------------------------------------------------------------- invariances


def rescale(net: Any, factor: Tensor) -> Any:
    """The same function: each hidden unit's weights in times a factor, and out divided by it."""
    scaled = copy.deepcopy(net)
    with torch.no_grad():
        scaled[0].weight.mul_(factor[:, None])
        scaled[0].bias.mul_(factor)
        scaled[2].weight.div_(factor)
    return scaled


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(0.05, 20), min_size=3, max_size=3))
def test_what_judges_the_function_does_not_see_a_rescaling(factors: list[float]) -> None:
    factor = torch.tensor(factors)
    scaled = rescale(make_net(), factor)
    torch.testing.assert_close(scaled(X), make_net()(X), rtol=1e-4, atol=1e-4)
    for importance in ("wanda", "taylor", "coverage_frequency"):
        assert score(importance, scaled).tolist() == equals(score(importance), rel=1e-3)
    if max(factors) > 1.5 * min(factors):
        for importance in ("l2", "activation", "fpgm", "coverage"):
            assert score(importance, scaled).tolist() != equals(score(importance), rel=1e-3)


@settings(max_examples=10, deadline=None)
@given(st.floats(0.01, 100))
def test_normalised_coverage_does_not_depend_on_the_scale_of_the_data(factor: float) -> None:
    net = make_net(bias=None)
    for metric in ("normalized_mean", "frequency", "combined"):
        before, after = (score(NeuronCoverageImportance(metric), net, [(x, None)]) for x in (X, X * factor))
        assert after.tolist() == equals(before, rel=1e-4)
    before, after = (score(NeuronCoverageImportance("mean_absolute"), net, [(x, None)]) for x in (X, X * factor))
    assert after.tolist() == equals(before * factor, rel=1e-4)


def changes(name: str) -> Any:
    """A change of what the criterion looks at."""
    importance: Any = CRITERIA[name]()
    net = make_conv_net()
    batches = [(images(), torch.arange(8) % 2)]
    if getattr(importance, "needs_activations", False):
        return net, [(images(seed=7) * torch.linspace(0.2, 3, 6), torch.arange(8) % 2)]
    if getattr(importance, "needs_gradients", False):
        return net, [(images(), torch.zeros(8).long())]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    return net, batches


@pytest.mark.parametrize("name", SEEING)
def test_scores_change_when_what_they_look_at_does(name: str) -> None:
    before = score(name, make_conv_net(), [(images(), torch.arange(8) % 2)])
    again = score(name, make_conv_net(), [(images(), torch.arange(8) % 2)])
    assert torch.equal(before, again)
    changed = (score(name, *changes(name)) - before).abs() > 1e-6 * before
    assert int(changed.sum()) >= 7  # the most active channel has a normalised coverage of 1 either way


def test_random_scores_look_at_nothing() -> None:
    batches = [(images(), torch.arange(8) % 2)]
    assert torch.equal(
        score(RandomImportance(3), *changes("random")), score(RandomImportance(3), make_conv_net(), batches)
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", SEEING)
def test_a_dead_channel_comes_last(name: str, reduction: str) -> None:
    net = make_conv_net()
    with torch.no_grad():
        for tensor in (net[0].weight, net[0].bias, net[1].weight, net[1].bias):
            tensor[5] = 0.0
        net[3].weight[:, 5] = 0.0
    importance = with_options(name, reduction=reduction)
    found = score(importance, net, [(images(), torch.arange(8) % 2), (images(seed=2), torch.arange(8) % 2)])
    assert found[5] == 0.0 and sorted(found.tolist())[1] > 0
    for how in (*NORMALIZERS, "sentinel:0.9"):
        assert int(normalize_scores(found, how).argmin()) == 5


# ------------------------------------------------------------------------------------- reductions and normalisers


def with_options(name: str, **options: Any) -> Any:
    """A criterion by name with other options."""
    importance: Any = CRITERIA[name]()
    known = {each.name for each in dataclasses.fields(importance)}
    return dataclasses.replace(importance, **{key: value for key, value in options.items() if key in known})


def test_reductions_by_hand() -> None:
    rows, columns = torch.tensor([7.0, 1.0, 3.0]), torch.tensor([3.0, 4.0, 5.0])
    expected = {
        "mean": (rows + columns) / 2,
        "sum": rows + columns,
        "max": torch.maximum(rows, columns),
        "product": rows * columns,
        "first": rows,
    }
    assert expected.keys() == REDUCTIONS.keys()
    for reduction, scores in expected.items():
        assert score(MagnitudeImportance(1, reduction=reduction)).tolist() == equals(scores)


def test_normalisers_by_hand() -> None:
    scores = torch.tensor([4.0, 1.0, 1.0, 2.0, 12.0])
    expected = {
        "none": scores,
        "mean": scores / 4,
        "max": scores / 12,
        "sum": scores / 20,
        "standardise": (scores - 4) / (86 / 5) ** 0.5,
        "gaussian": (scores - 2) / 1.4826,
        "lamp": torch.tensor([4 / 16, 1 / 20, 1 / 20, 2 / 18, 1]),
        "sentinel": scores / 2,
        "sentinel:1": scores / 12,
        "sentinel:0.25": scores,
    }
    for how, values in expected.items():
        assert normalize_scores(scores, how).tolist() == equals(values), how
    assert expected.keys() >= NORMALIZERS.keys()


anything = st.floats(-1e300, 1e300) | st.sampled_from([0.0, 1.0, -1.0, 1e-300, 5e-324])


@settings(max_examples=200, deadline=None)
@given(st.lists(anything, min_size=1, max_size=12), st.sampled_from([*NORMALIZERS, "sentinel:0.9"]))
def test_normalising_keeps_the_order_and_stays_finite(values: list[float], how: str) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    found = normalize_scores(scores, how)
    assert bool(found.isfinite().all())
    order = scores.argsort()
    assert bool((found[order].diff() >= 0).all())


@pytest.mark.parametrize("how", [*NORMALIZERS, "sentinel:0.9"])
@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_equal_scores_stay_equal(how: str, value: float) -> None:
    found = normalize_scores(torch.full((5,), value), how)
    assert bool(found.isfinite().all()) and len(set(found.tolist())) == 1


@pytest.mark.parametrize("how", [name for name in NORMALIZERS if name != "none"])
def test_normalised_scores_do_not_depend_on_the_scale(how: str) -> None:
    scores = torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert normalize_scores(scores * 1e7, how).tolist() == equals(normalize_scores(scores, how), rel=1e-9)


@pytest.mark.parametrize("how", ["average", "", None, 3, "sentinel:", "sentinel:0", "sentinel:1.5", "sentinel:x"])
def test_an_unknown_normaliser_is_refused(how: Any) -> None:
    with pytest.raises(InputError, match=r"normalizer is .*; use 'none', 'mean'"):
        normalize_scores(torch.ones(3), how)
    with pytest.raises(InputError, match="normalizer is"):
        MagnitudeImportance(normalizer=how)


@pytest.mark.parametrize("reduction", ["average", None, 1])
def test_an_unknown_reduction_is_refused(reduction: Any) -> None:
    with pytest.raises(InputError, match=r"reduction is .*; use 'mean' or 'sum' or 'max' or 'product' or 'first'"):
        WandaImportance(reduction=reduction)


def test_options_that_are_not_the_usual_ones_are_shown() -> None:
    assert repr(MagnitudeImportance()) == "MagnitudeImportance(p=2)"
    assert repr(MagnitudeImportance(1, reduction="max")) == "MagnitudeImportance(p=1, reduction='max')"
    assert repr(LAMPImportance()) == "LAMPImportance()"
    assert repr(LAMPImportance(normalizer="mean")) == "LAMPImportance(normalizer='mean')"


NETS = ("residual", "dense", "grouped", "attention_sdpa")


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("case", NETS)
def test_every_criterion_reduction_and_normaliser_prunes_every_kind_of_net(case: str, name: str) -> None:
    """A residual, a concatenating, a grouped and an attention net: scored, ranked together, cut and proven."""
    net = CASES[case].make()
    torch.manual_seed(0)
    batches = [CASES[case].inputs(4) for _ in range(2)]
    loss = lambda model, batch: model(batch).square().mean()
    # By cost no score may be negative, which some normalisers make of them.
    options: Any = {"global_pruning": True, "cost_aware": False, "verify": False}
    pruner = StructuredPruner(net, batches[0], name, 0.4, **options)
    if getattr(pruner.importance, "needs_activations", False):
        pruner.collect_activations(batches, progress=False)
    if getattr(pruner.importance, "needs_gradients", False):
        pruner.collect_gradients(batches, loss, progress=False)
    chosen = {}
    for reduction, normalizer in itertools.product(REDUCTIONS, NORMALIZERS):
        pruner.importance = with_options(name, reduction=reduction, normalizer=normalizer)
        plan = pruner.make_plan()
        scores = pruner.score_groups()
        assert plan.dropped_units > 0 or all(found is None for found in scores.values())
        chosen[tuple(group.dropped for group in plan.groups)] = pruner.importance
    pruner.verify = True
    for importance in chosen.values():  # each way of cutting once
        pruner.importance = importance
        pruner.prune()
        assert pruner.verification is not None and pruner.verification.passed


@pytest.mark.parametrize("name", ["l1", "l2", "fpgm", "lamp", "taylor", "hessian"])
def test_a_group_of_vectors_is_judged_by_them(name: str) -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.tensor([1.0, 0.0, 3.0, -4.0])), nn.Parameter(torch.arange(4.0) + 1)

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.a * self.b).sum()

    net = Bare()
    with torch.no_grad():
        net.b[1] = 0.0
    pruner = StructuredPruner(net, X, name, 0.25)
    pruner.collect_gradients([X], lambda model, batch: model(batch).square().mean(), progress=False)
    scores = pruner.score_groups()["a"]
    assert scores is not None and int(scores.argmin()) == 1 and scores[1] == 0
    if name == "l1":
        assert scores.tolist() == [1.0, 0.0, 3.0, 4.0]
    pruned: Any = pruner.prune()
    assert pruned.a.tolist() == [1.0, 3.0, -4.0]


# ------------------------------------------------------------------------------------------------------------ mixes


def test_a_mix_adds_terms_in_shares_of_their_means() -> None:
    coverage, magnitude = score("coverage"), score("magnitude")
    expected = 0.3 * coverage / coverage.mean() + 0.7 * magnitude / magnitude.mean()
    for terms in ({"coverage": 0.3, "magnitude": 0.7}, [(NeuronCoverageImportance(), 0.3), ("l2", 0.7)]):
        assert score(MixedImportance(terms)).tolist() == equals(expected)
    expected = 2 * coverage / coverage.max() + magnitude / magnitude.max()
    assert score(MixedImportance({"coverage": 2, "magnitude": 1}, scale="max")).tolist() == equals(expected)


def test_a_mix_needs_what_its_terms_need() -> None:
    plain = MixedImportance({"l1": 1, "fpgm": 1})
    assert not plain.needs_activations and not plain.needs_gradients and not plain.recollect
    assert thresholds_of(plain) == (0.0,)
    mixed = MixedImportance(
        [
            (AdaptiveNeuronCoverageImportance("frequency", 0.5), 1),
            (NeuronCoverageImportance("combined", 2), 1),
            ("hessian", 1),
        ]
    )
    assert mixed.needs_activations and mixed.needs_gradients and mixed.needs_curvature and mixed.recollect
    assert thresholds_of(mixed) == (0.5, 2.0, 0.0)
    assert not getattr(NeuronCoverageImportance(), "recollect", False)
    assert not getattr(TaylorImportance(), "needs_curvature", False)


def test_a_mix_of_everything_scores() -> None:
    terms = dict.fromkeys([name for name in CRITERIA if name != "bn_scale"], 1.0)
    found = score(MixedImportance(terms))
    expected = sum((score(name) / score(name).mean() for name in terms), torch.zeros(3, dtype=torch.float64))
    assert found.tolist() == equals(expected)


def test_a_mix_cannot_judge_what_one_of_its_terms_cannot() -> None:
    pruner = StructuredPruner(make_net(), X, MixedImportance({"l2": 1, "bn_scale": 1}))
    assert pruner.score_groups() == {"0": None}


def test_mixes_can_be_mixed_and_compared() -> None:
    inner = MixedImportance({"l1": 1, "l2": 1})
    assert inner == MixedImportance([("l1", 1.0), ("l2", 1.0)]) and inner != MixedImportance({"l1": 1})
    assert score(MixedImportance([(inner, 1), ("l1", 1)])).shape == (3,)
    assert repr(MixedImportance({"l1": 1})) == "MixedImportance(terms=(('l1', 1.0),), scale='mean')"


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({}, "there are no terms"),
        ({"l1": 0}, "the weight of 'l1' is 0; it must be positive"),
        ({"l1": -1.0}, "must be positive"),
        ({"l1": float("nan")}, "must be positive"),
        ({"l1": "much"}, "must be positive"),
        ({"coverag": 1}, "no importance is named 'coverag'.*did you mean 'coverage'"),
        (["l1"], "'l1' is no pair"),
        ([(MagnitudeImportance, 1)], r"give an instance: MagnitudeImportance\(\)"),
    ],
    ids=repr,
)
def test_a_mix_of_nothing_usable_is_refused(terms: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        MixedImportance(terms)


# ------------------------------------------------------------------------------------------------ names and errors


def test_all_names_are_there() -> None:
    names = "l1 l2 magnitude bn_scale fpgm lamp random taylor hessian activation wanda weight_activation coverage"
    names += " coverage_frequency coverage_mean_absolute coverage_combined adaptive_coverage"
    assert set(names.split()) <= set(CRITERIA)


@pytest.mark.parametrize(
    ("name", "close"), [("taylr", "taylor"), ("coverage_freq", "coverage_frequency"), ("bnscale", "bn_scale")]
)
def test_a_wrong_name_lists_the_choices_and_what_is_near(name: str, close: str) -> None:
    with pytest.raises(
        InputError, match=rf"no importance is named '{name}'; the names are l1, .*did you mean .*{close}"
    ):
        find_importance(name)


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="a criterion named 'wanda' is there already"):
        add_criteria({"wanda": ActivationImportance})
    assert CRITERIA["wanda"] is WandaImportance


@pytest.mark.parametrize("metric", ["mean", None, 3])
def test_an_unknown_metric_is_refused(metric: Any) -> None:
    with pytest.raises(InputError, match=r"metric is .*; use 'normalized_mean' or 'frequency'"):
        NeuronCoverageImportance(metric)


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf"), "0", True, None])
def test_a_threshold_below_0_is_refused(threshold: Any) -> None:
    with pytest.raises(InputError, match=r"threshold is .*at least 0"):
        NeuronCoverageImportance("frequency", threshold)


def test_an_unknown_change_is_refused() -> None:
    wrong: Any = "cubed"
    with pytest.raises(InputError, match="change is 'cubed'; use 'squared' or 'absolute'"):
        TaylorImportance(wrong)


def test_gradients_that_were_not_collected_are_asked_for() -> None:
    for name in ("taylor", "hessian"):
        with pytest.raises(InputError, match=r"needs gradients: call collect_gradients\(loader\)"):
            StructuredPruner(make_net(), X, name).prune()
    pruner = StructuredPruner(make_net(), X, "hessian")
    pruner.collect_gradients([(X, LABELS)], curvature=False, progress=False)
    with pytest.raises(InputError, match="needs curvature: call collect_gradients"):
        pruner.prune()


def test_a_threshold_that_was_not_counted_is_asked_for() -> None:
    pruner = StructuredPruner(make_net(), X, "coverage_frequency")
    pruner.collect_activations([X], progress=False)
    pruner.importance = NeuronCoverageImportance("frequency", 0.5)
    with pytest.raises(InputError, match=r"without counting values above 0.5 \(but above 0\).*thresholds=\(0.5,\)"):
        pruner.score_groups()
