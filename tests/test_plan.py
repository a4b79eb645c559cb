"""A plan is inert data: it survives JSON, refuses damage, and two plans in a row are one."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from nets import CASES
from torch import nn

from cleanai import PlanError, RandomImportance, StructuredPruner, slice_model
from cleanai.plan import AttributeChange, GroupCut, Plan, TensorCut, shorten_indices

EXAMPLE = Plan(
    cuts=(TensorCut("a.weight", 0, 6, (1, 4)), TensorCut("b.weight", 1, 6, (1, 4), "input")),
    groups=(
        GroupCut("a", "channels", 6, (1, 4), 1, 0.3, (0.5, 0.1, 0.7, 0.9, 0.2, 1.0)),
        GroupCut("c", "heads", 2, (), 4, None, None, "kept"),
    ),
    attributes=(AttributeChange("", "split", 1, 6, 4),),
    settings={"importance": "magnitude", "pruning_ratio": 0.3},
)


def test_json_gives_the_same_plan_back() -> None:
    assert Plan.from_json(EXAMPLE.to_json()) == EXAMPLE
    assert Plan.from_json(Plan().to_json()) == Plan()


@pytest.mark.parametrize("name", ["plain_cnn", "attention_sdpa", "split_attribute", "bare_parameters"])
def test_a_real_plan_survives_json_exactly(name: str) -> None:
    case = CASES[name]
    plan = StructuredPruner(case.make(), case.inputs(2), pruning_ratio=0.3).make_plan()
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert json.loads(again.to_json()) == json.loads(plan.to_json())


def damage(**changes: Any) -> str:
    """The example as JSON with some entries replaced; a dotted key reaches into the first cut, group or attribute."""
    data = json.loads(EXAMPLE.to_json())
    for key, value in changes.items():
        part, _, entry = key.partition("__")
        if entry:
            data[part][0][entry] = value
        else:
            data[part] = value
    return json.dumps(data)


DAMAGED = {
    "no JSON": "{",
    "nothing": "",
    "another thing": "[1, 2]",
    "a number": "3",
    "no format": json.dumps({"cuts": [], "groups": [], "attributes": [], "settings": {}}),
    "a later format": damage(format="cleanai-plan-99"),
    "no cuts": json.dumps({"format": "cleanai-plan-1", "groups": [], "attributes": [], "settings": {}}),
    "cuts that are no list": damage(cuts=3),
    "cuts of text": damage(cuts=["a.weight"]),
    "an unknown entry": damage(cuts__code="import os"),
    "a missing entry": json.dumps({**json.loads(EXAMPLE.to_json()), "cuts": [{"parameter": "a", "dropped": []}]}),
    "indices that are text": damage(cuts__dropped="14"),
    "indices that are fractions": damage(cuts__dropped=[1.5]),
    "indices that are true": damage(cuts__dropped=[True]),
    "indices out of order": damage(cuts__dropped=[4, 1]),
    "indices twice": damage(cuts__dropped=[1, 1]),
    "a negative index": damage(cuts__dropped=[-1, 4]),
    "an index too large": damage(cuts__dropped=[1, 6]),
    "all indices": damage(cuts__dropped=[0, 1, 2, 3, 4, 5]),
    "a name that is a number": damage(cuts__parameter=7),
    "a size that is text": damage(cuts__size="6"),
    "a dimension that is text": damage(cuts__dim="0"),
    "a negative dimension": damage(cuts__dim=-1),
    "a tensor twice": json.dumps(
        {**json.loads(EXAMPLE.to_json()), "cuts": [json.loads(EXAMPLE.to_json())["cuts"][0]] * 2}
    ),
    "scores that are text": damage(groups__scores=["high"]),
    "settings that are a list": damage(settings=[1]),
    "an attribute without a name": damage(attributes__attribute=None),
    "an attribute of text": damage(attributes__new="4"),
    "a group of text size": damage(groups__size="6"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_plan_is_an_error_of_its_own(what: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(DAMAGED[what])


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.text(max_size=3), st.just([]), st.just({})
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_any_one_entry_damaged_is_a_plan_error_or_a_plan_that_says_the_same(data: st.DataObject) -> None:
    """Whatever replaces whatever: never another exception."""
    tree = json.loads(EXAMPLE.to_json())
    spot: Any = tree
    while True:
        key = data.draw(st.sampled_from(list(spot) if isinstance(spot, dict) else list(range(len(spot)))))
        child = spot[key]
        if isinstance(child, dict | list) and child and data.draw(st.booleans()):
            spot = child
            continue
        spot[key] = data.draw(JUNK)
        break
    try:
        plan = Plan.from_json(json.dumps(tree))
    except PlanError:
        return
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()
    str(plan), repr(plan)


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EXAMPLE.cuts = ()  # ty: ignore[invalid-assignment]


def test_what_is_kept_and_how_much() -> None:
    assert EXAMPLE.kept("a.weight", 0) == (0, 2, 3, 5)
    assert (EXAMPLE.units, EXAMPLE.dropped_units, EXAMPLE.is_empty) == (14, 2, False)
    assert Plan(cuts=(TensorCut("a", 0, 3, ()),)).is_empty
    with pytest.raises(KeyError, match="does not cut"):
        EXAMPLE.kept("a.weight", 1)


def test_it_prints_what_goes() -> None:
    assert repr(EXAMPLE) == "Plan(2 of 14 channels in 1 of 2 groups)"
    assert str(EXAMPLE).splitlines() == [
        "Plan(2 of 14 channels in 1 of 2 groups)",
        "  a  6 -> 4 channels  1, 4",
        "  c  2 heads  kept",
        "  .split[1]: 6 -> 4",
    ]
    assert shorten_indices(range(24)) == "0, 1, 2, 3, 4, 5, 6, 7, … (24)"


def test_two_plans_compare_by_group() -> None:
    other = dataclasses.replace(EXAMPLE, groups=(dataclasses.replace(EXAMPLE.groups[0], dropped=(1, 2)),))
    assert EXAMPLE.compare(other) == {"a": ((4,), (2,))}
    assert EXAMPLE.compare(EXAMPLE) == {}


# ------------------------------------------------------------------------------------------------------ composition


@st.composite
def subsets(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    """Some indices below a size, never all."""
    chosen = draw(st.sets(st.integers(0, size - 1), max_size=size - 1))
    return tuple(sorted(chosen))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data(), st.integers(2, 12))
def test_two_cuts_in_a_row_are_one(data: st.DataObject, size: int) -> None:
    first = data.draw(subsets(size))
    second = data.draw(subsets(size - len(first)))
    a = Plan(cuts=(TensorCut("w", 0, size, first),), groups=(GroupCut("w", "channels", size, first),))
    left = size - len(first)
    b = Plan(cuts=(TensorCut("w", 0, left, second),), groups=(GroupCut("w", "channels", left, second),))
    both = a.then(b)
    expected = np.delete(np.delete(np.arange(size), list(first)), list(second))
    assert both.kept("w", 0) == tuple(expected.tolist())
    assert both.groups[0].dropped == both.cuts[0].dropped and both.groups[0].size == size


class _Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(7, 5)), nn.Parameter(torch.randn(5))
        self.sizes = [7, 5]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_applying_a_composed_plan_is_applying_both(data: st.DataObject) -> None:
    model = _Weights()
    shapes = {("w", 0): 7, ("w", 1): 5, ("v", 0): 5}
    plans = []
    for _ in range(3):
        places = data.draw(st.lists(st.sampled_from(sorted(shapes)), unique=True))
        cuts = []
        attributes = []
        for place in places:
            dropped = data.draw(subsets(shapes[place]))
            cuts.append(TensorCut(place[0], place[1], shapes[place], dropped))
            new = shapes[place] - len(dropped)
            if place[0] == "w" and dropped:
                attributes.append(AttributeChange("", "sizes", place[1], shapes[place], new))
            shapes[place] = new
        plans.append(Plan(cuts=tuple(cuts), attributes=tuple(attributes)))
    step_by_step: Any = copy.deepcopy(model)
    for plan in plans:
        slice_model(step_by_step, plan)
    at_once: Any = slice_model(copy.deepcopy(model), plans[0].then(plans[1]).then(plans[2]))
    otherwise: Any = slice_model(copy.deepcopy(model), plans[0].then(plans[1].then(plans[2])))
    for other in (at_once, otherwise):
        assert torch.equal(step_by_step.w, other.w) and torch.equal(step_by_step.v, other.v)
        assert step_by_step.sizes == other.sizes


@pytest.mark.parametrize("name", ["plain_cnn", "residual", "dense", "attention_index", "split_attribute", "gated_mlp"])
def test_a_plan_of_a_pruned_model_follows_the_first(name: str) -> None:
    """Two real rounds: the composed plan takes the original to where both took it, and stays in the first numbering."""
    case = CASES[name]
    model = case.make()
    first = StructuredPruner(model, case.inputs(2), RandomImportance(1), 0.3)
    once = first.prune()
    second = StructuredPruner(once, case.inputs(2), RandomImportance(2), 0.3)
    twice = second.prune()
    assert first.plan is not None and second.plan is not None
    at_once = slice_model(copy.deepcopy(model), first.plan.then(second.plan))
    inputs = case.inputs(2)
    assert torch.equal(at_once(inputs), twice(inputs))
    again = Plan.from_json(first.plan.then(second.plan).to_json())
    assert again == first.plan.then(second.plan)


def test_plans_that_do_not_follow_each_other_are_an_error() -> None:
    with pytest.raises(PlanError, match="do not follow each other"):
        EXAMPLE.then(EXAMPLE)
    with pytest.raises(PlanError):
        EXAMPLE.then(Plan(attributes=(AttributeChange("", "split", 1, 6, 4),)))


def test_a_later_group_of_other_units_is_a_record_of_its_own() -> None:
    """What were several groups may have to shrink alike later: the cuts compose, the records stay apart."""
    first = Plan((TensorCut("w", 0, 8, (1, 5)),), (GroupCut("w", "channels", 8, (1, 5)),))
    joined = Plan((TensorCut("w", 0, 6, (0,)), TensorCut("v", 0, 6, (5,))), (GroupCut("w", "channels", 12, (0, 11)),))
    both = first.then(joined)
    assert both.cuts == (TensorCut("w", 0, 8, (0, 1, 5)), TensorCut("v", 0, 6, (5,)))
    assert both.groups == (*first.groups, *joined.groups)
    after = Plan((TensorCut("w", 0, 5, (4,)), TensorCut("v", 0, 5, (0,))), (GroupCut("w", "channels", 10, (4, 5)),))
    assert both.then(after).groups == (*first.groups, GroupCut("w", "channels", 12, (0, 5, 6, 11)))
    assert first.then(Plan(groups=(GroupCut("w", "channels", 12, ()),))).groups == first.groups


def test_composing_with_nothing_changes_nothing() -> None:
    assert EXAMPLE.then(Plan(settings=EXAMPLE.settings)).cuts == EXAMPLE.cuts
    assert Plan().then(EXAMPLE) == EXAMPLE


def test_scores_keep_their_places_through_two_rounds() -> None:
    later = Plan(groups=(GroupCut("a", "channels", 4, (0,), 1, 0.5, (1.0, 2.0, 3.0, 4.0)),))
    (group, _) = Plan(groups=EXAMPLE.groups).then(later).groups
    assert group.dropped == (0, 1, 4)
    assert group.scores == (1.0, 0.1, 2.0, 3.0, 0.2, 4.0)
