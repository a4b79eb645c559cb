"""Sensitivity: each point is what a really sliced model does, and ratios found from it keep their promise."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from test_plots import _draw, _inside
from test_select import Attention
from torch import Tensor, nn

from cleanai import InputError, RandomImportance, Sensitivity, StructuredPruner, analyze_sensitivity, auto_ratio
from cleanai.evaluate import count_macs, count_parameters
from cleanai.models import digits_resnet
from cleanai.plots import plot_sensitivity
from cleanai.sensitivity import SensitivityPoint


class Known(nn.Module):
    """Two layers of units of which the first half of the first is read not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        with torch.no_grad():
            self.b.weight[:, :4] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def make_known() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    return Known().eval(), torch.randn(32, 4)


def lowest_first(group: Any) -> Tensor:
    return torch.arange(group.size, dtype=torch.float64)


def test_every_point_is_what_the_sliced_model_does() -> None:
    model, x = make_known()
    before = copy.deepcopy(model.state_dict())
    pruner = StructuredPruner(model, x[:2], lowest_first, 0.5)
    seen: list[tuple[int, int]] = []

    def evaluate(pruned: Any) -> float:
        seen.append((pruned.a.out_features, pruned.b.out_features))
        with torch.no_grad():
            for parameter in pruned.parameters():
                parameter.zero_()  # what an evaluation does to its model concerns nobody else
        return 10.0 * pruned.a.out_features + pruned.b.out_features

    found = analyze_sensitivity(pruner, evaluate, calibration=[x[:20], x[20:]], ratios=(0.25, 0.5), progress=False)
    assert seen == [(8, 8), (6, 8), (4, 8), (8, 6), (8, 4)]
    assert found.accuracy == 88.0 and found.samples == 32 and found.groups == ("a", "b")
    assert [(p.group, p.ratio, p.removed, p.accuracy) for p in found.points] == [
        ("a", 0.25, 0.25, 68.0),
        ("a", 0.5, 0.5, 48.0),
        ("b", 0.25, 0.25, 86.0),
        ("b", 0.5, 0.5, 84.0),
    ]
    assert found.points[0].macs == pytest.approx(2 * (4 + 8) / (32 + 64 + 24))
    assert found.points[2].params == pytest.approx(2 * (8 + 1 + 3) / (40 + 72 + 27))
    assert max(found.points[0].error, found.points[1].error) < 1e-6  # nobody reads those units
    with torch.no_grad():
        hidden = torch.relu(model.b(torch.relu(model.a(x))))
        lost = hidden[:, :2] @ model.c.weight[:, :2].T
        expected = float(lost.double().norm() / model(x).double().norm())
    assert found.points[2].error == pytest.approx(expected, rel=1e-5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_an_accuracy_can_come_from_a_loader_and_the_same_cut_is_measured_once() -> None:
    model, x = make_known()
    loader = [(x, model(x).argmax(1))]
    pruner = StructuredPruner(model, x[:2], lowest_first, 0.5, round_to=4)
    found = analyze_sensitivity(pruner, loader, ratios=(0.1, 0.4, 0.5, 0.6), progress=False)
    assert found.accuracy == 100.0
    assert [point.removed for point in found.points_of("a")] == [0.0, 0.5, 0.5, 0.5]  # multiples of 4 only
    assert {point.accuracy for point in found.points_of("a")} == {100.0}
    assert found.points_of("b")[1] == replace(found.points_of("b")[2], ratio=0.4)


@pytest.mark.parametrize("net", ["attention", "residual"])
def test_every_group_of_a_network_can_be_cut_alone(net: str) -> None:
    model, x = (
        (Attention(), torch.randn(2, 7, 12)) if net == "attention" else (digits_resnet(), torch.randn(2, 1, 8, 8))
    )
    pruner = StructuredPruner(model.eval(), x, RandomImportance(), 0.5)
    found = analyze_sensitivity(pruner, ratios=(0.3, 0.6), progress=False)
    assert found.groups == tuple(group.name for group in pruner.groups)
    assert all(point.error > 0 for point in found.points if point.removed)
    for group in pruner.groups:
        saved = [point.params for point in found.points_of(group.name)]
        assert saved == sorted(saved)


def test_results_come_back_from_json_and_as_a_table() -> None:
    model, x = make_known()
    pruner = StructuredPruner(model, x[:2], "l2", 0.5)
    for evaluate in (None, lambda pruned: 1.0):
        found = analyze_sensitivity(pruner, evaluate, ratios=(0.25, 0.5), progress=False)
        assert Sensitivity.from_json(found.to_json()) == found
        frame = found.to_frame()
        assert list(frame.columns) == ["group", "ratio", "removed", "params", "macs", "error", "accuracy"]
        assert len(frame) == 4 and "<table" in found._repr_html_()
    assert repr(found) == "Sensitivity(2 groups, 4 points, 2 samples)"
    for damaged in ("", "[]", '{"format": "other"}', found.to_json().replace('"ratio"', '"share"')):
        with pytest.raises(InputError, match="no sensitivity that to_json wrote"):
            Sensitivity.from_json(damaged)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ratios": (0.5, 1.0)}, r"ratios is 1.0; it must lie in \[0, 1\)"),
        ({"ratios": ()}, "give shares of a group's units"),
        ({"calibration": []}, "the calibration loader is empty"),
        ({"evaluate": 3}, "evaluate is a int; give a function"),
        ({"evaluate": iter([])}, "that can be gone through many times"),
        ({"evaluate": lambda model: "good"}, "evaluate returned 'good'"),
        ({"evaluate": [(torch.randn(2, 4), torch.randn(2, 3))]}, "no class labels"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], words: str) -> None:
    model, x = make_known()
    with pytest.raises(InputError, match=words):
        analyze_sensitivity(StructuredPruner(model, x[:2], "l2", 0.5), progress=False, **arguments)


# ---------------------------------------------------------------------------------------------------- finding ratios


def curves(*groups: tuple[str, list[tuple[float, float, float]]], accuracy: float = 90.0) -> Sensitivity:
    """A sensitivity from (removed, saved, lost) for each group."""
    points = [
        SensitivityPoint(name, removed, removed, saved, saved, lost / 100, accuracy - lost)
        for name, rows in groups
        for removed, saved, lost in rows
    ]
    return Sensitivity(tuple(points), "l2", 1, accuracy)


def test_at_most_so_many_points_lost_goes_to_the_cheapest_savings_first() -> None:
    model, x = make_known()
    pruner = StructuredPruner(model, x[:2], "l2", 0.5)
    # a: 1 point for each 0.1 saved, then 8; b: 2 points for each 0.1, twice.
    found = curves(("a", [(0.25, 0.1, 1.0), (0.5, 0.2, 9.0)]), ("b", [(0.25, 0.1, 2.0), (0.5, 0.2, 4.0)]))
    expected = {0.0: (0, 0), 1.0: (0.25, 0), 3.0: (0.25, 0.25), 4.9: (0.25, 0.375), 5.0: (0.25, 0.5), 9.0: (0.375, 0.5)}
    for most, (a, b) in expected.items():
        assert auto_ratio(found, pruner, max_loss=most) == {"a": a, "b": b}, most
    assert auto_ratio(found, pruner, max_loss=100.0) == {"a": 0.5, "b": 0.5}


def test_a_dear_step_is_bridged_when_what_follows_is_free() -> None:
    model, x = make_known()
    pruner = StructuredPruner(model, x[:2], "l2", 0.5)
    found = curves(("a", [(0.25, 0.1, 3.0), (0.5, 0.4, 3.0)]), ("b", [(0.25, 0.1, 2.0), (0.5, 0.2, 4.0)]))
    assert auto_ratio(found, pruner, max_loss=3.0) == {"a": 0.5, "b": 0.0}  # 0.75 points per 0.1, not 3


def test_where_no_accuracy_is_lost_the_output_error_decides() -> None:
    model, x = make_known()
    pruner = StructuredPruner(model, x[:2], "l2", 0.5)
    found = curves(("a", [(0.5, 0.2, 0.0)]), ("b", [(0.5, 0.2, 0.0)]))
    points = [replace(p, error=0.9 if p.group == "a" else 0.1) for p in found.points]
    ratios = auto_ratio(Sensitivity(tuple(points), "l2", 1, 90.0), pruner, budget=0.2)
    assert ratios["b"] > ratios["a"]


@pytest.mark.parametrize("target", ["params", "macs", "channels"])
@pytest.mark.parametrize("budget", [0.2, 0.5])
def test_a_budget_is_met_and_the_ratios_can_be_used(target: str, budget: float) -> None:
    torch.manual_seed(0)
    model, x = digits_resnet().eval(), torch.randn(4, 1, 8, 8)
    pruner = StructuredPruner(model, x, "l2", 0.5)
    found = analyze_sensitivity(pruner, ratios=(0.2, 0.4, 0.6, 0.8), progress=False)
    ratios = auto_ratio(found, pruner, budget=budget, target=target)
    after: Any = StructuredPruner(model, x, "l2", 0.0, layer_pruning_ratios=ratios)
    pruned = after.prune()
    reached = {
        "params": 1 - count_parameters(pruned) / count_parameters(model),
        "macs": 1 - count_macs(pruned, x) / count_macs(model, x),
        "channels": after.plan.dropped_units / after.plan.units,
    }[target]
    assert reached == pytest.approx(budget, abs=0.02)
    gone = {cut.name: len(cut.dropped) / cut.size for cut in after.plan.groups}
    assert gone == pytest.approx(ratios)
    assert max(ratios.values()) <= 13 / 16 and len(set(ratios.values())) > 1


def test_groups_that_are_no_modules_can_be_named_in_ratios() -> None:
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(2, 7, 12)
    pruner: Any = StructuredPruner(model, x, "l2", 0.5)
    found = analyze_sensitivity(pruner, ratios=(0.25, 0.5), progress=False)
    ratios = auto_ratio(found, pruner, max_loss=10.0)
    assert any(name not in dict(model.named_modules()) for name in ratios)
    after: Any = StructuredPruner(model, x, "l2", 0.0, layer_pruning_ratios=ratios, iterative_steps=2)
    after.prune()
    gone = {cut.name: len(cut.dropped) / cut.size for cut in after.plan.groups}
    assert gone == pytest.approx(ratios)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give either budget .* or max_loss"),
        ({"budget": 0.5, "max_loss": 1.0}, "give either budget"),
        ({"budget": 1.5}, r"budget is 1.5; it must lie in \[0, 1\)"),
        ({"budget": 0.95}, "out of reach; the ratios that were tried save"),
        ({"max_loss": -1.0}, "max_loss is -1.0"),
        ({"budget": 0.5, "target": "latency"}, "target is 'latency'; use 'channels', 'params' or 'macs'"),
        ({"budget": 0.5, "by": "loss"}, "by is 'loss'; use 'accuracy' or 'error'"),
        ({"budget": 0.5, "by": "accuracy"}, "accuracy was not measured"),
    ],
)
def test_what_cannot_be_found_is_refused(arguments: dict[str, Any], words: str) -> None:
    model, x = make_known()
    pruner = StructuredPruner(model, x[:2], "l2", 0.5)
    found = analyze_sensitivity(pruner, ratios=(0.25, 0.5), progress=False)
    with pytest.raises(InputError, match=words):
        auto_ratio(found, pruner, **arguments)


def test_a_sensitivity_of_another_model_is_refused() -> None:
    model, x = make_known()
    with pytest.raises(InputError, match="of another model: this one has no group elsewhere"):
        auto_ratio(curves(("elsewhere", [(0.5, 0.1, 1.0)])), StructuredPruner(model, x[:2]), budget=0.1)


# ---------------------------------------------------------------------------------------------------------- the figure


def test_the_figure_shows_what_is_lost() -> None:
    found = curves(("layer.a", [(0.25, 0.1, 1.0), (0.5, 0.2, 9.0)]), ("b", [(0.25, 0.1, 2.0), (0.5, 0.2, 4.0)]))
    figure = plot_sensitivity(found)
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown.tolist() == [[1.0, 9.0], [2.0, 4.0]]
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.0", "9.0", "2.0", "4.0"]
    assert figure.get_suptitle() == "Most sensitive: layer.a; least: b"
    assert _draw(figure) and _inside(figure)
    turkish = plot_sensitivity(found, language="tr")
    assert turkish.get_suptitle() == "En duyarlı: layer.a; en az duyarlı: b"
    assert turkish.axes[0].texts[0].get_text() == "1,0"


def test_the_figure_without_accuracies_shows_the_error_and_numbers_many_groups() -> None:
    points = tuple(SensitivityPoint(f"g{i}", r, r, r, r, i * r / 100) for i in range(60) for r in (0.2, 0.4))
    figure = plot_sensitivity(Sensitivity(points, "l2", 1))
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown.shape == (60, 2) and shown[10, 1] == pytest.approx(4.0)
    assert not figure.axes[0].texts and "‖" in figure.axes[1].get_ylabel()
    assert _draw(figure)
    with pytest.raises(InputError, match="holds no point"):
        plot_sensitivity(Sensitivity((), "l2", 1))


def test_the_figure_can_be_drawn_into_axes_of_ones_own() -> None:
    axes = Figure(figsize=(7, 4)).subplots()
    assert plot_sensitivity(curves(("a", [(0.5, 0.1, 1.0)])), ax=axes) is axes.get_figure()
