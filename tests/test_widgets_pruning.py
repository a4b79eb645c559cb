"""The panel of pruning: a control is set, and what the panel shows is what the public functions under it say."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.container import BarContainer

from cleanai import InputError, StructuredPruner, WeightActivationImportance, count_macs, evaluate_model
from cleanai.evaluate import count_parameters
from cleanai.models import digits_resnet
from cleanai.preview import Previewer
from cleanai.widgets import PruningExplorer

pytest.importorskip("ipywidgets")
IMAGE = torch.zeros(1, 1, 8, 8)


def make_batches(count: int = 2) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 10) for _ in range(count)]


def make_explorer(*, loaders: bool = True, language: str = "en", **options: Any) -> PruningExplorer:
    torch.manual_seed(0)
    pruner = StructuredPruner(digits_resnet(4), IMAGE, **options)
    data = make_batches() if loaders else None
    return PruningExplorer(pruner, data, calibration_loader=data, labelled_loader=data, language=language)


@pytest.fixture
def explorer() -> PruningExplorer:
    return make_explorer()


def drawn(explorer: PruningExplorer) -> list[float]:
    """What the figure shows as kept, in percent of each group."""
    bars = [bar for bar in explorer.figure.axes[0].containers if isinstance(bar, BarContainer)]
    return [patch.get_width() for patch in bars[-1]]


def assert_shows(explorer: PruningExplorer, **settings: Any) -> None:
    """The table and the figure are those of what a pruner with these settings, made afresh, plans."""
    fresh = StructuredPruner(explorer.pruner.model, IMAGE, **settings)
    fresh.collect_activations(make_batches(), progress=False)
    fresh.collect_gradients(make_batches(), progress=False)
    plan = fresh.make_plan()
    assert explorer.preview is not None and explorer.preview.plan == plan
    assert drawn(explorer) == pytest.approx([100 * cut.kept_size / cut.size for cut in plan.groups])
    pruned = fresh.prune()
    assert f">{count_parameters(pruned):,}<" in explorer.table.value
    assert f">{count_macs(pruned, IMAGE):,}<" in explorer.table.value
    assert explorer.message.value == ""


def test_it_opens_with_the_settings_of_the_pruner() -> None:
    explorer = make_explorer(importance="wanda", pruning_ratio=0.25, target="params", global_pruning=True)
    controls = (explorer.criterion, explorer.ratio, explorer.target, explorer.ranking, explorer.recovery)
    assert [control.value for control in controls] == ["wanda", 0.25, "params", "global", "none"]
    assert_shows(explorer, importance="wanda", pruning_ratio=0.25, target="params", global_pruning=True)
    assert repr(explorer).startswith("PruningExplorer(WANDA, 0.25 of params, ")


@pytest.mark.parametrize(
    ("control", "value", "settings"),
    [
        ("criterion", "wanda", {"importance": "wanda"}),
        ("criterion", "taylor", {"importance": "taylor"}),
        ("ratio", 0.75, {"pruning_ratio": 0.75}),
        ("target", "macs", {"target": "macs"}),
        ("ranking", "global", {"global_pruning": True}),
        ("ranking", "isomorphic", {"isomorphic": True}),
    ],
)
def test_every_control_chooses_and_draws_anew(
    explorer: PruningExplorer, control: str, value: object, settings: dict[str, Any]
) -> None:
    plan = explorer.preview and explorer.preview.plan
    getattr(explorer, control).value = value
    assert explorer.image.value[:4] == b"\x89PNG"
    assert explorer.preview is not None and explorer.preview.plan != plan
    assert_shows(explorer, **settings)


def test_the_slider_mixes_weights_and_activations(explorer: PruningExplorer) -> None:
    assert explorer.alpha.layout.display == "none"
    explorer.criterion.value = "weight_activation"
    assert explorer.alpha.layout.display is None
    assert_shows(explorer, importance=WeightActivationImportance(0.5, 0.5))
    explorer.alpha.value = 0.1
    assert_shows(explorer, importance=WeightActivationImportance(0.1, 0.9))
    assert explorer.label == "weight + activation, α = 0.10"
    explorer.alpha.value = 1.0
    assert explorer.preview is not None
    by_weights = Previewer(explorer.pruner).preview(importance="magnitude").plan
    assert [cut.dropped for cut in explorer.preview.plan.groups] == [cut.dropped for cut in by_weights.groups]


def test_only_what_can_score_is_offered() -> None:
    names = [value for _, value in make_explorer(loaders=False).criterion.options]
    assert {"magnitude", "lamp", "random"} <= set(names) and not {"wanda", "taylor", "hessian"} & set(names)
    names = [value for _, value in make_explorer().criterion.options]
    assert {"wanda", "taylor", "coverage"} <= set(names) and not {"hessian", "reconstruction"} & set(names)


def test_a_criterion_of_ones_own_can_be_chosen() -> None:
    own = WeightActivationImportance(0.2, 0.8)
    pruner = StructuredPruner(digits_resnet(4), IMAGE, own)
    explorer = PruningExplorer(pruner, calibration_loader=make_batches(), criteria=["magnitude"])
    assert [value for _, value in explorer.criterion.options] == [own, "magnitude"]
    assert explorer.label == repr(own)
    explorer.criterion.value = "magnitude"
    assert explorer.label == "magnitude"


def test_apply_prunes_a_copy_proves_and_measures_it(explorer: PruningExplorer) -> None:
    model, data = explorer.pruner.model, make_batches()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explorer.ratio.value, explorer.target.value = 0.3, "macs"
    explorer.apply.click()
    explorer.recovery.value, explorer.ranking.value = "batchnorm", "global"
    explorer.apply.click()
    first, second = explorer.trials
    assert explorer.preview is not None and (second.metrics.parameters, second.metrics.macs) == (
        explorer.preview.parameters,
        explorer.preview.macs,
    )
    assert second.metrics.accuracy == evaluate_model(second.model, data).accuracy
    assert second.verification is not None and second.verification.passed
    assert second.settings["recover"] == "batchnorm" and "recover" not in first.settings
    assert explorer.results.value.count("<tr>") == 4  # the heading, the original, and two rows
    assert explorer.results.value.count("proven") == 2 and ">BatchNorm<" not in explorer.results.value
    points = {(x, y) for line in explorer.tradeoff.axes[0].lines[1:] for x, y in np.asarray(line.get_xydata()).tolist()}
    assert {(100 * trial.macs_kept, trial.metrics.accuracy) for trial in explorer.trials} < points
    assert explorer.tradeoff_image.value[:4] == b"\x89PNG" and explorer.tradeoff_image.layout.display is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_test_data_there_is_a_table_and_no_tradeoff() -> None:
    explorer = make_explorer(loaders=False)
    explorer.apply.click()
    assert len(explorer.trials) == 1 and explorer.tradeoff is None
    assert explorer.tradeoff_image.layout.display == "none" and "magnitude" in explorer.results.value


def test_what_the_library_refuses_is_said_in_the_panel() -> None:
    explorer = make_explorer(loaders=False)
    explorer.recovery.value = "bias"
    explorer.apply.click()
    assert "call collect_activations(loader) first" in explorer.message.value and not explorer.trials
    explorer.recovery.value = "none"
    explorer.apply.click()
    assert explorer.message.value == "" and len(explorer.trials) == 1
    costly = PruningExplorer(StructuredPruner(digits_resnet(4), IMAGE), criteria=["magnitude", "wanda"])
    costly.criterion.value = "wanda"
    assert "wanda needs activations" in costly.message.value
    assert costly.preview is None and costly.table.value == ""
    costly.criterion.value = "magnitude"
    assert costly.message.value == "" and costly.preview is not None


def test_a_mistake_of_the_programmer_is_heard(explorer: PruningExplorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr("cleanai.widgets.pruning_explorer.plot_kept_channels", fail)
    with pytest.raises(RuntimeError, match="out of order"):
        explorer.ratio.value = 0.1
    monkeypatch.setattr("cleanai.widgets.pruning_explorer.try_settings", fail)
    with pytest.raises(RuntimeError, match="out of order"):
        explorer.apply.click()


def test_a_click_in_the_browser_applies(explorer: PruningExplorer) -> None:
    explorer.apply._handle_button_msg(explorer.apply, {"event": "click"}, [])
    assert len(explorer.trials) == 1


def test_the_words_are_those_of_the_language() -> None:
    explorer = make_explorer(language="tr")
    described = (explorer.criterion, explorer.ratio, explorer.target, explorer.ranking, explorer.apply)
    assert [each.description for each in described] == ["ölçüt", "oran", "hedef", "sıralama", "Uygula"]
    assert "Parametre" in explorer.table.value
    assert explorer.figure.axes[0].get_xlabel() == "kalan birimler (%)"
    explorer.apply.click()
    assert "Şimdiye dek uygulananlar" in explorer.results.value


def test_the_pruner_is_left_as_it_was() -> None:
    pruner = StructuredPruner(digits_resnet(4), IMAGE, inplace=True, pruning_ratio=0.25)
    explorer = PruningExplorer(pruner, calibration_loader=make_batches())
    explorer.ratio.value = 0.5
    explorer.apply.click()
    assert (pruner.statistics, pruner.plan, pruner.pruning_ratio) == (None, None, 0.25)
    assert count_parameters(pruner.model) == explorer.trials[0].before.parameters


def test_without_ipywidgets_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(InputError, match=r'PruningExplorer needs ipywidgets: pip install "cleanai\[notebooks\]"'):
        PruningExplorer(StructuredPruner(digits_resnet(4), IMAGE))
