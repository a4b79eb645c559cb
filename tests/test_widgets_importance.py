"""The importance panel: a control is set, and what is shown is what the comparison under it says."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from torch import Tensor

from cleanai import InputError, StructuredPruner, WeightActivationImportance, compare_criteria
from cleanai.comparison import COVERAGE_CRITERIA, STANDARD_CRITERIA
from cleanai.models import digits_resnet
from cleanai.widgets import ImportanceExplorer

pytest.importorskip("ipywidgets")
Batches = list[tuple[Tensor, Tensor]]


def make_batches() -> Batches:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 10)]


@pytest.fixture(scope="module")
def pruner() -> StructuredPruner:
    torch.manual_seed(0)
    pruner = StructuredPruner(digits_resnet(8), torch.zeros(1, 1, 8, 8))
    pruner.collect_activations(make_batches(), progress=False)
    pruner.collect_gradients(make_batches(), progress=False)
    return pruner


@pytest.fixture
def explorer(pruner: StructuredPruner) -> ImportanceExplorer:
    return ImportanceExplorer(pruner)


def shown_shares(explorer: ImportanceExplorer) -> list[float]:
    """The lengths of the bars on the right: first the criterion's, then the other's."""
    return [patch.get_width() for patch in explorer.figure.axes[1].patches if isinstance(patch, Rectangle)]


def shown_units(explorer: ImportanceExplorer) -> tuple[int, int]:
    """How many units the histogram on the left shows as removed, and in all."""
    bars = [patch for patch in explorer.figure.axes[0].patches if isinstance(patch, Rectangle)]
    colours = list(dict.fromkeys(bar.get_facecolor() for bar in bars))
    counts = [sum(bar.get_height() for bar in bars if bar.get_facecolor() == colour) for colour in colours]
    return int(counts[0]), int(sum(counts))


def assert_shows(explorer: ImportanceExplorer, pruner: StructuredPruner, first: str, second: str) -> None:
    """The figure says what a fresh comparison says at the values of the controls."""
    alpha = explorer.alpha.value
    known = {**dict.fromkeys(STANDARD_CRITERIA), "weight_activation": WeightActivationImportance(alpha, 1 - alpha)}
    comparison = compare_criteria(pruner, {name: given or name for name, given in known.items()})
    ratio, over_all, group = explorer.ratio.value, explorer.scope.value == "global", explorer.group.value
    contrast = comparison.contrast(first, second, ratio, global_pruning=over_all)
    shares = [comparison.removed_shares(name, ratio, global_pruning=over_all) for name in contrast.chosen]
    expected = [100 * share[name] for share in shares for name in comparison.groups]
    assert shown_shares(explorer) == pytest.approx(expected)
    assert shown_units(explorer) == (len(contrast.chosen[first][group]), comparison.sizes[group])
    assert explorer.figure.axes[0].get_title(loc="left").startswith(f"{group}\n")
    assert " ".join(explorer.figure.get_suptitle().split()) == contrast.describe().replace("-", "−")
    assert (explorer.contrast.overlap, explorer.name) == (contrast.overlap, first)
    assert explorer.contrast.agreement == pytest.approx(contrast.agreement)


def test_it_opens_on_coverage_beside_random(explorer: ImportanceExplorer, pruner: StructuredPruner) -> None:
    assert_shows(explorer, pruner, "coverage", "random")
    assert [value for _, value in explorer.criterion.options] == ["coverage", *STANDARD_CRITERIA[4:]]
    assert [value for _, value in explorer.other.options] == list(STANDARD_CRITERIA)
    assert explorer.image.value[:4] == b"\x89PNG"


@pytest.mark.parametrize("metric", COVERAGE_CRITERIA)
def test_every_metric_of_coverage(explorer: ImportanceExplorer, pruner: StructuredPruner, metric: str) -> None:
    explorer.metric.value = metric
    assert_shows(explorer, pruner, COVERAGE_CRITERIA[metric], "random")


CHANGES = {
    "criterion": "wanda",
    "metric": "combined",
    "ratio": 0.3,
    "scope": "global",
    "group": "block3.conv1",
    "other": "taylor",
}


@pytest.mark.parametrize("control", CHANGES)
def test_every_control_moves_the_picture(explorer: ImportanceExplorer, pruner: StructuredPruner, control: str) -> None:
    before = explorer.image.value
    getattr(explorer, control).value = CHANGES[control]
    assert explorer.image.value != before
    first = {"criterion": "wanda", "metric": "coverage_combined"}.get(control, "coverage")
    assert_shows(explorer, pruner, first, "taylor" if control == "other" else "random")


def test_alpha_mixes_weights_and_activations(explorer: ImportanceExplorer, pruner: StructuredPruner) -> None:
    explorer.criterion.value = "weight_activation"
    explorer.other.value = "magnitude"
    agreements = []
    for alpha in (0.0, 0.25, 0.5, 1.0):
        explorer.alpha.value = alpha
        assert_shows(explorer, pruner, "weight_activation", "magnitude")
        agreements.append(explorer.contrast.agreement)
    assert agreements == sorted(agreements) and agreements[-1] == pytest.approx(1)  # all weights: magnitude itself


def test_controls_that_mean_nothing_are_hidden(explorer: ImportanceExplorer) -> None:
    def shown() -> tuple[bool, bool]:
        return explorer.metric.layout.display != "none", explorer.alpha.layout.display != "none"

    assert shown() == (True, False)
    explorer.criterion.value = "weight_activation"
    assert shown() == (False, True)
    explorer.criterion.value = "wanda"
    assert shown() == (False, False)
    explorer.other.value = "weight_activation"
    assert shown() == (False, True)


def test_a_mix_of_ones_own_keeps_its_ratio(pruner: StructuredPruner) -> None:
    own = ImportanceExplorer(pruner, {"weight_activation": WeightActivationImportance(0.2, 0.8, p=1), "l1": "l1"})
    assert own.alpha.value == 0.2
    own.alpha.value = 1.0
    assert own.contrast.agreement == pytest.approx(1)  # the mix is of the 1-norm, as its own
    assert not own.metric.options and own.name == "weight_activation"


def test_a_criterion_with_itself_and_in_turkish(pruner: StructuredPruner) -> None:
    explorer = ImportanceExplorer(pruner, ["wanda", "coverage_frequency"], language="tr")
    explorer.criterion.value, explorer.other.value = "coverage", "coverage_frequency"
    assert explorer.contrast.overlap.jaccard == 1 and explorer.contrast.agreement == pytest.approx(1)
    assert explorer.ratio.description == "oran" and explorer.metric.options == (("sıklık", "frequency"),)
    assert repr(explorer).startswith("ImportanceExplorer(kapsama: sıklık ile kapsama: sıklık: sıralama uyumu 1,00")


def test_moving_a_slider_scores_nothing_again(
    explorer: ImportanceExplorer, pruner: StructuredPruner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(StructuredPruner, "_score_all", fail)
    explorer.criterion.value = "weight_activation"
    explorer.alpha.value, explorer.ratio.value, explorer.scope.value = 0.75, 0.7, "global"
    assert explorer.contrast.ratio == 0.7


def test_a_redraw_is_quick_beside_making_the_panel(explorer: ImportanceExplorer, pruner: StructuredPruner) -> None:
    """Choosing again costs less than drawing: what is slow has been done before."""
    drawing, choosing = [], []
    for ratio in np.linspace(0.1, 0.9, 9):
        start = time.process_time()
        explorer.comparison.contrast("wanda", "taylor", float(ratio))
        middle = time.process_time()
        explorer.ratio.value = round(float(ratio), 2)
        drawing.append(time.process_time() - middle)
        choosing.append(middle - start)
    assert np.median(choosing) < np.median(drawing)


def test_a_callback_that_fails_is_heard(explorer: ImportanceExplorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no picture")

    monkeypatch.setattr("cleanai.widgets.importance_explorer.plot_contrast", fail)
    with pytest.raises(RuntimeError, match="no picture"):
        explorer.ratio.value = 0.2


def test_mistakes_say_what_to_do(pruner: StructuredPruner, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"needs activations: call collect_activations\(loader\)"):
        ImportanceExplorer(StructuredPruner(digits_resnet(4), torch.zeros(1, 1, 8, 8)))
    linear = StructuredPruner(torch.nn.Linear(3, 2), torch.zeros(1, 3))
    with pytest.raises(InputError, match="no group of channels that can be pruned"):
        ImportanceExplorer(linear, ["magnitude", "random"])
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(InputError, match=r'ImportanceExplorer needs ipywidgets: pip install "cleanai\[notebooks\]"'):
        ImportanceExplorer(pruner)
