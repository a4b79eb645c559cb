"""Previews and trials: what is shown before a cut is what the cut then does, and nothing of it is a second opinion."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import CASES
from nets_layers import LanguageModel
from nets_operations import OneHot
from torch import nn

from cleanai import (
    InputError,
    MixedImportance,
    StructuredPruner,
    WeightActivationImportance,
    count_macs,
    evaluate_model,
)
from cleanai.coupling import solve_coupling
from cleanai.evaluate import count_parameters
from cleanai.models import digits_resnet, resnet18_cifar
from cleanai.preview import Previewer, Trial, can_score, collect_for, list_criteria, tabulate_trials, try_settings
from cleanai.preview_plot import plot_trials

assert LanguageModel and OneHot  # importing their files registers the networks
IMAGE = torch.zeros(1, 1, 8, 8)
NAMES = (
    *("dense", "concat_group_norm", "split_attribute", "view_attribute", "shuffle", "unet", "grouped", "einsum"),
    *(
        "encoder_layer",
        "multihead_attention",
        "lstm",
        "language_model",
        "one_hot",
        "message_passing",
        "custom_function",
    ),
)
VARIED = {
    "importance": st.sampled_from(["magnitude", "wanda", "coverage", "weight_activation"])
    | st.floats(0, 1).map(lambda alpha: WeightActivationImportance(alpha, 1 - alpha)),
    "pruning_ratio": st.floats(0, 0.95),
    "target": st.sampled_from(["channels", "params", "macs"]),
    "global_pruning": st.booleans(),
}


def make_batches(count: int = 2, seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(16, 1, 8, 8, generator=generator) for _ in range(count)]
    return [(image, torch.arange(16) % 10) for image in images]


def make_pruner(**options: Any) -> StructuredPruner:
    torch.manual_seed(0)
    pruner = StructuredPruner(digits_resnet(4), IMAGE, **options)
    pruner.collect_activations(make_batches(), progress=False)
    return pruner


@pytest.fixture(scope="module")
def previewer() -> Previewer:
    return Previewer(make_pruner())


@pytest.mark.parametrize("name", NAMES)
def test_a_preview_is_the_plan_and_the_costs_of_the_pruned_model(name: str) -> None:
    model, inputs = CASES[name].make(), CASES[name].inputs(2)
    asked: dict[str, Any] = {"pruning_ratio": 0.5, "target": "macs", "global_pruning": True}
    preview = Previewer(StructuredPruner(model, inputs)).preview(**asked)
    fresh = StructuredPruner(model, inputs, **asked)
    pruned = fresh.prune()
    assert fresh.plan == preview.plan
    assert (preview.parameters, preview.macs) == (count_parameters(pruned), count_macs(pruned, inputs))
    assert (preview.parameters_before, preview.macs_before) == (count_parameters(model), count_macs(model, inputs))


@settings(max_examples=25, deadline=None)
@given(st.fixed_dictionaries({}, optional=VARIED))
def test_whatever_is_asked_a_preview_is_what_a_fresh_pruner_plans(previewer: Previewer, asked: dict[str, Any]) -> None:
    preview = previewer.preview(**asked)
    fresh = StructuredPruner(previewer.pruner.model, IMAGE, **asked)
    fresh.collect_activations(make_batches(), progress=False)
    assert preview.plan == fresh.make_plan()


def test_a_preview_changes_nothing(previewer: Previewer) -> None:
    pruner = previewer.pruner
    before = {name: value.clone() for name, value in pruner.model.state_dict().items()}
    rules, groups = pruner.analysis.rules, pruner.groups
    previewer.preview(pruning_ratio=0.9, target="macs", global_pruning=True)
    assert all(torch.equal(value, before[name]) for name, value in pruner.model.state_dict().items())
    assert pruner.analysis.rules == rules and pruner.groups is groups
    assert pruner.plan is None and pruner.pruning_ratio == 0.5 and pruner.target == "channels"


def test_new_weights_and_new_data_are_noticed() -> None:
    pruner = make_pruner(importance="weight_activation")
    previewer = Previewer(pruner)
    first = previewer.preview().plan
    assert previewer.preview().plan == first
    with torch.no_grad():
        dict(pruner.model.named_parameters())["conv1.weight"].mul_(torch.rand(4, 1, 1, 1))
    second = previewer.preview().plan
    assert second == pruner.vary().make_plan() != first
    pruner.collect_activations(make_batches(seed=7), progress=False)
    assert previewer.preview().plan == pruner.vary().make_plan() != second


def test_a_scorer_of_ones_own_is_asked_every_time() -> None:
    seen: list[str] = []

    def score(group: Any) -> torch.Tensor:
        seen.append(group.name)
        return torch.arange(group.size) * 1.0

    previewer = Previewer(make_pruner(importance=score))
    preview = previewer.preview(pruning_ratio=0.25)
    assert [cut.dropped for cut in preview.plan.groups][:2] == [(0,), (0,)]
    count = len(seen)
    previewer.preview(pruning_ratio=0.5)
    assert len(seen) == 2 * count


def test_the_groups_of_a_preview_are_those_of_a_report() -> None:
    pruner = make_pruner(pruning_ratio=0.5)
    pruner.prune()
    assert Previewer(pruner).preview().groups == pruner.report().groups


def test_the_table_counts() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    table = Previewer(StructuredPruner(net, torch.zeros(1, 3))).preview(pruning_ratio=0.25).to_table()
    assert table.rows == (
        ("Channels", "8", "6", "75.0 %"),
        ("Parameters", "50", "38", "76.0 %"),
        ("MACs", "40", "30", "75.0 %"),
    )


def test_choosing_is_quick_enough_for_a_slider() -> None:
    pruner = StructuredPruner(resnet18_cifar(), torch.zeros(1, 3, 32, 32), target="macs", global_pruning=True)
    previewer = Previewer(pruner)
    previewer.remember(["magnitude"])
    spent = []
    for ratio in (0.2, 0.3, 0.4, 0.5, 0.6):
        start = time.process_time()
        previewer.preview(pruning_ratio=ratio)
        spent.append(time.process_time() - start)
    assert min(spent) < 0.1  # 0.02 s on a quiet core


# --------------------------------------------------------------------------------------------- the pruner's own part


def test_a_varied_pruner_keeps_the_rest() -> None:
    pruner = make_pruner(pruning_ratio=0.25, min_channels=3, inplace=True)
    other = pruner.vary(importance="wanda", target="params")
    assert (other.pruning_ratio, other.limits.min_channels, other.target) == (0.25, 3, "params")
    assert other.statistics is pruner.statistics and pruner.importance_name == "magnitude"
    model = other.prune()
    assert model is not pruner.model and count_parameters(pruner.model) > count_parameters(model)
    assert pruner.plan is None and pruner.prune() is pruner.model


def test_what_one_pruner_learns_of_the_model_the_other_does_not() -> None:
    pruner = make_pruner()
    other, groups = pruner.vary(), len(pruner.groups)
    other.analysis.coupling.freeze_group(other.groups[0], "for a test")
    solve_coupling(other.analysis.coupling)
    assert len(other.groups) < groups == len(pruner.groups)
    assert other.analysis.fitting.coupling is other.analysis.coupling


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterative_steps": 2}, "iterative_steps is above 1: use make_plan"),
        ({"depth_pruning_ratio": 0.3}, "blocks are dropped"),
        ({"target": "latency"}, "latency is measured"),
    ],
)
def test_what_scores_do_not_settle_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_pruner(**options).select_units()


def test_mistakes_say_what_to_do() -> None:
    pruner = StructuredPruner(digits_resnet(4), IMAGE)
    with pytest.raises(InputError, match="'ratio' is no setting that can be varied; use importance, pruning_ratio"):
        pruner.vary(ratio=0.3)
    with pytest.raises(InputError, match="needs activations: call collect_activations"):
        Previewer(pruner).preview(importance="wanda")
    with pytest.raises(InputError, match="not those of the groups, see conv1"):
        pruner.select_units({name: scores for name, scores in pruner.score_groups().items() if name != "conv1"})
    with pytest.raises(InputError, match="must lie in"):
        Previewer(pruner).preview(pruning_ratio=1.5)


# ------------------------------------------------------------------------------------------------- data and trials


def test_one_pass_collects_for_several_criteria() -> None:
    pruner = StructuredPruner(digits_resnet(4), IMAGE, "bn_scale")
    names = ["wanda", "coverage", "taylor"]
    ready = collect_for(pruner, names, make_batches(), make_batches(), progress=False)
    assert pruner.statistics is None and pruner.gradients is None
    assert ready.importance_name == "bn_scale" and set(names) < set(list_criteria(ready))
    for name in names:
        alone = StructuredPruner(pruner.model, IMAGE, name)
        alone.collect_activations(make_batches(), progress=False)
        alone.collect_gradients(make_batches(), progress=False)
        assert ready.vary(importance=name).make_plan() == alone.make_plan()


def test_only_what_was_collected_can_score() -> None:
    pruner = StructuredPruner(digits_resnet(4), IMAGE)
    assert {"magnitude", "random"} <= set(list_criteria(pruner))
    assert not {"wanda", "taylor", "hessian", "reconstruction"} & set(list_criteria(pruner))
    statistics = pruner.collect_activations(make_batches(), progress=False)
    assert "wanda" in list_criteria(pruner) and "reconstruction" not in list_criteria(pruner)
    counted = WeightActivationImportance()
    assert can_score(counted, statistics, None)
    other = MixedImportance([("coverage_frequency", 1.0)])
    assert can_score(other, statistics, None) and not can_score(MixedImportance({"hessian": 1.0}), statistics, None)


def test_a_trial_is_pruned_proven_repaired_and_measured() -> None:
    pruner = make_pruner()
    before = {name: value.clone() for name, value in pruner.model.state_dict().items()}
    data = make_batches()
    trial = try_settings(pruner, data, pruning_ratio=0.4, target="macs", recover="batchnorm")
    preview = Previewer(pruner).preview(pruning_ratio=0.4, target="macs")
    assert (trial.metrics.parameters, trial.metrics.macs) == (preview.parameters, preview.macs)
    assert trial.metrics.accuracy == evaluate_model(trial.model, data).accuracy
    assert trial.before.accuracy == evaluate_model(pruner.model, data).accuracy
    assert trial.verification is not None and trial.verification.passed
    bare = try_settings(pruner, pruning_ratio=0.4, target="macs", before=trial.before)
    assert bare.before is trial.before and bare.metrics.accuracy is None
    repaired, plain = trial.model.state_dict(), bare.model.state_dict()
    assert not torch.equal(repaired["bn1.running_var"], plain["bn1.running_var"])
    assert all(torch.equal(value, before[name]) for name, value in pruner.model.state_dict().items())


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    pruner, data = make_pruner(), make_batches()
    first = try_settings(pruner, data, pruning_ratio=0.25, label="small")
    return [first, try_settings(pruner, data, before=first.before, pruning_ratio=0.75, global_pruning=True)]


def test_trials_as_a_table(trials: list[Trial]) -> None:
    table = tabulate_trials(trials)
    assert [row[:2] for row in table.rows] == [("original", "—"), ("1", "small"), ("2", "magnitude")]
    assert [row[2:6] for row in table.rows[1:]] == [
        ("25 %", "channels", "local", "none"),
        ("75 %", "channels", "global", "none"),
    ]
    assert {row[-1] for row in table.rows[1:]} == {"proven"}
    turkish = tabulate_trials(trials, "tr")
    assert turkish.columns[:2] == ("no", "ölçüt") and turkish.rows[2][4] == "genel"


def test_trials_as_points(trials: list[Trial]) -> None:
    axes = plot_trials(trials).axes[0]
    points = {(x, y) for line in axes.lines[1:] for x, y in np.asarray(line.get_xydata()).tolist()}
    expected = {(100 * trial.macs_kept, trial.metrics.accuracy) for trial in trials}
    assert points == {(100.0, trials[0].before.accuracy), *expected}
    with pytest.raises(InputError, match="give try_settings a test_loader"):
        plot_trials([try_settings(make_pruner())])
