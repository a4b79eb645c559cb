"""Figures of compared criteria: score distributions, rank agreement, overlap, layer by layer, accuracy after a cut.

In the style of `cleanai.plots`: every function returns the figure, titles state the finding. Blue stands for what is
kept or agrees, orange for what is removed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from cleanai.comparison import Contrast, CriteriaComparison, CutAccuracies, label_criterion, label_repair, write_number
from cleanai.errors import InputError
from cleanai.fields import IntArray
from cleanai.plots import (
    KEPT,
    NAMED_GROUPS,
    ORIGINAL,
    REMOVED,
    ReportFigure,
    TickFormatter,
    draw_scores,
    figure_style,
    finish_axes,
    label_text,
    make_canvas,
    make_panels,
    title_figure,
)
from cleanai.rendering import with_minus
from cleanai.report import GroupRecord
from cleanai.texts import percent, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = [
    "plot_contrast",
    "plot_cut_accuracy",
    "plot_overlap",
    "plot_rank_agreement",
    "plot_removed_shares",
    "plot_score_comparison",
]

_WIDTH = 8.0
_NAME_LETTERS = 24
_RANDOM = "random"
_LINES = [colour for place, colour in enumerate(sns.color_palette("colorblind")) if place != 7]  # 7 is grey
_MARKERS = "osD^vP*X<>"


# ------------------------------------------------------------------------------------------------ score distributions


def plot_score_comparison(
    comparison: CriteriaComparison,
    group: str,
    criteria: Sequence[str] | None = None,
    *,
    ratio: float = 0.5,
    global_pruning: bool = False,
    language: str = "en",
    ax: Axes | None = None,
) -> Figure:
    """Histograms of the scores of one group, one panel per criterion, with what each would remove.

    Where a criterion removes part of the group, the cut is marked as in `cleanai.plots.plot_score_distributions`.
    Criteria that do not see the group are left out.

    Args:
        comparison: of `cleanai.compare_criteria`.
        group: the group's name.
        criteria: the names of those to show; None shows all.
        ratio: the share of the pruner's target (channels, if nothing else was asked) that each would remove, below 1.
        global_pruning: rank the units of all groups together.
        language: "en" or "tr".
        ax: axes to draw the first criterion alone on; None makes a figure.

    Raises:
        InputError: no such group or criterion, none of them sees the group, or a ratio outside [0, 1).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner, compare_criteria
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> comparison = compare_criteria(StructuredPruner(net, torch.randn(1, 3)), ["l1", "l2", "random"])
        >>> figure = plot_score_comparison(comparison, "0", ratio=0.25)
        >>> [axes.get_title(loc="left").splitlines() for axes in figure.axes]
        [['l1', '2 of 8 removed'], ['l2', '2 of 8 removed'], ['random', '2 of 8 removed']]
    """
    comparison.check_group(group)
    scores = _scores_of(comparison, criteria or comparison.names, group)
    if not scores:
        raise InputError(f"plot_score_comparison: none of the criteria sees the group {group}.")
    chosen = {name: comparison.choose(name, ratio, global_pruning=global_pruning)[group] for name in scores}
    shown = [*scores][: 1 if ax is not None else None]
    with figure_style():
        figure, panels = make_panels(ax, len(shown))
        for panel, name in zip(panels, shown, strict=True):
            draw_cut(panel, label_criterion(name, language), scores[name], chosen[name], language)
        if ax is None:
            title = _title_scores(group, comparison.sizes[group], list(chosen.values()), language)
            title_figure(figure, panels[0], title, own_figure=True)
            handles: list[Any] = [Patch(color=KEPT, label=say(language, "kept"))]
            handles.append(Patch(color=REMOVED, label=say(language, "removed")))
            handles.append(Line2D([], [], color="black", linestyle="--", label=say(language, "cut")))
            figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def draw_cut(axes: Axes, name: str, scores: Tensor, removed: IntArray, language: str) -> None:
    """The scores of a group as a histogram under a name, with what would be removed of it."""
    size, gone = len(scores), tuple(removed.tolist())
    record = GroupRecord(name, "units", (), size, size - len(gone), gone, tuple(scores.tolist()))
    draw_scores(axes, record, language)


def _scores_of(comparison: CriteriaComparison, names: Sequence[str], group: str) -> dict[str, Tensor]:
    """The scores of a group by those criteria that see it."""
    found = {name: comparison.scores[comparison.check_criterion(name)][group] for name in names}
    return {name: scores for name, scores in found.items() if scores is not None}


def _title_scores(group: str, size: int, chosen: Sequence[IntArray], language: str) -> str:
    votes = np.bincount(np.concatenate(chosen), minlength=size) if chosen else np.zeros(size)
    values = {"group": label_text(group, 36), "count": size, "criteria": len(chosen)}
    return say(
        language,
        "{group}: of {count} units, all {criteria} criteria remove {all} and none removes {none}",
        **values,
        all=int((votes == len(chosen)).sum()),
        none=int((votes == 0).sum()),
    )


# ---------------------------------------------------------------------------------------------------------- heat maps


def plot_rank_agreement(
    comparison: CriteriaComparison, group: str | None = None, *, language: str = "en", ax: Axes | None = None
) -> Figure:
    """Spearman's rank correlation of every two criteria as a heat map, in one group or on average over all.

    See `cleanai.CriteriaComparison.rank_agreement` for the average. The title names the two criteria that are most
    alike and the two that are least; random scores are left out of it.

    Args:
        comparison: of `cleanai.compare_criteria`.
        group: the group's name; None means all groups.
        language: "en" or "tr".
        ax: axes to draw on; None makes a figure.

    Raises:
        InputError: no such group.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner, compare_criteria
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> comparison = compare_criteria(StructuredPruner(net, torch.randn(1, 3)), ["l1", "l2", "random"])
        >>> figure = plot_rank_agreement(comparison)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['l1', 'l2', 'random']
    """
    values = comparison.agreement_matrix(group)
    with figure_style():
        colours = sns.blend_palette([REMOVED, "white", KEPT], as_cmap=True)
        label = say(language, "Spearman's rank correlation")
        figure = _draw_matrix(comparison, values, colours, (-1, 1), label, 2, language, ax)
        pairs = _name_pairs(comparison.names, values, lambda value: write_number(value, 2, language), language)
        where = say(language, "Rank agreement, all groups") if group is None else label_text(group, 36)
        title_figure(
            figure,
            figure.axes[0] if ax is None else ax,
            f"{where}: {pairs}",
            own_figure=ax is None,
        )
    return figure


def plot_overlap(
    comparison: CriteriaComparison,
    ratio: float = 0.5,
    *,
    global_pruning: bool = False,
    language: str = "en",
    ax: Axes | None = None,
) -> Figure:
    """The Jaccard index of what every two criteria would remove, as a heat map in percent.

    Below each number stands what chance alone would give: the mean over random choices of as many units.

    Args:
        comparison: of `cleanai.compare_criteria`.
        ratio: the share of the pruner's target (channels, if nothing else was asked) that each would remove, below 1.
        global_pruning: rank the units of all groups together.
        language: "en" or "tr".
        ax: axes to draw on; None makes a figure.

    Raises:
        InputError: a ratio outside [0, 1).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner, compare_criteria
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> comparison = compare_criteria(StructuredPruner(net, torch.randn(1, 3)), ["l1", "l2", "random"])
        >>> figure = plot_overlap(comparison, 0.25)
        >>> [text.get_text() for text in figure.axes[0].texts][:1]
        ['100']
    """
    found = comparison.overlaps(ratio, global_pruning=global_pruning)
    values = np.array([[each.jaccard for each in row] for row in found])
    chance = np.array([[each.expected for each in row] for row in found])
    with figure_style():
        label = say(language, "removed in common (%); in brackets: by chance")
        colours = sns.light_palette(REMOVED, as_cmap=True)
        figure = _draw_matrix(comparison, 100 * values, colours, (0, 100), label, 0, language, ax, beside=100 * chance)
        pairs = _name_pairs(comparison.names, values, lambda value: percent(value, language, digits=0), language)
        title_figure(
            figure,
            figure.axes[0] if ax is None else ax,
            f"{_scope(ratio, global_pruning, language)}: {pairs}",
            own_figure=ax is None,
        )
    return figure


def plot_removed_shares(
    comparison: CriteriaComparison,
    ratio: float = 0.5,
    criteria: Sequence[str] | None = None,
    *,
    global_pruning: bool = True,
    language: str = "en",
    ax: Axes | None = None,
) -> Figure:
    """The share of each group's units that each criterion would remove: a heat map, groups down, criteria across.

    Args:
        comparison: of `cleanai.compare_criteria`.
        ratio: the share of the pruner's target (channels, if nothing else was asked) that each would remove, below 1.
        criteria: the names of those to show; None shows all.
        global_pruning: rank the units of all groups together; otherwise each group loses the same share.
        language: "en" or "tr".
        ax: axes to draw on; None makes a figure.

    Raises:
        InputError: no such criterion, or a ratio outside [0, 1).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner, compare_criteria
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> comparison = compare_criteria(StructuredPruner(net, torch.randn(1, 3)), ["l1", "l2", "random"])
        >>> figure = plot_removed_shares(comparison, 0.25, ["l1", "l2"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['25', '25']
    """
    names = [comparison.check_criterion(name) for name in criteria or comparison.names]
    shares = [comparison.removed_shares(name, ratio, global_pruning=global_pruning) for name in names]
    values = np.array([[100 * share[group] for share in shares] for group in comparison.groups])
    groups = comparison.groups
    with figure_style():
        figure, axes = make_canvas(ax, (_WIDTH, 2.0 + 0.27 * min(len(groups), NAMED_GROUPS)))
        label = say(language, "removed share of the group (%)")
        _draw_fields(figure, axes, values, sns.light_palette(REMOVED, as_cmap=True), (0, 100), label, language)
        if len(groups) <= NAMED_GROUPS:
            _write_fields(axes, values, 0, language, (0, 100))
            axes.set_yticks(
                range(len(groups)), [f"{label_text(group, 36)}  {i}" for i, group in enumerate(groups, 1)], fontsize=8
            )
        else:
            axes.set_ylabel(say(language, "group, in the order of the table"))
        _name_columns(axes, names, language)
        title_figure(
            figure, axes, _title_shares(names, groups, values, ratio, global_pruning, language), own_figure=ax is None
        )
    return figure


def _title_shares(
    names: Sequence[str], groups: Sequence[str], values: np.ndarray, ratio: float, global_pruning: bool, language: str
) -> str:
    spread = values.max(0) - values.min(0)
    scope = _scope(ratio, global_pruning, language)
    if spread.max() < 1:
        return f"{scope}: {say(language, 'every criterion takes the same share of every group')}"
    column = int(spread.argmax())
    row = int(values[:, column].argmax())
    finding = say(
        language,
        "most uneven is {criterion}, which takes {high} of {group} and {low} of {other}",
        criterion=label_criterion(names[column], language),
        high=percent(values[row, column] / 100, language, digits=0),
        low=percent(values[:, column].min() / 100, language, digits=0),
        other=label_text(groups[int(values[:, column].argmin())], 36),
        group=label_text(groups[row], 36),
    )
    return f"{scope}: {finding}"


def _scope(ratio: float, global_pruning: bool, language: str) -> str:
    phrase = "Ratio {ratio}, global" if global_pruning else "Ratio {ratio}, local"
    return say(language, phrase, ratio=percent(ratio, language, digits=0))


def _draw_matrix(
    comparison: CriteriaComparison,
    values: np.ndarray,
    colours: Any,
    limits: tuple[float, float],
    label: str,
    digits: int,
    language: str,
    ax: Axes | None,
    beside: np.ndarray | None = None,
) -> Figure:
    names = comparison.names
    figure, axes = make_canvas(ax, (_WIDTH, 1.9 + 0.4 * len(names)))
    _draw_fields(figure, axes, values, colours, limits, label, language)
    _write_fields(axes, values, digits, language, limits, beside)
    axes.set_yticks(
        range(len(names)), [label_text(label_criterion(name, language), 36) for name in names], fontsize=8.5
    )
    _name_columns(axes, names, language)
    return figure


def _draw_fields(
    figure: Figure, axes: Axes, values: np.ndarray, colours: Any, limits: tuple[float, float], label: str, language: str
) -> None:
    image = axes.imshow(values, aspect="auto", cmap=colours, vmin=limits[0], vmax=limits[1])
    axes.grid(visible=False)
    sns.despine(ax=axes, left=True, bottom=True)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label(label, fontsize=8.5)
    bar.ax.yaxis.set_major_formatter(TickFormatter(language))
    bar.outline.set_visible(False)


def _write_fields(
    axes: Axes,
    values: np.ndarray,
    digits: int,
    language: str,
    limits: tuple[float, float],
    beside: np.ndarray | None = None,
) -> None:
    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value):
            continue
        text = with_minus(write_number(value, digits, language))
        if beside is not None and row != column:
            text += f"\n({write_number(beside[row, column], digits, language)})"
        colour = "white" if limits[0] < 0 and value > 0.6 * limits[1] else "black"  # on blue; orange stays bright
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour, linespacing=0.95)


def _name_columns(axes: Axes, names: Sequence[str], language: str) -> None:
    labels = [label_text(label_criterion(name, language), 36) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=35, ha="right", rotation_mode="anchor", fontsize=8.5)


def _name_pairs(names: Sequence[str], values: np.ndarray, write: Callable[[float], str], language: str) -> str:
    """The two criteria that are most alike and the two that are least, chance aside."""
    pairs = [
        (a, b)
        for a, b in itertools.combinations(range(len(names)), 2)
        if np.isfinite(values[a, b]) and _RANDOM not in (names[a], names[b])
    ]
    if not pairs:
        return say(language, "nothing to compare")
    ranked = sorted(pairs, key=lambda pair: -values[pair])
    found = {}
    for word, (a, b) in (("most", ranked[0]), ("least", ranked[-1])):
        both = " / ".join(label_criterion(names[each], language) for each in (a, b))
        found[word] = f"{both} ({write(values[a, b])})"
    if len(ranked) == 1:
        return found["most"]
    return say(language, "most alike {most}; least alike {least}", **found)


# ------------------------------------------------------------------------------------------------------ one criterion


def plot_contrast(comparison: CriteriaComparison, contrast: Contrast, group: str, *, language: str = "en") -> Figure:
    """One criterion beside another: its scores in a group with the cut, and what both would remove layer by layer.

    The title says how alike the two are: their rank agreement over all groups, and the overlap of what they remove.

    Args:
        comparison: of `cleanai.compare_criteria`.
        contrast: of `cleanai.CriteriaComparison.contrast`, from the same comparison.
        group: the group whose scores are shown.
        language: "en" or "tr".

    Raises:
        InputError: no such group.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner, compare_criteria
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> comparison = compare_criteria(StructuredPruner(net, torch.randn(1, 3)), ["l1", "l2", "random"])
        >>> figure = plot_contrast(comparison, comparison.contrast("l1", "random", 0.25), "0")
        >>> len(figure.axes)
        2
    """
    comparison.check_group(group)
    with figure_style():
        figure, panels = _contrast_panels(comparison.groups)
        scores = comparison.scores[contrast.first][group]
        if scores is None:
            name = label_criterion(contrast.first, language)
            text = say(language, "{criterion} does not see {group}", criterion=name, group=label_text(group, 36))
            panels[0].text(0.5, 0.5, text, ha="center", va="center", transform=panels[0].transAxes)
            panels[0].set_axis_off()
        else:
            draw_cut(panels[0], group, scores, contrast.chosen[contrast.first][group], language)
        _draw_shares(panels[1], comparison, contrast.chosen, group, language)
        for panel in panels:  # a title at a given height is not moved, for which everything would be measured
            panel.set_title(panel.get_title(loc="left"), loc="left", y=1.0, fontsize=8.5)
        title_figure(figure, panels[0], contrast.describe(language), own_figure=True)
        handles, labels = panels[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower right", ncols=2, frameon=False, fontsize=9)
        states = [Patch(color=REMOVED, label=say(language, "removed")), Patch(color=KEPT, label=say(language, "kept"))]
        figure.legend(handles=states, loc="lower left", ncols=2, frameon=False, fontsize=9)
    return figure


def _contrast_panels(groups: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Two panels with room for the names between them, laid out by hand: half the time of an automatic layout."""
    width, height = _WIDTH + 1.5, max(3.6, 1.6 + 0.17 * len(groups))
    longest = max(len(label_text(group, _NAME_LETTERS)) for group in groups)
    names = 0.3 + 0.065 * longest if len(groups) <= NAMED_GROUPS else 0.6
    half = (width - 0.8 - names - 0.2) / 2  # inches: the axis of the left panel, the names, the right edge
    figure = ReportFigure(figsize=(width, height))
    top, bottom = 1 - 0.95 / height, 0.85 / height
    places = [(0.8, top), (0.8 + half + names, top + 0.3 / height)]
    return figure, [figure.add_axes((left / width, bottom, half / width, upper - bottom)) for left, upper in places]


def _draw_shares(
    axes: Axes, comparison: CriteriaComparison, choice: Mapping[str, Mapping[str, IntArray]], group: str, language: str
) -> None:
    """What each criterion removes of every group, in percent, the group that is looked at in bold."""
    groups, sizes = comparison.groups, comparison.sizes
    places = np.arange(len(groups))
    looks = ((REMOVED, 1.0), (ORIGINAL, 1.0))
    for number, ((name, chosen), (colour, alpha)) in enumerate(zip(choice.items(), looks, strict=False)):
        shares = [100 * len(chosen[each]) / sizes[each] for each in groups]
        height, shift = (0.8, 0.0) if len(choice) == 1 else (0.4, 0.2 * (2 * number - 1))
        axes.barh(places + shift, shares, height, color=colour, alpha=alpha, label=label_criterion(name, language))
    if len(groups) <= NAMED_GROUPS:
        axes.set_yticks(places, [label_text(each, _NAME_LETTERS) for each in groups], fontsize=7.5)
        axes.get_yticklabels()[groups.index(group)].set_fontweight("bold")
    else:
        axes.set_ylabel(say(language, "group, in the order of the table"))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(say(language, "removed share of the group (%)"), fontsize=8)
    axes.tick_params(axis="x", labelsize=7.5)
    finish_axes(axes)


# ------------------------------------------------------------------------------------------------ accuracy after a cut


def plot_cut_accuracy(accuracies: CutAccuracies, *, language: str = "en", ax: Axes | None = None) -> Figure:
    """Accuracy after a cut by ratio, one line per criterion and one panel per repair.

    The title says which criterion is best in the middle of the ratios, as cut and as repaired.

    Args:
        accuracies: of `cleanai.measure_criteria`.
        language: "en" or "tr".
        ax: axes to draw the last repair alone on; None makes a figure.

    Raises:
        InputError: there is no cut.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner, measure_criteria
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> batch = torch.randn(16, 3), torch.zeros(16, dtype=torch.int64)
        >>> pruner = StructuredPruner(net, batch[0])
        >>> accuracies = measure_criteria(pruner, [batch], ["l1", "random"], ratios=(0.25, 0.5), repairs=["none"])
        >>> figure = plot_cut_accuracy(accuracies)
        >>> [(axes.get_title(loc="left"), axes.get_xlabel()) for axes in figure.axes]
        [('no repair', 'removed ratio (%)')]
    """
    if not accuracies.points:
        raise InputError("plot_cut_accuracy: there is no cut to draw.")
    repairs = accuracies.repairs[-1 if ax is not None else 0 :]
    with figure_style():
        figure, panels = make_panels(ax, len(repairs))
        if ax is None:
            figure.set_size_inches(_WIDTH + 0.8, 4.0)
        for panel, repair in zip(panels, repairs, strict=True):
            _draw_accuracies(panel, accuracies, repair, language)
            panel.sharey(panels[0]) if panel is not panels[0] else panel.set_ylabel(say(language, "accuracy (%)"))
        title_figure(figure, panels[0], _title_accuracies(accuracies, repairs, language), own_figure=ax is None)
        handles, labels = panels[0].get_legend_handles_labels()
        if ax is None:
            figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
        else:
            panels[0].legend(fontsize=7.5)
    return figure


def _draw_accuracies(axes: Axes, accuracies: CutAccuracies, repair: str, language: str) -> None:
    axes.axhline(accuracies.original, color="0.4", linestyle=":", linewidth=1.2, label=say(language, "before pruning"))
    for place, name in enumerate(accuracies.criteria):
        values = [accuracies.point(name, ratio, repair).accuracy for ratio in accuracies.ratios]
        look: dict[str, Any] = {"color": _LINES[place % len(_LINES)], "linestyle": "-"}
        if name == _RANDOM:
            look = {"color": "black", "linestyle": "--"}
        marker = _MARKERS[place % len(_MARKERS)]
        axes.plot(
            [100 * ratio for ratio in accuracies.ratios],
            values,
            marker=marker,
            markersize=4.5,
            linewidth=1.4,
            label=label_text(label_criterion(name, language), 36),
            **look,
        )
    axes.set_ylim(0, 103)
    axes.set_title(label_repair(repair, language), loc="left", fontsize=9.5)
    axes.set_xlabel(say(language, "removed ratio (%)"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_formatter(TickFormatter(language))
    finish_axes(axes, grid="y")


def _title_accuracies(accuracies: CutAccuracies, repairs: Sequence[str], language: str) -> str:
    ratio = accuracies.ratios[len(accuracies.ratios) // 2]
    found = []
    for repair in repairs:
        best = accuracies.best(ratio, repair)
        name = label_criterion(best.criterion, language)
        found.append(f"{label_repair(repair, language)}: {name} ({percent(best.accuracy / 100, language)})")
    return say(language, "Best at {ratio}: {found}", ratio=percent(ratio, language, digits=0), found="; ".join(found))
