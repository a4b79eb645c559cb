"""The figures of an experiment that a single report has none of: accuracy against cost, and the methods side by side.

Like `cleanai.plots`, they are drawn without pyplot, and their titles state the finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cleanai.errors import InputError
from cleanai.experiments.results import FINETUNED, ORIGINAL, PRUNED, ExperimentResults
from cleanai.experiments.tables import asked_ratio, find_method, method_label, stage_labels, write_accuracy
from cleanai.plots import (
    FAMILY_COLOURS,
    FIGURE_WIDTH,
    STAGE_COLOURS,
    TickFormatter,
    figure_style,
    finish_axes,
    label_text,
    make_canvas,
    share_colours,
    title_figure,
)
from cleanai.plots import (
    ORIGINAL as ORIGINAL_COLOUR,
)
from cleanai.texts import local_number, percent, say

METHOD_COLOURS = tuple(colour for colour in FAMILY_COLOURS if colour != ORIGINAL_COLOUR)
SMALLER = (PRUNED, FINETUNED)


def measured_accuracies(results: ExperimentResults, stage: str) -> dict[str, float]:
    """The accuracy in percent of every method that has one in the stage."""
    measured = {method: result.report.metrics.get(stage) for method, result in results.methods.items()}
    return {method: m.accuracy for method, m in measured.items() if m is not None and m.accuracy is not None}


def find_best(results: ExperimentResults, methods: Sequence[str]) -> tuple[str, str, float] | None:
    """Method, stage and accuracy of the best of the methods in the last stage in which one was measured."""
    for stage in reversed(SMALLER):
        found = {method: value for method, value in measured_accuracies(results, stage).items() if method in methods}
        if found:
            method = max(found, key=lambda name: found[name])
            return method, stage, found[method]
    return None


def plot_stage_costs(results: ExperimentResults, methods: Sequence[str] | None = None, language: str = "en") -> Figure:
    """Accuracy against the share of the FLOPs kept: the original, and each method's pruned and fine-tuned model.

    Args:
        results: of `run_experiment` or `load_results`.
        methods: some of ``results.methods``; None takes all.
        language: "en" or "tr".

    Raises:
        InputError: no smaller model has an accuracy, or a method has no result.

    Example:
        From the results that the repository holds:

        >>> from cleanai.experiments import load_results
        >>> results = load_results()["TS1_ResNet20_CIFAR10"]
        >>> plot_stage_costs(results).get_suptitle()
        'WANDA, fine-tuned: 89.32 % at 65.8 % of the FLOPs (original: 91.73 %)'
    """
    methods = list(results.methods if methods is None else methods)
    best = find_best(results, methods)
    stages = {method: find_method(results, method).report.metrics for method in methods}
    if best is None:
        raise InputError("plot_stage_costs: no pruned model was measured for accuracy.")
    original = stages[best[0]][ORIGINAL]
    labels = stage_labels(results, language)
    with figure_style():
        figure, axes = make_canvas(None, (FIGURE_WIDTH, 3.9))
        if original.accuracy is not None:
            axes.axhline(original.accuracy, color=ORIGINAL_COLOUR, linestyle=":", linewidth=1)
            axes.plot([100], [original.accuracy], "o", color=ORIGINAL_COLOUR, markersize=9)
        grey: dict[str, Any] = {"linestyle": "", "marker": "o", "color": ORIGINAL_COLOUR, "markersize": 8}
        handles = [Line2D([], [], label=labels[ORIGINAL], **grey)]
        for number, method in enumerate(methods):
            colour, mark = METHOD_COLOURS[number % len(METHOD_COLOURS)], "sD^vP*X"[number % 7]
            look: dict[str, Any] = {"color": colour, "marker": mark}
            handles.append(Line2D([], [], label=label_text(method_label(method, language), 30), **look))
            for stage, filled in zip(SMALLER, (False, True), strict=True):
                metrics = stages[method].get(stage)
                if metrics is None or metrics.accuracy is None:
                    continue
                kept = 100 * metrics.flops / original.flops
                face: dict[str, Any] = {"markerfacecolor": look["color"] if filled else "white"}
                axes.plot([kept], [metrics.accuracy], linestyle="", markersize=8, **look, **face)
                if original.accuracy is not None:
                    line = "-" if filled else "--"
                    ends = [kept, 100], [metrics.accuracy, original.accuracy]
                    axes.plot(*ends, color=look["color"], linestyle=line, linewidth=1, zorder=1)
        axes.set_xlabel(say(language, "FLOPs kept (%)"))
        axes.set_ylabel(say(language, "accuracy (%)"))
        axes.margins(x=0.08, y=0.1)
        axes.xaxis.set_major_formatter(TickFormatter(language))
        axes.yaxis.set_major_formatter(TickFormatter(language))
        finish_axes(axes, grid="y")
        title_figure(figure, axes, _cost_title(results, best, language), own_figure=True)
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return figure


def _cost_title(results: ExperimentResults, best: tuple[str, str, float], language: str) -> str:
    method, stage, _ = best
    stages = results.methods[method].report.metrics
    phrases = {
        PRUNED: "{method}, just pruned: {accuracy} at {share} of the FLOPs (original: {original})",
        FINETUNED: "{method}, fine-tuned: {accuracy} at {share} of the FLOPs (original: {original})",
    }
    return say(
        language,
        phrases[stage],
        method=label_text(method_label(method, language), 40),
        accuracy=write_accuracy(stages[stage], language),
        share=percent(stages[stage].flops / stages[ORIGINAL].flops, language),
        original=write_accuracy(stages[ORIGINAL], language),
    )


def plot_method_accuracies(results: ExperimentResults, language: str = "en") -> Figure:
    """Every method's accuracy right after pruning and after fine-tuning, beside that of the original.

    Args:
        results: of `run_experiment` or `load_results`.
        language: "en" or "tr".

    Raises:
        InputError: no method has an accuracy.

    Example:
        From the results that the repository holds:

        >>> from cleanai.experiments import load_results
        >>> results = load_results()["TS1_ResNet20_CIFAR10"]
        >>> plot_method_accuracies(results).get_suptitle()
        'Best after fine-tuning: WANDA with 89.32 % (original: 91.73 %)'
    """
    methods = list(results.methods)
    best = find_best(results, methods)
    if best is None:
        raise InputError("plot_method_accuracies: no pruned model was measured for accuracy.")
    measured = {stage: measured_accuracies(results, stage) for stage in SMALLER}
    shown = [stage for stage in SMALLER if measured[stage]]
    labels, height = stage_labels(results, language), 0.8 / len(shown)
    with figure_style():
        figure, axes = make_canvas(None, (FIGURE_WIDTH, 1.4 + len(methods) * (0.2 + 0.22 * len(shown))))
        for position, stage in enumerate(shown):
            found = measured[stage]
            places = [methods.index(method) + (position - (len(shown) - 1) / 2) * height for method in found]
            colour = STAGE_COLOURS[1 + SMALLER.index(stage)]
            axes.barh(places, list(found.values()), height * 0.9, color=colour, label=labels[stage])
            for place, value in zip(places, found.values(), strict=True):
                _write_value(axes, value, place, language)
        originals = measured_accuracies(results, ORIGINAL)
        if originals:
            original = next(iter(originals.values()))
            axes.axvline(original, color="0.35", linestyle=":", linewidth=1.2, label=labels[ORIGINAL])
        axes.set_yticks(np.arange(len(methods)), [label_text(method_label(name, language), 30) for name in methods])
        axes.invert_yaxis()
        axes.set_xlim(0, 102)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel(say(language, "accuracy (%)"))
        finish_axes(axes)
        title_figure(figure, axes, _best_title(results, best, language), own_figure=True)
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _write_value(axes: Axes, value: float, place: float, language: str) -> None:
    """The accuracy at the end of its bar, inside where there is room: the line of the original stays free."""
    inside = value > 12
    look: dict[str, Any] = {"color": "white", "ha": "right"} if inside else {"color": "black", "ha": "left"}
    text = local_number(f"{value:.2f}", language)
    axes.text(value - 0.8 if inside else value + 0.8, place, text, va="center", fontsize=8.5, **look)


def best_sentence(results: ExperimentResults, best: tuple[str, str, float], language: str) -> str:
    """Which methods are best in the last stage that was measured; those with the same written accuracy share it."""
    _, stage, accuracy = best
    found = measured_accuracies(results, stage)
    winners = [method for method, value in found.items() if f"{value:.2f}" == f"{accuracy:.2f}"]
    phrases = {
        PRUNED: "Best right after pruning: {methods} with {accuracy} (original: {original})",
        FINETUNED: "Best after fine-tuning: {methods} with {accuracy} (original: {original})",
    }
    stages = results.methods[winners[0]].report.metrics
    return say(
        language,
        phrases[stage],
        methods=", ".join(method_label(method, language) for method in winners),
        accuracy=write_accuracy(stages[stage], language),
        original=write_accuracy(stages[ORIGINAL], language),
    )


def _best_title(results: ExperimentResults, best: tuple[str, str, float], language: str) -> str:
    return label_text(best_sentence(results, best, language), 200)


def plot_removed_shares(experiments: Sequence[ExperimentResults], language: str = "en") -> Figure:
    """The share of its channels that each group loses: a row per group, a column per method of each experiment.

    Args:
        experiments: results of experiments with the same network.
        language: "en" or "tr".

    Raises:
        InputError: there is no group, or the experiments pruned networks of different groups.

    Example:
        From the results that the repository holds:

        >>> from cleanai.experiments import load_results
        >>> results = load_results()["TS1_ResNet20_CIFAR10"]
        >>> plot_removed_shares([results]).get_suptitle()
        'TS1 takes 18.8 % to 20.3 % of a group'
    """
    columns = [(results, method) for results in experiments for method in results.methods]
    shares = [_removed_shares(results, method) for results, method in columns]
    if not shares or not shares[0]:
        raise InputError("plot_removed_shares: no group was pruned.")
    if any(each.keys() != shares[0].keys() for each in shares):
        raise InputError("plot_removed_shares: these experiments pruned networks of different groups.")
    groups = list(shares[0])
    values = np.array([[each[group] for each in shares] for group in groups])
    with figure_style():
        figure, axes = make_canvas(None, (FIGURE_WIDTH, 2.2 + 0.19 * len(groups)))
        top = max(float(values.max()), 1e-9)
        image = axes.imshow(values, aspect="auto", cmap=share_colours(), vmin=0, vmax=top)
        for (row, column), share in np.ndenumerate(values):
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7)
        axes.set_yticks(range(len(groups)), [label_text(group, 36) for group in groups], fontsize=7.5)
        labels = [label_text(method_label(method, language), 30).replace(" ", "\n") for _, method in columns]
        axes.set_xticks(range(len(columns)), labels, fontsize=8)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        _head_experiments(axes, experiments, language)
        bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
        bar.set_label(say(language, "removed share of the group (%)"))
        bar.outline.set_visible(False)
        bar.ax.yaxis.set_major_formatter(TickFormatter(language))
        title_figure(figure, axes, _share_title(experiments, shares, language), own_figure=True)
    return figure


def _removed_shares(results: ExperimentResults, method: str) -> dict[str, float]:
    """The share in percent that each group lost to a method."""
    return {group.name: 100 * group.removed_share for group in find_method(results, method).report.groups}


def _head_experiments(axes: Axes, experiments: Sequence[ExperimentResults], language: str) -> None:
    """The experiments' names above their columns, with a line between them."""
    start = 0
    for results in experiments:
        end = start + len(results.methods)
        name = f"{results.config.scenario}: {asked_ratio(results, language)}"
        axes.annotate(
            label_text(name, 40),
            ((start + end - 1) / 2, 1),
            (0, 4),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
        if start:
            axes.axvline(start - 0.5, color="white", linewidth=4)
        start = end


def _share_title(experiments: Sequence[ExperimentResults], shares: Sequence[dict[str, float]], language: str) -> str:
    """How unevenly each experiment took from the groups."""
    sentences, start = [], 0
    for results in experiments:
        end = start + len(results.methods)
        found = [share for each in shares[start:end] for share in each.values()]
        least, most = (percent(share / 100, language) for share in (min(found), max(found)))
        phrase = "{scenario} takes {least} to {most} of a group"
        sentences.append(say(language, phrase, scenario=results.config.scenario, least=least, most=most))
        start = end
    return "; ".join(sentences)
