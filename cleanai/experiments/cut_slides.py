"""The slides of a study of cuts: criteria, repair, global against local, iterative against one-shot, a wrong sign.

Titles are made from the numbers that are shown: other numbers give another title.
"""

from __future__ import annotations

import operator
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cleanai.errors import InputError
from cleanai.experiments.cut_study import Cut, CutStudy, ScoreExample
from cleanai.experiments.slides import (
    LOOKS,
    SlideFigure,
    before_handle,
    draw_before,
    find_look,
    make_slide,
    share_legend,
    slide_style,
    title_panel,
    write_value,
)
from cleanai.experiments.tables import BEST, method_label, points
from cleanai.plots import KEPT, REMOVED, TickFormatter, finish_axes, label_text
from cleanai.rendering import Table
from cleanai.texts import MISSING, local_number, percent, say, term, whole_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RECOVERIES = ("none", "batchnorm", "least_squares")


# ----------------------------------------------------------------------------------------------------- the numbers


def criterion_label(criterion: str, language: str) -> str:
    """A criterion's name in words."""
    if criterion == "weight_activation":
        return term(language, "weight + activation")
    return method_label(criterion, language)


def list_criteria(study: CutStudy) -> list[str]:
    """The criteria of a study, in the order of the slides. Raises `InputError` when it holds no cut."""
    found = dict.fromkeys(cut.criterion for cut in study.cuts)
    if not found:
        raise InputError("This study holds no cut: there is nothing to draw.")
    return [*(name for name in LOOKS if name in found), *(name for name in found if name not in LOOKS)]


def list_ratios(study: CutStudy, recovery: str = "none") -> list[float]:
    """The shares of the MACs that global cuts in one step with this repair were to remove."""
    return sorted({cut.ratio for cut in study.find(recovery=recovery)})


def mean_points(study: CutStudy, criterion: str, **settings: Any) -> dict[float, tuple[float, float]]:
    """Ratio to share of the MACs kept and accuracy, both in percent; the mean where several seeds were measured."""
    found: dict[float, list[Cut]] = {}
    for cut in study.find(criterion=criterion, **settings):
        found.setdefault(cut.ratio, []).append(cut)
    return {
        ratio: (float(np.mean([100 * cut.macs_kept for cut in cuts])), float(np.mean([cut.accuracy for cut in cuts])))
        for ratio, cuts in found.items()
    }


def mean_accuracies(study: CutStudy, criterion: str, **settings: Any) -> dict[float, float]:
    """Accuracy in percent by ratio; the mean where several seeds were measured.

    Args:
        study: of `load_study`.
        criterion: the name of the importance.
        settings: other fields of `Cut`, as `CutStudy.find` takes them.

    Example:
        From the study that the repository holds:

        >>> from cleanai.experiments import load_study
        >>> list(mean_accuracies(load_study(), "coverage"))
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    """
    return {ratio: accuracy for ratio, (_, accuracy) in mean_points(study, criterion, **settings).items()}


def find_best(study: CutStudy, ratio: float, recovery: str) -> tuple[str, float]:
    """Name and accuracy of the best criterion at a ratio; the first of equals."""
    measured = [(name, mean_accuracies(study, name, recovery=recovery).get(ratio)) for name in list_criteria(study)]
    return max(((name, value) for name, value in measured if value is not None), key=operator.itemgetter(1))


# ---------------------------------------------------------------------------------------------------------- criteria


def slide_matrix(study: CutStudy, language: str = "en") -> SlideFigure:
    """The method comparison matrix: accuracy by criterion and share of the MACs removed, without and with repair.

    The best of each column is bold. Raises `InputError` when the study holds no cut.
    """
    criteria, panels = list_criteria(study), _list_panels(study)
    widths = [len(list_ratios(study, recovery)) for recovery in panels]
    with slide_style():
        finding = _matrix_finding(study, panels, language)
        figure, axes = make_slide(finding, study_foot(study, language), len(panels), width_ratios=widths)
        for panel, recovery in zip(axes, panels, strict=True):
            _draw_matrix(panel, study, criteria, recovery, language)
            title_panel(
                panel, textwrap.fill(_repair_title(recovery, language), 5 * len(list_ratios(study, recovery))), 17
            )
            panel.set_yticks([])
        names = [criterion_label(criterion, language) for criterion in criteria]
        axes[0].set_yticks(range(len(names)), names, fontsize=18)
    return figure


def matrix_table(study: CutStudy, language: str = "en") -> Table:
    """Accuracy by criterion and share of the MACs removed, without and with repair; the best of each column is marked.

    Args:
        study: of `load_study`.
        language: "en" or "tr".

    Example:
        From the study that the repository holds:

        >>> from cleanai.experiments import load_study
        >>> matrix_table(load_study()).columns[:4]
        ('criterion', '10 %', '20 %', '30 %')
    """
    criteria = list_criteria(study)
    columns, cells = [], []
    for recovery in _list_panels(study):
        found = [mean_accuracies(study, criterion, recovery=recovery) for criterion in criteria]
        for ratio in list_ratios(study, recovery):
            share = percent(ratio, language, digits=0)
            columns.append(share if recovery == "none" else f"{share}, {_repair_title(recovery, language)}")
            values = [accuracies.get(ratio) for accuracies in found]
            top = max(value for value in values if value is not None)
            cells.append([MISSING if v is None else _cell(v, language) + (BEST if v == top else "") for v in values])
    rows = tuple(
        (criterion_label(criterion, language), *line)
        for criterion, line in zip(criteria, zip(*cells, strict=True), strict=True)
    )
    heads = (term(language, "criterion"), *columns)
    notes = (study_foot(study, language), say(language, "†: the best value of the column."))
    title = say(language, "Accuracy (%) by criterion and share of the MACs removed")
    return Table(title, heads, rows, "l" + "r" * len(columns), notes)


def _cell(accuracy: float, language: str) -> str:
    return local_number(f"{accuracy:.2f}", language)


def _draw_matrix(axes: Axes, study: CutStudy, criteria: Sequence[str], recovery: str, language: str) -> None:
    ratios = list_ratios(study, recovery)
    values = np.full((len(criteria), len(ratios)), np.nan)
    for row, criterion in enumerate(criteria):
        for ratio, accuracy in mean_accuracies(study, criterion, recovery=recovery).items():
            values[row, ratios.index(ratio)] = accuracy
    axes.imshow(values, aspect="auto", cmap=sns.light_palette(KEPT, as_cmap=True), vmin=0, vmax=100)
    tops = np.nanmax(values, axis=0)
    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value):
            axes.text(column, row, MISSING, ha="center", va="center", color="0.6", fontsize=18)
        else:
            weight = "bold" if value == tops[column] else "normal"
            look: dict[str, Any] = {"color": "white" if value > 60 else "black", "fontsize": 18, "fontweight": weight}
            axes.text(column, row, local_number(f"{value:.1f}", language), ha="center", va="center", **look)
    axes.set_xticks(range(len(ratios)), [percent(ratio, language, digits=0) for ratio in ratios])
    axes.set_xlabel(say(language, "MACs removed"))
    axes.grid(visible=False)
    sns.despine(ax=axes, left=True, bottom=True)


def _matrix_finding(study: CutStudy, panels: Sequence[str], language: str) -> str:
    """The best criterion at the deepest cut of the last panel, without and with repair."""
    ratio = max(list_ratios(study, panels[-1]))
    bests = [find_best(study, ratio, recovery) for recovery in panels]
    texts = [f"{criterion_label(name, language)} {percent(value / 100, language)}" for name, value in bests]
    phrase = "Best with {share} of the MACs gone: {best}"
    if len(texts) > 1:
        phrase = "Best with {share} of the MACs gone: {best}; repaired without training: {repaired}"
    return say(language, phrase, share=percent(ratio, language, digits=0), best=texts[0], repaired=texts[-1])


def slide_tradeoff(study: CutStudy, language: str = "en") -> SlideFigure:
    """Accuracy against the share of the MACs kept, one line per criterion: right after the cut, and repaired.

    Raises `InputError` when the study holds no cut.
    """
    criteria, panels = list_criteria(study), _list_panels(study)
    with slide_style():
        finding, foot = _tradeoff_finding(study, panels, language), study_foot(study, language)
        figure, axes = make_slide(finding, foot, len(panels), sharex=True, sharey=True)
        for panel, recovery in zip(axes, panels, strict=True):
            draw_before(panel, study.accuracy)
            for criterion in criteria:
                points_of = mean_points(study, criterion, recovery=recovery).values()
                panel.plot([kept for kept, _ in points_of], [value for _, value in points_of], **find_look(criterion))
            title_panel(panel, _repair_title(recovery, language))
            _finish_cost_axes(panel, language)
        axes[0].set_ylabel(say(language, "accuracy (%)"))
        handles = [Line2D([], [], label=criterion_label(name, language), **find_look(name)) for name in criteria]
        share_legend(figure, [*handles, before_handle(language)])
    return figure


def _tradeoff_finding(study: CutStudy, panels: Sequence[str], language: str) -> str:
    """What the repair does to the criterion that is best after it, at the deepest cut that was repaired."""
    ratio = max(list_ratios(study, panels[-1]))
    name, repaired = find_best(study, ratio, panels[-1])
    plain = mean_accuracies(study, name).get(ratio)
    phrase = "At {share} of the MACs, {name} is at {repaired} (original: {before})"
    if len(panels) > 1 and plain is not None:
        phrase = (
            "At {share} of the MACs, repair without training brings {name} from {plain} to {repaired} "
            "(original: {before})"
        )
    return say(
        language,
        phrase,
        share=percent(1 - ratio, language, digits=0),
        name=criterion_label(name, language),
        plain=_write_accuracy(plain, language),
        repaired=_write_accuracy(repaired, language),
        before=_write_accuracy(study.accuracy, language),
    )


# --------------------------------------------------------------------------------------------------------- strategies


def slide_scope(study: CutStudy, language: str = "en") -> SlideFigure:
    """Global against local: the channels of all layers ranked together, or every layer giving the same share.

    Raises `InputError` when the study holds no such pair of cuts.
    """
    variants = {say(language, name): {"scope": name} for name in ("global", "local")}
    return _slide_pair(study, variants, language)


def slide_steps(study: CutStudy, language: str = "en") -> SlideFigure:
    """Iterative against one-shot: several small cuts, each scored (and repaired) anew, or all at once.

    Raises `InputError` when the study holds no such pair of cuts.
    """
    steps = max((cut.steps for cut in study.cuts if cut.steps > 1), default=0)
    iterative = say(language, "iterative ({n} steps)", n=steps)
    variants = {iterative: {"steps": steps}, say(language, "one-shot"): {"steps": 1}}
    return _slide_pair(study, variants, language)


def _slide_pair(study: CutStudy, variants: Mapping[str, Mapping[str, Any]], language: str) -> SlideFigure:
    """Two ways to cut, as bars side by side, for every criterion that was measured with both."""
    pairs = {recovery: find_pairs(study, *variants.values(), recovery=recovery) for recovery in RECOVERIES}
    pairs = {recovery: found for recovery, found in pairs.items() if found}
    if not pairs:
        raise InputError(f"The study holds no two cuts that differ in {' and '.join(variants)} only.")
    compared = {first.criterion for found in pairs.values() for first, _ in found}
    criteria = [name for name in list_criteria(study) if name in compared]
    with slide_style():
        finding = _pair_finding([pair for found in pairs.values() for pair in found], list(variants), language)
        figure, axes = make_slide(finding, study_foot(study, language), len(pairs), sharey=True)
        for panel, (recovery, found) in zip(axes, pairs.items(), strict=True):
            _draw_pairs(
                panel, sorted(found, key=lambda pair: (criteria.index(pair[0].criterion), pair[0].ratio)), language
            )
            draw_before(panel, study.accuracy)
            title_panel(panel, _repair_title(recovery, language))
            panel.set_xlabel(say(language, "MACs removed"))
            panel.set_ylim(0, 100)
            panel.yaxis.set_major_formatter(TickFormatter(language))
            finish_axes(panel, grid="y")
        axes[0].set_ylabel(say(language, "accuracy (%)"))
        handles = [
            Patch(**_variant_look(name, second), label=f"{criterion_label(name, language)}: {variant}")
            for name in criteria
            for second, variant in enumerate(variants)
        ]
        share_legend(figure, [*handles, before_handle(language)], columns=3)
    return figure


def _draw_pairs(axes: Axes, pairs: Sequence[tuple[Cut, Cut]], language: str) -> None:
    """Two bars for each pair, the second one pale."""
    for place, pair in enumerate(pairs):
        for second, cut in enumerate(pair):
            at = place + 0.4 * (second - 0.5)
            axes.bar(at, cut.accuracy, 0.38, **_variant_look(cut.criterion, second))
            write_value(axes, at, cut.accuracy, language)
    axes.set_xticks(range(len(pairs)), [percent(first.ratio, language, digits=0) for first, _ in pairs])


def _variant_look(criterion: str, second: int) -> dict[str, Any]:
    colour = find_look(criterion)["color"]
    return {"facecolor": (*colour, 0.35) if second else colour, "edgecolor": colour, "linewidth": 2}


def find_pairs(
    study: CutStudy, first: Mapping[str, Any], second: Mapping[str, Any], recovery: str
) -> list[tuple[Cut, Cut]]:
    """Cuts of the same criterion, ratio and seed, one of each variant."""
    one, other = (
        {(cut.criterion, cut.ratio, cut.seed): cut for cut in study.find(recovery=recovery, **settings)}
        for settings in (first, second)
    )
    return [(cut, other[key]) for key, cut in one.items() if key in other]


def _pair_finding(pairs: Sequence[tuple[Cut, Cut]], names: Sequence[str], language: str) -> str:
    """Which of two ways wins more comparisons, and its largest lead."""
    wins = [sum(pair[one].accuracy > pair[1 - one].accuracy for pair in pairs) for one in (0, 1)]
    winner = 0 if wins[0] >= wins[1] else 1
    lead, at = max(((pair[winner].accuracy - pair[1 - winner].accuracy, pair[0]) for pair in pairs), key=_first)
    phrase = (
        "{winner} beats {loser} in {won} of {total} cuts; largest lead: {lead} ({criterion}, {share} of the MACs gone)"
    )
    if wins[0] == wins[1]:
        phrase = (
            "{winner} and {loser} win {won} of {total} cuts each; largest lead of {winner}: {lead} ({criterion}, "
            "{share} of the MACs gone)"
        )
    text = say(
        language,
        phrase,
        winner=names[winner],
        loser=names[1 - winner],
        won=wins[winner],
        total=len(pairs),
        lead=points(lead, language),
        criterion=criterion_label(at.criterion, language),
        share=percent(at.ratio, language, digits=0),
    )
    return capitalise(text, language)


_first = operator.itemgetter(0)


# --------------------------------------------------------------------------------------------------- the inverted sign


def slide_inverted(study: CutStudy, language: str = "en") -> SlideFigure:
    """The inverted importance: which channels of a layer go when the sign is wrong, and what that costs.

    Raises `InputError` when the study holds no example of scores, or no inverted cut by its criterion.
    """
    criterion = study.examples[0].criterion if study.examples else ""
    if not study.find(criterion=criterion, inverted=True):
        raise InputError("slide_inverted: the study holds no example of scores, or no inverted cut by its criterion.")
    with slide_style():
        finding = _inverted_finding(study, criterion, language)
        figure, [left, right] = make_slide(finding, study_foot(study, language), 2, width_ratios=[1, 1.2])
        _draw_example(left, study.examples[0], language)
        _draw_inverted(right, study, criterion, language)
        handles, _ = right.get_legend_handles_labels()
        share_legend(figure, [*handles, before_handle(language)], columns=len(handles) + 1)
    return figure


def _draw_example(axes: Axes, example: ScoreExample, language: str) -> None:
    """A layer's channels by score, twice: what goes the right way round, and what goes when the sign is wrong."""
    order = sorted(range(len(example.scores)), key=lambda channel: example.scores[channel])
    top = max(example.scores)
    rows = (
        ("right: the lowest go", example.removed, 1.35 * top),
        ("wrong: the highest go", example.removed_inverted, 0.0),
    )
    for label, removed, base in rows:
        colours = [REMOVED if channel in removed else KEPT for channel in order]
        heights = [max(example.scores[channel], 0.02 * top) for channel in order]  # so that dead channels are seen
        axes.bar(range(len(order)), heights, 0.9, bottom=base, color=colours, linewidth=0)
        axes.text(-0.5, base + 1.12 * top, say(language, label), fontsize=18, va="center")
    axes.set_ylim(0, 2.6 * top)
    axes.set_yticks([])
    axes.set_xticks([])
    axes.set_xlabel(say(language, "channels of {layer}, by score", layer=label_text(example.group)))
    title_panel(axes, say(language, "what goes (orange)"))
    finish_axes(axes, grid="y")


def _draw_inverted(axes: Axes, study: CutStudy, criterion: str, language: str) -> None:
    """Accuracy by share removed: the right way round, at random, and inverted."""
    series = {
        "right way round": (mean_accuracies(study, criterion), KEPT),
        "random": (mean_accuracies(study, "random"), find_look("random")["color"]),
        "wrong sign": (mean_accuracies(study, criterion, inverted=True), REMOVED),
    }
    ratios = sorted(series["wrong sign"][0])
    width = 0.8 / len(series)
    for position, (label, (found, colour)) in enumerate(series.items()):
        bars = {place + (position - 1) * width: found[ratio] for place, ratio in enumerate(ratios) if ratio in found}
        axes.bar(list(bars), list(bars.values()), 0.92 * width, color=colour, label=say(language, label))
        for place, value in bars.items():
            write_value(axes, place, value, language)
    draw_before(axes, study.accuracy)
    axes.set_ylim(0, 105)
    axes.set_xticks(range(len(ratios)), [percent(ratio, language, digits=0) for ratio in ratios])
    axes.set_xlabel(say(language, "MACs removed"))
    title = say(language, "accuracy (%), {criterion}", criterion=criterion_label(criterion, language))
    title_panel(axes, title)
    axes.yaxis.set_major_formatter(TickFormatter(language))
    finish_axes(axes, grid="y")


def _inverted_finding(study: CutStudy, criterion: str, language: str) -> str:
    """What is left after the smallest inverted cut, and what the same cut leaves the right way round and at random."""
    wrong = mean_accuracies(study, criterion, inverted=True)
    ratio = min(wrong)
    return say(
        language,
        "One wrong sign: {share} of the MACs gone leave {wrong} instead of {right} (random: {random})",
        share=percent(ratio, language, digits=0),
        wrong=_write_accuracy(wrong[ratio], language),
        right=_write_accuracy(mean_accuracies(study, criterion).get(ratio), language),
        random=_write_accuracy(mean_accuracies(study, "random").get(ratio), language),
    )


# ------------------------------------------------------------------------------------------------------------ shared


def study_foot(study: CutStudy, language: str) -> str:
    """What the cuts were measured on."""
    counts = {"tests": study.test_images, "calibration": study.calibration_images}
    written = {name: whole_number(count, language) for name, count in counts.items()}
    phrase = (
        "{model}, {data}: {tests} test images; scores and repairs saw {calibration} training images; nothing was "
        "trained."
    )
    sentences = [say(language, phrase, model=study.model, data=study.data, **written)]
    seeds = len({cut.seed for cut in study.find(criterion="random")})
    if seeds > 1:
        sentences.append(say(language, "Random: the mean of up to {seeds} draws.", seeds=seeds))
    return " ".join(sentences)


def _list_panels(study: CutStudy) -> list[str]:
    """Right after the cut, then repaired, the best repair last; as far as there are such cuts."""
    return [recovery for recovery in RECOVERIES if list_ratios(study, recovery)]


def _repair_title(recovery: str, language: str) -> str:
    titles = {
        "none": "right after the cut",
        "batchnorm": "BatchNorm renewed",
        "least_squares": "least squares",
    }
    return say(language, titles[recovery])


def _write_accuracy(accuracy: float | None, language: str) -> str:
    return MISSING if accuracy is None else percent(accuracy / 100, language)


def capitalise(text: str, language: str) -> str:
    """A sentence with a capital at its start; Turkish has one for i of its own."""
    first = "İ" if language == "tr" and text[:1] == "i" else text[:1].upper()
    return first + text[1:]


def _finish_cost_axes(axes: Axes, language: str) -> None:
    axes.set_ylim(0, 100)
    axes.set_xlabel(say(language, "MACs kept (%)"))
    axes.xaxis.set_major_formatter(TickFormatter(language))
    axes.yaxis.set_major_formatter(TickFormatter(language))
    finish_axes(axes, grid="y")
