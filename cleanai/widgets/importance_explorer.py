"""`ImportanceExplorer`: choose a criterion and a ratio, and see what would be removed and how another one differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cleanai.comparison import (
    COVERAGE_CRITERIA,
    METRIC_LABELS,
    Contrast,
    CriteriaComparison,
    compare_criteria,
    find_criteria,
    label_criterion,
)
from cleanai.comparison_plot import plot_contrast
from cleanai.errors import InputError
from cleanai.importance import ActivationImportance, Importance, MagnitudeImportance, WeightActivationImportance
from cleanai.pruner import StructuredPruner
from cleanai.texts import check_language, say, term
from cleanai.widgets.panel import Panel, import_widgets, make_image

_COVERAGE, _MIX = "coverage", "weight_activation"
_WEIGHTS, _ACTIVATIONS = "weight term", "activation term"


class ImportanceExplorer(Panel):
    """The criteria of a trained network with controls for criterion, ratio and layer, beside a second criterion.

    A panel over `CriteriaComparison.contrast` and `cleanai.comparison_plot.plot_contrast`; everything is scored once,
    when it is made. The controls are ``criterion``, ``metric`` (of the coverage), ``alpha`` (the weights' part in the
    weight-activation mix), ``ratio``, ``scope`` ("local" or "global"), ``group`` and ``other``, the criterion that is
    compared with; setting their ``value`` does what a user does. ``contrast`` holds what is shown, ``figure`` the
    drawing, ``comparison`` the scores, those of the mix for the chosen α.

    Args:
        pruner: knows the model and what was collected for the criteria; nothing of it changes.
        criteria: as in `cleanai.compare_criteria`.
        language: "en" or "tr".

    Raises:
        InputError: ipywidgets is not installed, the model has no group, or activations or gradients that a criterion
            needs were not collected.

    Example:
        >>> import torch
        >>> from cleanai.models import digits_resnet
        >>> pruner = StructuredPruner(digits_resnet(4), torch.zeros(1, 1, 8, 8))
        >>> explorer = ImportanceExplorer(pruner, ["l1", "l2", "random"])
        >>> explorer.criterion.value, explorer.other.value, explorer.ratio.value = "l2", "random", 0.25
        >>> explorer.contrast.chosen["l2"]["conv1"].shape
        (1,)
    """

    def __init__(
        self,
        pruner: StructuredPruner,
        criteria: Mapping[str, Importance | str] | Sequence[str] | None = None,
        *,
        language: str = "en",
    ) -> None:
        self.language = check_language(language)
        found = find_criteria(criteria)
        self._names = tuple(found)
        mix = found.get(_MIX)
        self._mix = mix if isinstance(mix, WeightActivationImportance) else None
        terms = {} if self._mix is None else _terms_of(self._mix)
        self.comparison: CriteriaComparison = compare_criteria(pruner, {**found, **terms})
        if not self.comparison.groups:
            raise InputError("ImportanceExplorer: this model has no group of channels that can be pruned.")
        self._make_controls(import_widgets("ImportanceExplorer"))
        self.contrast: Contrast
        self._update()

    def __repr__(self) -> str:
        return f"ImportanceExplorer({self.contrast.describe(self.language)})"

    @property
    def name(self) -> str:
        """The name of the criterion that is chosen; of a coverage, that with the metric that is chosen."""
        return COVERAGE_CRITERIA[self.metric.value] if self.criterion.value == _COVERAGE else self.criterion.value

    def _make_controls(self, widgets: Any) -> None:
        def name(phrase: str) -> str:
            return say(self.language, phrase)

        metrics = [metric for metric, criterion in COVERAGE_CRITERIA.items() if criterion in self._names]
        families = [(name("coverage"), _COVERAGE)] if metrics else []
        single = [each for each in self._names if each not in COVERAGE_CRITERIA.values()]
        labelled = [(label_criterion(each, self.language), each) for each in single]
        all_labelled = [(label_criterion(each, self.language), each) for each in self._names]
        groups = [(f"{number}  {group}", group) for number, group in enumerate(self.comparison.groups, 1)]
        scopes = [(name("local"), "local"), (name("global"), "global")]
        slow = {"continuous_update": False}
        self.criterion = widgets.Dropdown(options=families + labelled, description=term(self.language, "criterion"))
        self.metric = widgets.Dropdown(
            options=[(term(self.language, METRIC_LABELS[metric]), metric) for metric in metrics],
            description=name("metric"),
        )
        alpha = 0.5 if self._mix is None else self._mix.weight_ratio
        self.alpha = widgets.FloatSlider(alpha, min=0, max=1, step=0.05, description=name("α (weights)"), **slow)
        self.ratio = widgets.FloatSlider(0.5, min=0, max=0.95, step=0.05, description=name("ratio"), **slow)
        self.scope = widgets.ToggleButtons(options=scopes, description=name("pruning"))
        self.group = widgets.Dropdown(options=groups, description=name("group"))
        self.other = widgets.Dropdown(
            options=all_labelled,
            value=self._names[-1],
            description=name("compared with"),
            style={"description_width": "initial"},
        )
        self.image = make_image(widgets)
        self._listen()
        rows = [[self.criterion, self.metric, self.alpha], [self.ratio, self.scope], [self.group, self.other]]
        self.box = widgets.VBox([*(widgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows), self.image])

    def _listen(self) -> None:
        for control in (self.criterion, self.metric, self.ratio, self.scope, self.group, self.other):
            control.observe(self._on_change, names="value")
        if self._mix is not None:
            self.alpha.observe(self._on_alpha, names="value")

    def _on_alpha(self, _: Any) -> None:
        """The mix anew, from the scores of its terms."""
        assert self._mix is not None  # else the slider is not shown
        parts = {_WEIGHTS: self.alpha.value, _ACTIVATIONS: 1 - self.alpha.value}
        self.comparison = self.comparison.mix(_MIX, parts, normalizer=self._mix.normalizer)
        self._update()

    def _on_change(self, _: Any) -> None:
        self._update()

    def _update(self) -> None:
        self.metric.layout.display = None if self.criterion.value == _COVERAGE else "none"
        mixed = self._mix is not None and _MIX in (self.criterion.value, self.other.value)
        self.alpha.layout.display = None if mixed else "none"
        self.contrast = self.comparison.contrast(
            self.name, self.other.value, self.ratio.value, global_pruning=self.scope.value == "global"
        )
        self.show_figure(plot_contrast(self.comparison, self.contrast, self.group.value, language=self.language))


def _terms_of(mix: WeightActivationImportance) -> dict[str, Importance]:
    return {
        _WEIGHTS: MagnitudeImportance(mix.p, reduction=mix.reduction),
        _ACTIVATIONS: ActivationImportance(reduction=mix.reduction),
    }
