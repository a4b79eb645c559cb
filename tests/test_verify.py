"""The proof passes on right cuts, fails on planted wrong ones, and agrees with the tests' own oracle."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from nets import CASES, Case, PlainCnn, randomise
from oracle import assert_equals_masked, assert_removed, assert_runs, difference_from_masked
from torch import Tensor, nn

from cleanai import RandomImportance, StructuredPruner, VerificationError, rules, slice_model, verify_pruning
from cleanai.fields import Labelled
from cleanai.plan import Plan, TensorCut

SETTINGS: dict[str, dict[str, Any]] = {
    "local 0.3": {"pruning_ratio": 0.3, "importance": RandomImportance(1)},
    "local 0.65": {"pruning_ratio": 0.65, "importance": "magnitude"},
    "global 0.5": {"pruning_ratio": 0.5, "global_pruning": True, "importance": RandomImportance(2)},
}


def prune(case: Case, setting: str = "local 0.3") -> tuple[Any, Any, StructuredPruner]:
    """The original, the pruned model, and the pruner that was proven right."""
    model = case.make()
    pruner = StructuredPruner(model, case.inputs(2), **SETTINGS[setting])
    pruned = pruner.prune()
    assert pruner.verification is not None and pruner.verification.passed
    return model, pruned, pruner


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", CASES)
def test_every_network_is_pruned_right_at_every_ratio(name: str, setting: str) -> None:
    case = CASES[name]
    model, pruned, pruner = prune(case, setting)
    assert pruner.plan is not None
    assert pruner.plan.is_empty is not case.prunes
    for batch in (1, 2):
        assert_equals_masked(model, pruned, pruner.plan, case.inputs(batch), case.kept_like)
    assert_removed(model, pruned, pruner.plan)
    assert_runs(pruned, case.inputs(1))
    assert_runs(pruned.train(), case.inputs(2))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.prunes])
def test_every_network_is_pruned_right_in_three_rounds(name: str) -> None:
    """The plan of all rounds is in the numbering of the original, so one proof covers them."""
    case = CASES[name]
    model = case.make()
    pruner = StructuredPruner(model, case.inputs(2), RandomImportance(3), 0.5, iterative_steps=3)
    pruned = pruner.prune()
    assert pruner.plan is not None and not pruner.plan.is_empty
    assert_equals_masked(model, pruned, pruner.plan, case.inputs(2), case.kept_like)
    assert_removed(model, pruned, pruner.plan)


@pytest.mark.parametrize("over_all", [False, True])
@pytest.mark.parametrize("ratio", [0.5, 0.65, 0.9])
@pytest.mark.parametrize("seed", range(6))
def test_a_layer_is_never_emptied(seed: int, ratio: float, over_all: bool) -> None:
    """Three channels and one of five make a group of the norm: the three must not be the ones that all go."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm, self.c = (
                nn.Conv2d(2, 3, 1), nn.Conv2d(2, 5, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 1),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.norm(torch.cat([self.a(x), self.b(x)], 1)))

    model, inputs = randomise(Net()), torch.randn(2, 2, 4, 4)
    pruner = StructuredPruner(model, inputs, RandomImportance(seed), ratio, global_pruning=over_all)
    pruned: Any = pruner.prune()
    assert pruner.plan is not None and pruned.a.out_channels >= 1 and pruned.b.out_channels >= 1
    assert_equals_masked(model, pruned, pruner.plan, inputs)


# ------------------------------------------------------------------------------------------------- planted wrong cuts


def shift_cut(plan: Plan, index: int) -> Plan | None:
    """The plan with one dropped index of one tensor moved to a neighbour that was kept; None where there is none."""
    cut = plan.cuts[index]
    for position, gone in enumerate(cut.dropped):
        for other in (gone + 1, gone - 1):
            if 0 <= other < cut.size and other not in cut.dropped:
                dropped = sorted({*cut.dropped[:position], other, *cut.dropped[position + 1 :]})
                moved = dataclasses.replace(cut, dropped=tuple(dropped))
                return dataclasses.replace(plan, cuts=(*plan.cuts[:index], moved, *plan.cuts[index + 1 :]))
    return None


# A bias before a norm over positions, or on keys before a softmax, changes nothing: no output could tell.
NO_EFFECT = {("instance_norm", "conv1.bias")} | {(name, "k.bias") for name in CASES}


def assert_caught(case: Case, model: nn.Module, right: Plan, wrong: Plan, changed: str = "") -> None:
    """Both ways in which a wrong cut shows: sliced unlike its plan, and a plan that does not belong together."""
    sliced = slice_model(copy.deepcopy(model), wrong)
    same = all(map(torch.equal, sliced.parameters(), slice_model(copy.deepcopy(model), right).parameters()))
    same &= all(map(torch.equal, sliced.buffers(), slice_model(copy.deepcopy(model), right).buffers()))
    if not same and (case.name, changed) not in NO_EFFECT:  # of equal values, any are the right ones
        unlike = verify_pruning(model, sliced, right, case.inputs(2))
        assert not unlike.passed, f"{changed} sliced unlike its plan"
    apart = verify_pruning(model, sliced, wrong, case.inputs(2))
    assert not apart.passed, f"{changed} does not belong to the rest of the plan"


PLANTED = [name for name, case in CASES.items() if case.prunes]


@pytest.mark.parametrize("name", PLANTED)
def test_one_index_shifted_in_any_one_tensor_is_caught(name: str) -> None:
    case = CASES[name]
    model, _, pruner = prune(case)
    plan = pruner.plan
    assert plan is not None
    planted = {cut.parameter: shift_cut(plan, index) for index, cut in enumerate(plan.cuts)}
    assert any(planted.values()), "nothing could be planted"
    for parameter, wrong in planted.items():
        if wrong is not None:
            assert_caught(case, model, plan, wrong, parameter)


@pytest.mark.parametrize("name", ["plain_cnn", "residual", "dense", "shuffle", "flatten_nhwc", "group_norm", "grouped"])
def test_the_tests_own_oracle_catches_them_too(name: str) -> None:
    case = CASES[name]
    model, _, pruner = prune(case)
    assert pruner.plan is not None
    for wrong in filter(None, (shift_cut(pruner.plan, index) for index in range(len(pruner.plan.cuts)))):
        sliced = slice_model(copy.deepcopy(model), wrong)
        assert difference_from_masked(model, sliced, pruner.plan, case.inputs(2), case.kept_like) > 1e-6


def test_channels_in_another_order_are_caught() -> None:
    """LayerNorm weights that come out permuted run with the right shapes."""
    case = CASES["layer_norm"]
    model, pruned, pruner = prune(case)
    assert pruner.plan is not None
    with torch.no_grad():
        pruned.norm.weight.copy_(pruned.norm.weight.flip(0))
    assert not verify_pruning(model, pruned, pruner.plan, case.inputs(2)).passed


def test_the_same_order_everywhere_is_not_what_the_plan_says() -> None:
    """A consistent permutation computes the same function, and is accepted as such."""
    case = CASES["no_bias"]
    model, pruned, pruner = prune(case)
    assert pruner.plan is not None
    with torch.no_grad():
        pruned.conv1.weight.copy_(pruned.conv1.weight.flip(0))
        pruned.conv2.weight.copy_(pruned.conv2.weight.flip(1))
    assert difference_from_masked(model, pruned, pruner.plan, case.inputs(2)) < 1e-9


@pytest.mark.parametrize("zeroed", ["fc.weight", "bn1.weight", "conv2.weight"])
def test_zeros_in_the_weights_hide_nothing(zeroed: str) -> None:
    case = dataclasses.replace(CASES["plain_cnn"], build=PlainCnn)
    model = case.make()
    nn.init.zeros_(model.get_parameter(zeroed))
    pruner = StructuredPruner(model, case.inputs(2), RandomImportance(), 0.3)
    pruner.prune()
    assert pruner.verification is not None and pruner.verification.passed and pruner.plan is not None
    for index, cut in enumerate(pruner.plan.cuts):
        wrong = shift_cut(pruner.plan, index)
        assert wrong is not None
        assert_caught(case, model, pruner.plan, wrong, cut.parameter)


def test_default_initialisation_hides_nothing() -> None:
    """Norms at ones and zeros, statistics at zeros and ones: any order of them looks right."""
    case = CASES["plain_cnn"]
    torch.manual_seed(0)
    model = PlainCnn().eval()
    pruner = StructuredPruner(model, case.inputs(2), RandomImportance(), 0.3)
    pruner.prune()
    assert pruner.plan is not None
    for index in range(len(pruner.plan.cuts)):
        wrong = shift_cut(pruner.plan, index)
        assert wrong is not None
        assert_caught(case, model, pruner.plan, wrong)


def test_a_cut_left_out_or_of_another_size_is_caught() -> None:
    case = CASES["plain_cnn"]
    model, pruned, pruner = prune(case)
    plan = pruner.plan
    assert plan is not None
    fewer = dataclasses.replace(plan, cuts=tuple(c for c in plan.cuts if c.parameter != "bn1.bias"))
    assert not verify_pruning(model, pruned, fewer, case.inputs(2)).passed
    assert not verify_pruning(model, copy.deepcopy(model), plan, case.inputs(2)).passed
    assert not verify_pruning(model, pruned, Plan(), case.inputs(2)).passed
    assert verify_pruning(model, copy.deepcopy(model), Plan(), case.inputs(2)).passed


def test_a_changed_weight_buffer_or_constant_is_caught() -> None:
    case = CASES["plain_cnn"]
    for change in (
        lambda m: m.fc.bias.add_(1e-6),
        lambda m: m.conv1.weight[0, 0, 0, 0].mul_(1.0001),
        lambda m: m.bn1.running_var.mul_(1.001),
        lambda m: setattr(m.bn1, "eps", 1e-3),
    ):
        model, pruned, pruner = prune(case)
        assert pruner.plan is not None
        with torch.no_grad():
            change(pruned)
        assert not verify_pruning(model, pruned, pruner.plan, case.inputs(2)).passed


# ------------------------------------------------------------------------------------- planted bugs in the engine


def shifted(rule: Callable[..., list[Labelled]]) -> Callable[..., list[Labelled]]:
    """A rule whose labels of the last field come out one place further on."""

    def shift(*arguments: Any) -> list[Labelled]:
        return [
            Labelled(v.shape, {axis: np.roll(labels, 1, axis) for axis, labels in v.fields.items()}, v.is_weight)
            for v in rule(*arguments)
        ]

    return shift


@pytest.mark.parametrize(
    ("kind", "name", "group"),
    [
        ("Flip", "flip", "conv1"),
        ("Cat", "dense", "conv"),
        ("View", "flatten_nchw", "conv"),
        ("Transpose", "attention_separate", ""),
        ("ConstantPadNd", "option_a", "stem"),
        ("Relu", "plain_cnn", "conv"),
    ],
)
def test_a_rule_that_shifts_its_labels_by_one_is_caught_and_changes_nothing(
    kind: str, name: str, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    model = case.make()
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setitem(rules.RULES, kind, shifted(rules.RULES[kind]))
    pruner = StructuredPruner(model, case.inputs(2), RandomImportance(1), 0.3, inplace=True)
    if not pruner.groups or all(g.bundles < 2 for g in pruner.groups):
        return  # the shift froze everything: refused, not wrong
    with pytest.raises(VerificationError, match=f"the group at fault is {group}"):
        pruner.prune()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_without_the_proof_the_planted_bug_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs and has the right shapes: only the proof sees it."""
    case = CASES["flip"]
    monkeypatch.setitem(rules.RULES, "Flip", shifted(rules.RULES["Flip"]))
    model = case.make()
    pruner = StructuredPruner(model, case.inputs(2), RandomImportance(1), 0.3, verify=False)
    pruned = pruner.prune()
    assert_runs(pruned, case.inputs(2))
    assert pruner.plan is not None and pruner.verification is None
    assert difference_from_masked(model, pruned, pruner.plan, case.inputs(2)) > 1e-3


# -------------------------------------------------------------------------------------------------- what it leaves


def test_verifying_leaves_both_models_as_they_were() -> None:
    case = CASES["plain_cnn"]
    model, pruned, pruner = prune(case)
    model.train()
    pruned.conv1.weight.grad = torch.ones_like(pruned.conv1.weight)
    kept = [copy.deepcopy(m.state_dict()) for m in (model, pruned)]
    tensors = [list(m.state_dict(keep_vars=True).values()) for m in (model, pruned)]
    inputs, state = case.inputs(2), torch.get_rng_state()
    assert pruner.plan is not None
    verify_pruning(model, pruned, pruner.plan, inputs)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training and not pruned.training
    assert bool((pruned.conv1.weight.grad == 1).all())
    for each, before, objects in zip((model, pruned), kept, tensors, strict=True):
        now = each.state_dict(keep_vars=True)
        assert all(torch.equal(now[key], before[key]) for key in before)
        assert all(a is b for a, b in zip(now.values(), objects, strict=True))


def test_the_result_says_what_it_measured() -> None:
    case = CASES["plain_cnn"]
    model, pruned, pruner = prune(case)
    assert pruner.plan is not None
    result = verify_pruning(model, pruned, pruner.plan, case.inputs(2), runs=2)
    assert result.passed and result.dtype == "float64" and result.tolerance == 1e-9 and result.runs == 2
    assert result.max_relative_error < 1e-12
    assert "equal to the masked original" in str(result)


class _InsistsOnFloat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)) * torch.rand(1).float().to(torch.float32).view(1)).to(torch.float32)


class _OnlyFloat(_InsistsOnFloat):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return self.fc2(torch.relu(self.fc1(x)))


def test_a_forward_that_insists_on_float32_is_proven_in_float32() -> None:
    model = randomise(_OnlyFloat())
    pruner = StructuredPruner(model, torch.randn(2, 6), pruning_ratio=0.5)
    pruner.prune()
    assert pruner.verification is not None
    assert (pruner.verification.dtype, pruner.verification.tolerance) == ("float32", 1e-4)


def test_a_forward_that_draws_random_numbers_is_proven_on_the_same_ones() -> None:
    pruner = StructuredPruner(randomise(_InsistsOnFloat()), torch.randn(2, 6), pruning_ratio=0.5)
    pruner.prune()
    assert pruner.verification is not None and pruner.verification.passed


def cuts_of(pairs: Sequence[tuple[str, int, int, tuple[int, ...]]]) -> Plan:
    """A plan from (parameter, dim, size, dropped)."""
    return Plan(cuts=tuple(TensorCut(*pair) for pair in pairs))


@pytest.mark.parametrize(
    ("consumer", "passes"), [((1,), True), ((2,), False), ((0,), False)], ids=["same", "next", "previous"]
)
def test_a_producer_and_its_consumer_must_drop_the_same_index(consumer: tuple[int, ...], passes: bool) -> None:
    model = randomise(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    plan = cuts_of([("0.weight", 0, 4, (1,)), ("0.bias", 0, 4, (1,)), ("2.weight", 1, 4, consumer)])
    pruned = slice_model(copy.deepcopy(model), plan)
    assert verify_pruning(model, pruned, plan, torch.randn(2, 3)).passed is passes
