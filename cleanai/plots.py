"""The figures of a report: before and after, kept units, score distributions, training curve, accuracy by cost.

Every function returns a matplotlib `Figure`, which a notebook shows by itself, and draws on `ax` instead when one is
given. Figures are made without pyplot, so none stays open, none needs a display, and no global style changes. Colours
are seaborn's colour-blind safe palette with one meaning each: blue = kept, orange = removed, grey = original. Titles
state the finding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import textwrap
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, cast

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from cleanai.errors import InputError
from cleanai.isolation import process_state
from cleanai.rendering import are_comparable, printable, with_minus
from cleanai.texts import local_number, percent, say, scaled, short_number, signed, signed_percent, significant, term

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cleanai.evaluate import ModelMetrics
    from cleanai.preview import Preview
    from cleanai.report import GroupRecord, Report
    from cleanai.sensitivity import Sensitivity

__all__ = [
    "CostCurve",
    "CostPoint",
    "has_curves",
    "plot_accuracy_cost",
    "plot_kept_channels",
    "plot_metrics",
    "plot_score_distributions",
    "plot_sensitivity",
    "plot_training",
]

_PALETTE = sns.color_palette("colorblind")
KEPT, REMOVED, ORIGINAL = _PALETTE[0], _PALETTE[1], (0.62, 0.62, 0.62)
STAGE_COLOURS = (ORIGINAL, KEPT, _PALETTE[2], _PALETTE[4], _PALETTE[8])
CURVE_COLOURS = STAGE_COLOURS[1:]
FAMILY_COLOURS = (KEPT, _PALETTE[1], _PALETTE[2], _PALETTE[4], ORIGINAL)
NAMED_GROUPS = 40  # above this the kept-units figure numbers the groups instead of naming them
SCORE_PANELS = 12
SCREEN_DPI = 96
FIGURE_WIDTH = 8.0
TITLE_LETTERS = 78  # that many bold letters fit the width


# ---------------------------------------------------------------- before and after


def plot_metrics(report: Report, ax: Axes | None = None) -> Figure:
    """Costs as a share of the original and accuracy in percent, one bar per stage.

    A quantity that a stage was not measured in is left out. The title says what is left of the MACs, and what that
    cost in accuracy.

    Args:
        report: with measurements of one stage or more.
        ax: axes to draw on; None makes a figure.

    Raises:
        InputError: the report holds no measurement.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner, measure_model
        >>> net, inputs = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 3)
        >>> pruner = StructuredPruner(net, inputs, pruning_ratio=0.25)
        >>> smaller = pruner.prune()
        >>> metrics = {"original": measure_model(net, inputs), "pruned": measure_model(smaller, inputs)}
        >>> figure = plot_metrics(pruner.report(metrics=metrics))
        >>> figure.get_suptitle(), [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ('MACs −25.0 %', ['Parameters', 'MACs'])
    """
    if not report.metrics:
        raise InputError("plot_metrics: this report holds no measurement.")
    language, stages = report.language, list(report.metrics)
    rows = _measured_rows(report)
    height = 0.8 / len(stages)
    with figure_style():
        figure, axes = make_canvas(ax, (FIGURE_WIDTH, 1.3 + len(rows) * (0.16 + 0.21 * len(stages))))
        for position, stage in enumerate(stages):
            places = np.arange(len(rows)) + (position - (len(stages) - 1) / 2) * height
            values = [row.percents[position] for row in rows]
            colour = STAGE_COLOURS[position % len(STAGE_COLOURS)]
            axes.barh(places, values, height * 0.9, color=colour, label=label_text(term(language, stage)))
            for place, value, row in zip(places, values, rows, strict=True):
                axes.text(value + 1, place, row.texts[position], va="center", fontsize=8.5)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.invert_yaxis()
        longest = max(max(row.percents) for row in rows)
        axes.set_xlim(0, longest * 1.28)
        axes.set_xticks(_percent_ticks(longest))
        axes.set_xlabel(say(language, "share of the original (%); accuracy: correct answers (%)"))
        finish_axes(axes)
        title_figure(figure, axes, _metrics_title(report), own_figure=ax is None)
        add_legend(figure, axes, own_figure=ax is None)
    return figure


class _MetricRow:
    """One quantity's bars: lengths in percent and what is written beside them, stage by stage."""

    def __init__(self, label: str, percents: list[float], texts: list[str]) -> None:
        self.label, self.percents, self.texts = label, percents, texts


def _measured_rows(report: Report) -> list[_MetricRow]:
    """The quantities that every stage has; a bar that was not measured is left out, not drawn as zero."""
    language, stages = report.language, list(report.metrics.values())

    def write_count(value: float) -> str:
        return scaled(value, language)

    def write_time(milliseconds: float) -> str:
        return f"{significant(milliseconds, 3, language)} ms"

    rows = [
        _cost_row(say(language, "Parameters"), stages, lambda m: m.parameters, write_count),
        _cost_row(say(language, "MACs"), stages, lambda m: m.macs, write_count),
        _cost_row(say(language, "Latency"), stages, _comparable_latency(stages), write_time),
    ]
    accuracies = [metrics.accuracy for metrics in stages]
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    if len(known) == len(stages):
        texts = [percent(accuracy / 100, language, digits=2) for accuracy in known]
        rows.append(_MetricRow(say(language, "Accuracy"), known, texts))
    return [row for row in rows if row is not None]


def _cost_row(
    label: str,
    stages: Sequence[ModelMetrics],
    number: Callable[[ModelMetrics], float | None],
    write: Callable[[float], str],
) -> _MetricRow | None:
    values = [number(metrics) for metrics in stages]
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known[0]:
        return None
    return _MetricRow(label, [100 * value / known[0] for value in known], [write(value) for value in known])


def _comparable_latency(stages: Sequence[ModelMetrics]) -> Callable[[ModelMetrics], float | None]:
    """A reader of latencies that reads none when they cannot be compared."""
    comparable = are_comparable([metrics.latency for metrics in stages])
    return lambda metrics: metrics.latency.median_ms if metrics.latency and comparable else None


def _metrics_title(report: Report) -> str:
    """The finding: what is left of the MACs, and what it cost in accuracy."""
    language, stages = report.language, list(report.metrics.values())
    first, last = stages[0], stages[-1]
    if len(stages) < 2 or not first.macs:
        return say(language, "MACs {macs}", macs=scaled(last.macs, language))
    macs = signed_percent(last.macs / first.macs - 1, language)
    if first.accuracy is None or last.accuracy is None:
        return say(language, "MACs {macs}", macs=macs)
    change = say(language, "{value} points", value=signed(last.accuracy - first.accuracy, 2, language))
    return say(language, "MACs {macs}, accuracy {change}", macs=macs, change=change)


# ---------------------------------------------------------------- kept units


def plot_kept_channels(report: Report | Preview, ax: Axes | None = None) -> Figure:
    """The share of units that every group keeps: named bars up to 40 groups, numbered ones above.

    Args:
        report: what was done, or the preview of what some settings would do.
        ax: axes to draw on; None makes a figure.

    Raises:
        InputError: the report has no group.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner, measure_model
        >>> net, inputs = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 3)
        >>> pruner = StructuredPruner(net, inputs, pruning_ratio=0.25)
        >>> smaller = pruner.prune()
        >>> report = pruner.report(metrics={"original": measure_model(net, inputs)})
        >>> plot_kept_channels(report).get_suptitle()
        'Every group keeps 75.0 % of its units'
    """
    if not report.groups:
        raise InputError("plot_kept_channels: this report has no group.")
    draw = _draw_named_groups if len(report.groups) <= NAMED_GROUPS else _draw_numbered_groups
    with figure_style():
        return draw(report, ax)


def _draw_named_groups(report: Report | Preview, ax: Axes | None) -> Figure:
    language, groups = report.language, report.groups
    kept = _kept_percents(groups)
    figure, axes = make_canvas(ax, (FIGURE_WIDTH, 1.5 + 0.235 * len(groups)))
    places = range(len(groups))
    axes.barh(places, [100] * len(groups), 0.72, color=(*REMOVED, 0.35), label=say(language, "removed"))
    axes.barh(places, kept, 0.72, color=KEPT, label=say(language, "kept"))
    for place, group in zip(places, groups, strict=True):
        axes.text(101.5, place, f"{group.units_after}/{group.units_before}", va="center", fontsize=8)
    several = len({group.kind for group in groups}) > 1
    kinds = [f" ({term(language, group.kind)})" if several else "" for group in groups]
    names = [
        f"{label_text(group.name, 36)}{kind}  {i}" for i, (group, kind) in enumerate(zip(groups, kinds, strict=True), 1)
    ]
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 114)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(say(language, "units kept (%)"))
    axes.margins(y=0.5 / max(10, len(groups)))
    finish_axes(axes)
    title_figure(figure, axes, _kept_title(report), own_figure=ax is None)
    add_legend(figure, axes, own_figure=ax is None)
    return figure


def _draw_numbered_groups(report: Report | Preview, ax: Axes | None) -> Figure:
    language, groups = report.language, report.groups
    figure, axes = make_canvas(ax, (FIGURE_WIDTH, 3.8))
    places = np.arange(1, len(groups) + 1)
    axes.bar(places, 100, 1.0, color=(*REMOVED, 0.35), linewidth=0, label=say(language, "removed"))
    axes.bar(places, _kept_percents(groups), 1.0, color=KEPT, linewidth=0, label=say(language, "kept"))
    axes.set_xlim(0.5, len(groups) + 0.5)
    axes.set_ylim(0, 100)
    axes.set_xlabel(say(language, "group, in the order of the table"))
    axes.set_ylabel(say(language, "units kept (%)"))
    finish_axes(axes, grid="y")
    title_figure(figure, axes, _kept_title(report), own_figure=ax is None)
    add_legend(figure, axes, own_figure=ax is None)
    return figure


def _kept_percents(groups: Sequence[GroupRecord]) -> list[float]:
    return [100 * (1 - group.removed_share) for group in groups]


def _kept_title(report: Report | Preview) -> str:
    """The finding: how evenly the removal fell, and where it fell most."""
    language, groups = report.language, report.groups
    shares = [group.removed_share for group in groups]
    low, high = min(shares), max(shares)
    if high == 0:
        return say(language, "No group lost a unit")
    if percent(low) == percent(high):
        return say(language, "Every group keeps {share} of its units", share=percent(1 - high, language))
    most = [group.name for group in groups if group.removed_share == high]
    phrase = "Removed per group: {low} to {high}; most in {group}"
    if len(most) > 1:
        phrase = "Removed per group: {low} to {high}; most in {group} and {others} more"
    values = {"low": percent(low, language), "high": percent(high, language), "group": label_text(most[0], 40)}
    return say(language, phrase, **values, others=len(most) - 1)


# ---------------------------------------------------------------- scores


def scored_groups(report: Report) -> list[GroupRecord]:
    """The groups whose scores can be drawn with a cut: scored with finite numbers, partly removed; largest first."""
    usable = [group for group in report.groups if group.cut and np.isfinite(group.scores or ()).all()]
    return sorted(usable, key=lambda group: -group.units_before)


def plot_score_distributions(report: Report, max_groups: int = SCORE_PANELS, ax: Axes | None = None) -> Figure:
    """Histograms of the scores in the largest groups, kept and removed units stacked, with the cut marked.

    The cut is a dashed line halfway between the highest score removed and the lowest kept; where these overlap (a
    constraint or a per-row choice decided) the overlap is shaded instead.

    Args:
        report: of a pruning with scores.
        max_groups: at most so many panels.
        ax: axes to draw the largest group alone on; None makes a figure.

    Raises:
        InputError: no pruned group has scores.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner, measure_model
        >>> net, inputs = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 3)
        >>> pruner = StructuredPruner(net, inputs, pruning_ratio=0.25)
        >>> smaller = pruner.prune()
        >>> report = pruner.report(metrics={"original": measure_model(net, inputs)})
        >>> plot_score_distributions(report).axes[0].get_title(loc="left").splitlines()
        ['0', '2 of 8 removed']
    """
    groups = scored_groups(report)
    shown = groups[: 1 if ax is not None else max_groups]
    if not shown:
        raise InputError("plot_score_distributions: no pruned group of this report has scores.")
    with figure_style():
        figure, panels = make_panels(ax, len(shown))
        for panel, group in zip(panels, shown, strict=True):
            draw_scores(panel, group, report.language)
        if ax is None:
            _title_scores(figure, report, groups, len(shown))
    return figure


def make_panels(ax: Axes | None, count: int) -> tuple[Figure, list[Axes]]:
    """Axes for `count` small panels, or the one that was given."""
    if ax is not None:
        return _figure_of(ax), [ax]
    columns = min(3, count)
    rows = math.ceil(count / columns)
    figure = ReportFigure(figsize=(FIGURE_WIDTH + 0.8, 1.0 + 1.95 * rows), layout=_layout())
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = list(grid.flat)
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def draw_scores(axes: Axes, group: GroupRecord, language: str) -> None:
    """The histogram of one group's scores, kept and removed units stacked, with the cut; the group must have one."""
    kept, removed, cut = group.kept_scores, group.removed_scores, group.cut
    assert cut is not None  # scored_groups gives no other
    logarithmic = min(kept + removed) > 0 and max(kept + removed) > 1000 * min(kept + removed)
    axes.hist(
        [removed, kept],
        bins=_score_edges(kept + removed, cut, logarithmic),
        stacked=True,
        color=[REMOVED, KEPT],
        linewidth=0.3,
        edgecolor="white",
    )
    if logarithmic:
        axes.set_xscale("log")
    highest_removed, lowest_kept = cut
    if highest_removed <= lowest_kept:
        axes.axvline(_middle(highest_removed, lowest_kept, logarithmic), color="black", linestyle="--", linewidth=1.2)
    else:
        axes.axvspan(lowest_kept, highest_removed, color="black", alpha=0.12, linewidth=0, zorder=0)
    removal = say(language, "{count} of {total} removed", count=len(removed), total=group.units_before)
    axes.set_title(f"{label_text(group.name, 38)}\n{removal}", fontsize=8.5, loc="left")
    axes.set_xlabel(say(language, "score (higher = keep)"), fontsize=8)
    axes.set_ylabel(say(language, "units"), fontsize=8)
    axes.tick_params(labelsize=7.5)
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    if not logarithmic:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(TickFormatter(language))
    sns.despine(ax=axes)


def _score_edges(scores: Sequence[float], cut: tuple[float, float], logarithmic: bool) -> list[float]:
    """Edges of equal bins, one of them on the cut: a bin that straddled it would show removed units as if kept."""
    stretch = np.log10 if logarithmic else float
    low, high = float(stretch(min(scores))), float(stretch(max(scores)))
    bins = max(8, min(30, round(2 * math.sqrt(len(scores)))))
    width = (high - low) / bins or 1.0
    start = float(stretch(_middle(*cut, logarithmic))) if cut[0] <= cut[1] else low
    first, last = math.floor((low - start) / width), math.ceil((high - start) / width)
    edges = start + width * np.arange(first, max(last, first + 1) + 1)
    return (10.0**edges if logarithmic else edges).tolist()


def _middle(low: float, high: float, logarithmic: bool) -> float:
    return math.sqrt(low * high) if logarithmic else (low + high) / 2


def _title_scores(figure: Figure, report: Report, groups: Sequence[GroupRecord], shown: int) -> None:
    """The finding over the panels, and one legend below them."""
    language = report.language
    crossed = sum(1 for group in groups if group.cut and group.cut[0] > group.cut[1])
    if crossed:
        phrase = "In {count} of {total} groups a unit was removed though a kept one scored lower"
        title = say(language, phrase, count=crossed, total=len(groups))
    else:
        title = say(language, "Each group: every removed unit scored below every kept one")
    title_figure(figure, figure.axes[0], title, own_figure=True)
    handles: list[Any] = [Patch(color=KEPT, label=say(language, "kept"))]
    handles.append(Patch(color=REMOVED, label=say(language, "removed")))
    handles.append(Line2D([], [], color="black", linestyle="--", label=say(language, "cut")))
    if crossed:
        handles.append(Patch(color="black", alpha=0.12, label=say(language, "scores overlap")))
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9, title_fontsize=9
    )
    if shown < len(groups):
        phrase = "{shown} largest of {total} scored and pruned groups."
        legend.set_title(say(language, phrase, shown=shown, total=len(groups)))


# ---------------------------------------------------------------- sensitivity


def plot_sensitivity(sensitivity: Sensitivity, ax: Axes | None = None, language: str = "en") -> Figure:
    """What cutting each group alone costs, by ratio: points of accuracy lost, or the output error without accuracies.

    One row per group in the order of the model; the darker, the more is lost. Up to 40 groups the numbers are written
    into their fields.

    Args:
        sensitivity: of `cleanai.analyze_sensitivity`.
        ax: axes to draw on; None makes a figure.
        language: "en" or "tr".

    Raises:
        InputError: the sensitivity holds no point.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner, analyze_sensitivity
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner = StructuredPruner(net, torch.randn(1, 3))
        >>> batch = torch.randn(16, 3), torch.zeros(16, dtype=torch.int64)
        >>> figure = plot_sensitivity(analyze_sensitivity(pruner, [batch], ratios=(0.25, 0.5)))
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['25', '50']
    """
    if not sensitivity.points:
        raise InputError("plot_sensitivity: this sensitivity holds no point.")
    groups = sensitivity.groups
    ratios = sorted({point.ratio for point in sensitivity.points})
    losses = _losses(sensitivity, ratios)
    named = len(groups) <= NAMED_GROUPS
    with figure_style():
        figure, axes = make_canvas(ax, (FIGURE_WIDTH, 1.6 + (0.25 * len(groups) if named else 4.0)))
        # The largest losses of all look alike, so that one lost network does not make all others look harmless.
        top = max(float(np.nanquantile(losses, 0.9)), 1e-9)
        image = axes.imshow(losses, aspect="auto", cmap=share_colours(), vmin=0, vmax=top)
        if named:
            _write_losses(axes, losses, top, language)
            names = [f"{label_text(group, 36)}  {number}" for number, group in enumerate(groups, 1)]
            axes.set_yticks(range(len(groups)), names, fontsize=8)
        else:
            axes.set_ylabel(say(language, "group, in the order of the table"))
        axes.set_xticks(range(len(ratios)), [short_number(round(100 * ratio, 6), language) for ratio in ratios])
        axes.set_xlabel(say(language, "removed share of the group (%)"))
        axes.grid(visible=False)
        sns.despine(ax=axes, left=True, bottom=True)
        by_accuracy = sensitivity.accuracy is not None
        title = "accuracy lost (points)" if by_accuracy else "output error ‖y′−y‖/‖y‖ (%)"
        bar = figure.colorbar(image, ax=axes, extend="max", fraction=0.04, pad=0.02)
        bar.set_label(say(language, title))
        bar.outline.set_visible(False)
        bar.ax.yaxis.set_major_formatter(TickFormatter(language))
        order = np.argsort(-np.nansum(losses, axis=1), kind="stable")
        most, least = (label_text(groups[place], 36) for place in (order[0], order[-1]))
        finding = say(language, "Most sensitive: {most}; least: {least}", most=most, least=least)
        title_figure(figure, axes, finding, own_figure=ax is None)
    return figure


def _losses(sensitivity: Sensitivity, ratios: Sequence[float]) -> np.ndarray:
    """What is lost, by group and ratio: points of accuracy (0 where it rose), or output error in percent."""
    before = sensitivity.accuracy
    losses = np.full((len(sensitivity.groups), len(ratios)), np.nan)
    rows = {group: row for row, group in enumerate(sensitivity.groups)}
    for point in sensitivity.points:
        lost = 100 * point.error
        if before is not None and point.accuracy is not None:
            lost = max(0.0, before - point.accuracy)
        losses[rows[point.group], ratios.index(point.ratio)] = lost
    return losses


def share_colours() -> Any:
    """A colour map from white to the colour of what is removed."""
    return sns.light_palette(REMOVED, as_cmap=True)


def _write_losses(axes: Axes, losses: np.ndarray, top: float, language: str) -> None:
    for (row, column), lost in np.ndenumerate(losses):
        if np.isfinite(lost):
            text = significant(lost, 2, language) if lost < 99.5 else short_number(round(lost), language)
            weight = "bold" if lost >= top else "normal"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, fontweight=weight)


# ---------------------------------------------------------------- training


def has_curves(history: Sequence[dict[str, Any]] | None) -> bool:
    """Whether a history holds a loss or an accuracy of more than one epoch, which makes a curve.

    Args:
        history: as in `plot_training`; None holds nothing.

    Example:
        >>> has_curves([{"epoch": 1, "loss": 2.1}]), has_curves([{"epoch": 1, "loss": 2.1}, {"epoch": 2, "loss": 1.6}])
        (False, True)
    """
    curves = [curve for word in ("loss", "accuracy") for curve in _curves(history or [], word).values()]
    return any(len(values) > 1 for _, values in curves)


def plot_training(history: Sequence[dict[str, Any]], language: str = "en", ax: Axes | None = None) -> Figure:
    """Loss and accuracy (percent) by epoch, one curve per key that ends in "loss" or "accuracy".

    Args:
        history: one dictionary per epoch; "epoch" is used where given, the position from 1 otherwise.
        language: "en" or "tr".
        ax: axes to draw the accuracy alone on, or the loss where there is none; None makes a figure.

    Raises:
        InputError: there is neither a loss nor an accuracy.

    Example:
        >>> history = [{"epoch": 1, "loss": 2.1, "accuracy": 40.0}, {"epoch": 2, "loss": 1.6, "accuracy": 55.0}]
        >>> [axes.get_title(loc="left") for axes in plot_training(history).axes]
        ['Loss: 2.1 → 1.6', 'Accuracy: 40.0 % → 55.0 %']
    """
    words = [word for word in ("loss", "accuracy") if _curves(history, word)]
    if not words:
        raise InputError('plot_training: the history holds no key that ends in "loss" or "accuracy".')
    with figure_style():
        if ax is not None:
            words, figure, panels = words[-1:], _figure_of(ax), [ax]
        else:
            figure = ReportFigure(figsize=(FIGURE_WIDTH, 3.4), layout=_layout())
            panels = list(figure.subplots(1, len(words), squeeze=False).flat)
        for axes, word in zip(panels, words, strict=True):
            _draw_curves(axes, history, word, language)
    return figure


def _curves(history: Sequence[dict[str, Any]], word: str) -> dict[str, tuple[list[float], list[float]]]:
    """Epochs and values of every key about the word; records without the key are left out of its curve."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for position, record in enumerate(history, 1):
        for key, value in record.items():
            if key.lower().endswith(word) and isinstance(value, int | float):
                epochs, values = curves.setdefault(key, ([], []))
                epochs.append(float(record.get("epoch", position)))
                values.append(float(value))
    return curves


def _draw_curves(axes: Axes, history: Sequence[dict[str, Any]], word: str, language: str) -> None:
    curves = _curves(history, word)
    for position, (key, (epochs, values)) in enumerate(curves.items()):
        colour = CURVE_COLOURS[position % len(CURVE_COLOURS)]
        axes.plot(epochs, values, marker="o", markersize=4, color=colour, label=_curve_label(key, word, language))
    axes.set_xlabel(say(language, "epoch"))
    axes.set_ylabel(say(language, "loss" if word == "loss" else "accuracy (%)"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(TickFormatter(language))
    main = list(curves.values())[-1][1]
    write = _write_accuracy if word == "accuracy" else short_number
    written = [write(main[place], language) for place in (0, -1)]
    finding = " → ".join(written if len(main) > 1 else written[:1])
    title = f"{_curve_title(list(curves)[-1], word, language)}: {finding}"
    finish_axes(axes, grid="y")
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    if len(curves) > 1:
        axes.legend(loc="upper right" if word == "loss" else "lower right", fontsize=8.5)


def _write_accuracy(value: float, language: str) -> str:
    return percent(value / 100, language)


def _curve_title(key: str, word: str, language: str) -> str:
    """What a curve is: its accuracy or loss, and on which data where its key says so."""
    data = key[: -len(word)].strip("_ -./")
    if not data:
        return say(language, word.capitalize())
    return say(language, f"{word.capitalize()} ({{data}})", data=label_text(term(language, data), 24))


def _curve_label(key: str, word: str, language: str) -> str:
    """A key's name without the word that the axis already says: "val_loss" is "val"."""
    return label_text(term(language, key[: -len(word)].strip("_ -./") or word), 24)


# ---------------------------------------------------------------- accuracy by cost


@dataclasses.dataclass(frozen=True)
class CostPoint:
    """One smaller network of a `CostCurve`.

    Attributes:
        asked: the share of the MACs that was to stay, 0 to 1.
        kept: the share of the MACs that stayed.
        accuracy: in percent.
        repair: how it was repaired, in a word; empty for not at all.

    Example:
        >>> CostPoint(asked=0.5, kept=0.51, accuracy=80.0)
        CostPoint(asked=0.5, kept=0.51, accuracy=80.0, repair='')
    """

    asked: float
    kept: float
    accuracy: float
    repair: str = ""


@dataclasses.dataclass(frozen=True)
class CostCurve:
    """How a network does at several costs: one line of `plot_accuracy_cost`.

    Attributes:
        panel: the network, one panel each.
        label: what made the smaller networks, such as the criterion.
        family: labels of one family share a colour; the first family stands out.
        before: accuracy of the untouched network, in percent.
        points: one for each smaller network.

    Example:
        >>> curve = CostCurve("ResNet-20", "l2", "weights", before=90.0, points=(CostPoint(0.5, 0.51, 80.0),))
        >>> curve.before - curve.points[0].accuracy
        10.0
    """

    panel: str
    label: str
    family: str
    before: float
    points: tuple[CostPoint, ...]


def plot_accuracy_cost(curves: Sequence[CostCurve], language: str = "en") -> Figure:
    """Accuracy against the share of the MACs kept: one panel per network, one line per label, colours by family.

    The title says which label is best closest to half of the MACs.

    Args:
        curves: one per network and label; those without points are left out.
        language: "en" or "tr".

    Raises:
        InputError: there is no point.

    Example:
        >>> curve = CostCurve("net", "l2", "weights", 90.0, (CostPoint(0.5, 0.51, 80.0), CostPoint(0.8, 0.8, 88.0)))
        >>> [axes.get_title(loc="left") for axes in plot_accuracy_cost([curve]).axes]
        ['net']
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        raise InputError("plot_accuracy_cost: there is no point to draw.")
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    looks = _curve_looks(curves)
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with figure_style():
        figure = ReportFigure(figsize=(FIGURE_WIDTH, 1.5 + 2.9 * rows), layout=_layout())
        figure.set_layout_engine(_layout())
        places = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in places[len(panels) :]:
            axes.remove()
        for position, (axes, panel) in enumerate(zip(places, panels, strict=False)):
            own = [curve for curve in curves if curve.panel == panel]
            _draw_cost_curves(axes, own, looks, language)
            axes.set_title(label_text(panel), loc="left", fontsize=10, fontweight="bold")
            if position % columns == 0:
                axes.set_ylabel(say(language, "accuracy (%)"))
            if position >= len(panels) - columns:
                axes.set_xlabel(say(language, "MACs kept (%)"))
        figure.suptitle(
            wrap_title(_cost_title(curves, language), TITLE_LETTERS),
            x=0.012,
            ha="left",
            fontsize=11,
            fontweight="bold",
        )
        handles = [Line2D([], [], label=label_text(label), **look) for label, look in looks.items()]
        handles.append(Line2D([], [], color="0.4", linestyle=":", label=say(language, "before pruning")))
        figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8.5)
    return figure


def _curve_looks(curves: Sequence[CostCurve]) -> dict[str, dict[str, Any]]:
    """Colour by family, marker by place in the family; the first family is drawn thick and above the others."""
    families: dict[str, list[str]] = {}
    for curve in curves:
        labels = families.setdefault(curve.family, [])
        if curve.label not in labels:
            labels.append(curve.label)
    looks: dict[str, dict[str, Any]] = {}
    for number, labels in enumerate(families.values()):
        colour = FAMILY_COLOURS[number % len(FAMILY_COLOURS)]
        for place, label in enumerate(labels):
            look = {"color": colour, "marker": "osD^vP*X"[place % 8], "markersize": 4, "linewidth": 1.1}
            looks[label] = {**look, "markersize": 6, "linewidth": 2.6} if number == 0 else look
    return looks


def _draw_cost_curves(axes: Axes, curves: Sequence[CostCurve], looks: dict[str, dict[str, Any]], language: str) -> None:
    axes.axhline(max(curve.before for curve in curves), color="0.4", linestyle=":", linewidth=1)
    for curve in reversed(curves):  # what stands out comes last, on top
        points = sorted((100 * point.kept, point.accuracy) for point in curve.points)
        axes.plot([x for x, _ in points], [y for _, y in points], **looks[curve.label])
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(TickFormatter(language))
    axes.yaxis.set_major_formatter(TickFormatter(language))
    finish_axes(axes, grid="y")


def _cost_title(curves: Sequence[CostCurve], language: str) -> str:
    """Which label wins most panels where about half of the MACs are kept; its lead in the first panel that it wins."""
    shares = {point.asked for curve in curves for point in curve.points}
    asked = min(shares, key=lambda share: abs(share - 0.5))
    found = [(curve, point) for curve in curves for point in curve.points if point.asked == asked]
    ranked: dict[str, list[tuple[CostCurve, CostPoint]]] = {}
    for curve, point in sorted(found, key=lambda each: -each[1].accuracy):
        ranked.setdefault(curve.panel, []).append((curve, point))
    panels = [panel for panel in dict.fromkeys(curve.panel for curve in curves) if panel in ranked]
    panels = [panel for panel in panels if len(ranked[panel]) > 1] or panels  # alone, nothing is won
    winners = [ranked[panel][0][0].label for panel in panels]
    label = max(dict.fromkeys(winners), key=winners.count)
    panel = panels[winners.index(label)]
    results = [
        f"{curve.label}{f' + {point.repair}' if point.repair else ''} {percent(point.accuracy / 100, language)}"
        for curve, point in ranked[panel][:2]
    ]
    phrase = "At {share} of the MACs, {label} is best ({panel}: {results})."
    if len(panels) > 1:
        phrase = "At {share} of the MACs, {label} is best on {won} of {total} networks ({panel}: {results})."
    values = {"won": winners.count(label), "total": len(winners), "results": ", ".join(results)}
    return say(language, phrase, share=percent(asked, language, digits=0), label=label, panel=panel, **values)


# ---------------------------------------------------------------- shared


def label_text(text: str, widest: int = 60) -> str:
    """Text that matplotlib draws as it is: its end where it is long, no mathematics, no character the font lacks."""
    drawable = _drawable_characters()
    plain = "".join(char if ord(char) in drawable else "?" for char in printable(text))
    return _tail(plain, widest).replace("$", r"\$")


def _tail(text: str, widest: int) -> str:
    """The last `widest` characters, from a whole path component on where that costs little: …layer_3.conv1."""
    if len(text) <= widest:
        return text
    tail = text[len(text) - widest + 1 :]
    dot = tail.find(".")
    return "…" + (tail[dot + 1 :] if 0 <= dot < len(tail) // 2 else tail)


@functools.cache
def _drawable_characters() -> frozenset[int]:
    with figure_style():
        return frozenset(get_font(findfont(FontProperties())).get_charmap())


@contextlib.contextmanager
def figure_style() -> Generator[None]:
    """One look for all figures, whatever the caller has set; the caller's settings come back at the end."""
    look = {**sns.axes_style("whitegrid"), **sns.plotting_context("notebook", font_scale=0.8)}
    with process_state, mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({**look, "font.family": ["DejaVu Sans"], "axes.edgecolor": "0.6", "grid.color": "0.9"})
        yield


class TickFormatter(ScalarFormatter):
    """Numbers along an axis as the language writes them."""

    def __init__(self, language: str) -> None:
        super().__init__(useOffset=False)
        self._language = language

    def __call__(self, x: float, pos: int | None = None) -> str:
        return local_number(super().__call__(x, pos), self._language)


class ReportFigure(Figure):
    """A figure that a notebook shows without pyplot and ``%matplotlib``, which IPython's own display needs."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=SCREEN_DPI, metadata={"Software": None})
        return buffer.getvalue()


def make_canvas(ax: Axes | None, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """The given axes and their figure, or one pair of our own of `size` inches."""
    if ax is not None:
        return _figure_of(ax), ax
    figure = ReportFigure(figsize=size, layout=_layout())
    return figure, figure.subplots()


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, hspace=0.04, wspace=0.03)


def _figure_of(ax: Axes) -> Figure:
    return cast("Figure", ax.get_figure(root=True))


def _percent_ticks(longest: float) -> list[int]:
    """Round ticks that stop at the last bar, so that the room for its label carries none."""
    step = 20 if longest <= 130 else 20 * math.ceil(longest / 130)
    return list(range(0, math.floor(longest) + 1, step))


def finish_axes(axes: Axes, grid: str = "x") -> None:
    """Only the grid lines that help reading the values, and no box."""
    axes.grid(visible=False, axis="y" if grid == "x" else "x")
    axes.set_axisbelow(True)
    sns.despine(ax=axes)


def title_figure(figure: Figure, axes: Axes, title: str, own_figure: bool) -> None:
    """The finding: over the whole width of a figure of our own, over the axes of someone else's."""
    if own_figure:
        figure.suptitle(wrap_title(title, TITLE_LETTERS), x=0.012, ha="left", fontsize=11, fontweight="bold")
    else:
        letters = max(24, int(11 * _size_of(figure, axes)[0]))  # that many bold letters of this size in an inch
        axes.set_title(wrap_title(title, letters), loc="left", fontsize=10, fontweight="bold")


def wrap_title(title: str, letters: int) -> str:
    """A title in lines of so many letters; a percent sign stays with its number."""
    return textwrap.fill(with_minus(title).replace(" %", "\u00a0%"), letters).replace("\u00a0", " ")


def _size_of(figure: Figure, axes: Axes) -> tuple[float, float]:
    """Width and height of axes in inches, as far as they are known before the figure is laid out."""
    place = axes.get_position()
    return place.width * figure.get_figwidth(), place.height * figure.get_figheight()


def add_legend(figure: Figure, axes: Axes, own_figure: bool) -> None:
    """A legend below a figure of our own, and below the axes of someone else's."""
    handles, labels = axes.get_legend_handles_labels()
    if own_figure:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    else:
        below = -0.6 / _size_of(figure, axes)[1]  # room for the ticks and the label of the axis
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, below), ncols=len(labels), frameon=False, fontsize=8, borderpad=0
        )
