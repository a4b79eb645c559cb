"""`PruningExplorer`: choose criterion, ratio, target and ranking, see at once what would go, and apply it."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cleanai.comparison import label_criterion
from cleanai.errors import CleanAIError
from cleanai.evaluate import ModelMetrics
from cleanai.importance import CRITERIA, Importance, WeightActivationImportance, find_importance
from cleanai.plots import plot_kept_channels
from cleanai.preview import Preview, Previewer, Trial, collect_for, list_criteria, tabulate_trials, try_settings
from cleanai.preview_plot import plot_trials
from cleanai.pruner import StructuredPruner
from cleanai.recover import METHODS
from cleanai.texts import check_language, say, term
from cleanai.widgets.graph_explorer import render_table
from cleanai.widgets.panel import Panel, draw_png, import_widgets, make_image

MIX = "weight_activation"
"""The criterion that the slider ``alpha`` belongs to."""
TARGETS = ("channels", "params", "macs")
RANKINGS = ("local", "global", "isomorphic")
_NAMES = {
    **{value: value for value in ("channels", *RANKINGS, "none", "bias")},
    "params": "parameters",
    "macs": "MACs",
    "batchnorm": "BatchNorm",
    "least_squares": "least squares",
}


class PruningExplorer(Panel):
    """What a pruner would remove, redrawn with every change of a setting, and a button that applies the settings.

    A panel over `cleanai.preview.Previewer`, `cleanai.preview.try_settings`, `cleanai.plots.plot_kept_channels` and
    `cleanai.preview_plot.plot_trials`. The controls are ``criterion``, ``alpha`` (for the weight-activation mix),
    ``ratio``, ``target``, ``ranking``, ``recovery`` and ``apply``; setting their ``value``, or ``apply.click()``, does
    what a user does. ``preview`` is what the settings would do and ``figure`` its drawing; ``trials`` is what was
    applied, ``tradeoff`` its drawing (None without a ``test_loader``). What the library refuses is in ``message``.

    The pruner and its model are left as they are. Without a calibration loader the panel uses what the pruner has
    collected.

    Args:
        pruner: its settings are where the panel starts.
        test_loader: for the accuracy of what is applied.
        calibration_loader: for criteria that look at activations, and for the repair; gone through once per repair.
        labelled_loader: for criteria that look at gradients.
        criteria: criteria or their names; all that can score with what is collected, if left out, but for those that
            need second moments or curvature, which cost most.
        num_batches: of the loaders for calibration, at most so many.
        language: "en" or "tr".

    Raises:
        InputError: ipywidgets is not installed, or the loaders do not fit the model.

    Example:
        >>> import torch
        >>> from cleanai.models import digits_resnet
        >>> pruner = StructuredPruner(digits_resnet(4), torch.zeros(1, 1, 8, 8), pruning_ratio=0.25)
        >>> explorer = PruningExplorer(pruner, criteria=["magnitude", "l1"])
        >>> explorer.ratio.value, explorer.target.value = 0.5, "macs"
        >>> round(explorer.preview.macs / explorer.preview.macs_before, 2)
        0.5
        >>> explorer.apply.click()
        >>> [trial.verification.passed for trial in explorer.trials]
        [True]
    """

    def __init__(
        self,
        pruner: StructuredPruner,
        test_loader: Iterable[Any] | None = None,
        *,
        calibration_loader: Iterable[Any] | None = None,
        labelled_loader: Iterable[Any] | None = None,
        criteria: Sequence[Importance | str] | None = None,
        num_batches: int | None = None,
        language: str = "en",
    ) -> None:
        self.language = check_language(language)
        widgets = import_widgets("PruningExplorer")
        asked = _usual_criteria() if criteria is None else [*criteria]
        self.pruner = collect_for(
            pruner, asked, calibration_loader, labelled_loader, num_batches=num_batches, progress=False
        )
        if criteria is None:
            able = list_criteria(self.pruner)
            asked = [name for name in asked if name in able]
        self.test_loader = test_loader
        self.previewer = Previewer(self.pruner, language)
        self.preview: Preview | None = None
        self.trials: list[Trial] = []
        self.tradeoff: Any = None
        self._before: ModelMetrics | None = None
        self._places: dict[int, Any] = {}
        self._make_controls(widgets, asked)
        self.previewer.remember(value for _, value in self.criterion.options)
        self._update()

    def __repr__(self) -> str:
        preview = self.preview
        kept = "" if preview is None else f", {preview.parameters} parameters, {preview.macs} MACs"
        return f"PruningExplorer({self.label}, {self.ratio.value:.2f} of {self.target.value}{kept})"

    @property
    def settings(self) -> dict[str, Any]:
        """What the controls say, as `cleanai.StructuredPruner.vary` takes it."""
        importance = self.criterion.value
        if importance == MIX:
            importance = WeightActivationImportance(self.alpha.value, 1 - self.alpha.value)
        return {
            "importance": importance,
            "pruning_ratio": self.ratio.value,
            "target": self.target.value,
            "global_pruning": self.ranking.value == "global",
            "isomorphic": self.ranking.value == "isomorphic",
            "recover": self.recovery.value,
        }

    @property
    def label(self) -> str:
        """The criterion in a word, with its share of the weights where it mixes."""
        criterion = self.criterion.value
        name = self._name(criterion)
        return f"{name}, α = {self.alpha.value:.2f}" if criterion == MIX else name

    # ----------------------------------------------------------------------------------------------------- controls

    def _make_controls(self, widgets: Any, criteria: Sequence[Importance | str]) -> None:
        pruner = self.pruner
        own = pruner.importance_name if pruner.importance_name in CRITERIA else pruner.importance
        choices = [*dict.fromkeys([own, *criteria])] if own not in criteria else [*criteria]
        start = "isomorphic" if pruner.isomorphic else "global" if pruner.global_pruning else "local"
        self.criterion = self._choice(widgets, "criterion", choices, own)
        self.alpha = self._slider(widgets, "α (weights)", 0.5, 1.0, 0.05)
        self.ratio = self._slider(widgets, "ratio", pruner.pruning_ratio, 0.95, 0.01)
        self.target = self._choice(widgets, "target", TARGETS, pruner.target if pruner.target in TARGETS else "macs")
        self.ranking = self._choice(widgets, "ranking", RANKINGS, start)
        self.recovery = self._choice(widgets, "repair", METHODS, pruner.recover)
        self.apply = _make_button(widgets, self._apply, description=say(self.language, "Apply"), button_style="primary")
        self.image = make_image(widgets)
        self.tradeoff_image = make_image(widgets)
        self.tradeoff_image.layout.display = "none"
        self.table, self.results, self.message = widgets.HTML(), widgets.HTML(), widgets.HTML()
        for control in (self.criterion, self.alpha, self.ratio, self.target, self.ranking):
            control.observe(self._on_change, names="value")
        rows = (
            (self.criterion, self.alpha, self.ratio),
            (self.target, self.ranking, self.recovery),
            (self.apply, self.message),
        )
        controls = [widgets.HBox(row, layout=widgets.Layout(flex_flow="row wrap")) for row in rows]
        self.box = widgets.VBox([*controls, self.image, self.table, self.results, self.tradeoff_image])

    def _choice(self, widgets: Any, name: str, values: Sequence[Any], start: Any) -> Any:
        options = [(self._name(value), value) for value in values]
        return widgets.Dropdown(options=options, value=start, description=say(self.language, name))

    def _name(self, value: Any) -> str:
        """A setting as people read it."""
        if not isinstance(value, str):
            return repr(value)
        if value not in _NAMES:
            return label_criterion(value, self.language)
        return _NAMES[value] if self.language == "en" else term(self.language, value)

    def _slider(self, widgets: Any, name: str, start: float, top: float, step: float) -> Any:
        return widgets.FloatSlider(
            value=start, min=0.0, max=top, step=step, description=say(self.language, name), readout_format=".2f"
        )

    # -------------------------------------------------------------------------------------------------- what happens

    def _on_change(self, _: Any) -> None:
        self._update()

    def _update(self) -> None:
        """Chooses and draws anew; what the library refuses is said in place of the table."""
        self.alpha.layout.display = None if self.criterion.value == MIX else "none"
        self.preview = None
        if self._tell(self._choose):
            assert self.preview is not None
            self._draw(self.preview)

    def _choose(self) -> None:
        self.table.value = ""
        preview = self.preview = self.previewer.preview(**self.settings)
        self.table.value = render_table(preview.to_table())

    def _draw(self, preview: Preview) -> None:
        """Draws what is kept. Where the words take as much room as before, so do the axes: laying out takes longest."""
        figure = plot_kept_channels(preview)
        lines = figure.get_suptitle().count("\n")
        if lines in self._places:
            figure.set_layout_engine("none")
            figure.axes[0].set_position(self._places[lines])
        self.show_figure(figure)
        self._places.setdefault(lines, figure.axes[0].get_position().frozen())

    def _apply(self) -> None:
        """Prunes a copy with the settings, and adds it to the table and the figure."""
        if self._tell(self._try):
            self.results.value = render_table(tabulate_trials(self.trials, self.language))
        if self.trials and self.trials[-1].metrics.accuracy is not None:
            self.tradeoff = plot_trials(self.trials, language=self.language)
            self.tradeoff_image.value = draw_png(self.tradeoff)
            self.tradeoff_image.layout.display = None

    def _try(self) -> None:
        trial = try_settings(self.pruner, self.test_loader, before=self._before, label=self.label, **self.settings)
        self._before = trial.before
        self.trials.append(trial)

    def _tell(self, action: Callable[[], None]) -> bool:
        """Whether something went well; what the library refuses is shown, and any other error is raised."""
        self.message.value = ""
        try:
            action()
        except CleanAIError as error:
            self.message.value = f'<span style="color:#b00020">{html.escape(term(self.language, str(error)))}</span>'
            return False
        return True


def _usual_criteria() -> list[str]:
    """All criteria by name, but for those whose data costs most."""
    costly = ("needs_moments", "needs_curvature")
    found = {name: find_importance(name) for name in CRITERIA}
    return [name for name, each in found.items() if not any(getattr(each, need, False) for need in costly)]


def _make_button(widgets: Any, action: Callable[[], None], **look: Any) -> Any:
    """A button whose ``click()`` raises what its action raises: ipywidgets' own only logs it."""

    class PanelButton(widgets.Button):
        def click(self) -> None:
            action()

    return PanelButton(**look)
