"""The figure of a sweep: accuracy against cost, one line per method, one panel per stage."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cleanai.errors import InputError
from cleanai.experiments.results import FINETUNED, ORIGINAL, PRUNED
from cleanai.experiments.tables import method_label
from cleanai.plots import (
    FAMILY_COLOURS,
    FIGURE_WIDTH,
    TITLE_LETTERS,
    ReportFigure,
    TickFormatter,
    figure_style,
    finish_axes,
    wrap_title,
)
from cleanai.texts import percent, say, term

MARKERS = "osD^vP*X"


def plot_sweep(rows: Sequence[dict[str, Any]], language: str = "en") -> Figure:
    """Accuracy against the share of the MACs kept, of the rows of a sweep's table: mean and deviation over seeds.

    Raises:
        InputError: no row has an accuracy after pruning.

    Example:
        >>> row = {"method": "wanda", "pruning_ratio": 0.2, "seed": 0, "accuracy": 91.0, "macs": 100}
        >>> rows = [{**row, "stage": ORIGINAL}, {**row, "stage": PRUNED, "accuracy": 84.0, "macs": 64}]
        >>> len(plot_sweep(rows).axes)
        1
    """
    stages = [
        stage for stage in (PRUNED, FINETUNED) if any(r["stage"] == stage and r["accuracy"] is not None for r in rows)
    ]
    if not stages:
        raise InputError("plot_sweep: there is no accuracy to draw.")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    with figure_style():
        figure = ReportFigure(figsize=(FIGURE_WIDTH, 4.2), layout="constrained")
        panels = figure.subplots(1, len(stages), squeeze=False, sharey=True)[0]
        for axes, stage in zip(panels, stages, strict=True):
            _draw_stage(axes, rows, stage, methods, language)
            axes.set_title(term(language, stage), loc="left", fontsize=10, fontweight="bold")
            axes.set_xlabel(say(language, "MACs kept (%)"))
            axes.xaxis.set_major_formatter(TickFormatter(language))
            axes.yaxis.set_major_formatter(TickFormatter(language))
            finish_axes(axes, grid="y")
        panels[0].set_ylabel(say(language, "accuracy (%)"))
        lines, labels = panels[0].get_legend_handles_labels()
        labels = [say(language, "before pruning") if label == ORIGINAL else label for label in labels]
        seeds = len({row["seed"] for row in rows})
        note = say(language, "mean ± standard deviation of {count} seeds", count=seeds) if seeds > 1 else None
        figure.legend(lines, labels, loc="outside lower center", ncols=5, frameon=False, title=note, title_fontsize=8)
        title = wrap_title(_title(rows, stages[-1], language), TITLE_LETTERS)
        figure.suptitle(title, x=0.012, ha="left", fontsize=11, fontweight="bold")
    return figure


def _draw_stage(axes: Axes, rows: Sequence[dict[str, Any]], stage: str, methods: Sequence[str], language: str) -> None:
    originals = {(r["method"], r["pruning_ratio"], r["seed"]): r for r in rows if r["stage"] == ORIGINAL}
    axes.axhline(
        statistics.fmean(row["accuracy"] for row in originals.values()),
        color="0.4",
        linestyle=":",
        linewidth=1,
        label=ORIGINAL,
    )
    for number, method in enumerate(methods):
        points: dict[float, list[tuple[float, float]]] = {}
        for row in rows:
            if row["stage"] == stage and row["method"] == method:
                before = originals[method, row["pruning_ratio"], row["seed"]]
                kept = 100 * row["macs"] / before["macs"]
                points.setdefault(row["pruning_ratio"], []).append((kept, row["accuracy"]))
        drawn = sorted(
            (statistics.fmean(x for x, _ in found), statistics.fmean(y for _, y in found), _deviation(found))
            for found in points.values()
        )
        axes.errorbar(
            [x for x, _, _ in drawn],
            [y for _, y, _ in drawn],
            yerr=[spread for _, _, spread in drawn],
            color=FAMILY_COLOURS[number % len(FAMILY_COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            capsize=3,
            linewidth=1.6,
            label=method_label(method, language),
        )


def _deviation(points: Sequence[tuple[float, float]]) -> float:
    return statistics.stdev(y for _, y in points) if len(points) > 1 else 0.0


def _title(rows: Sequence[dict[str, Any]], stage: str, language: str) -> str:
    """Which method has the best mean at the largest ratio."""
    ratio = max(row["pruning_ratio"] for row in rows)
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["stage"] == stage and row["pruning_ratio"] == ratio:
            found.setdefault(row["method"], []).append(row["accuracy"])
    ranked = sorted(((statistics.fmean(values), method) for method, values in found.items()), reverse=True)
    results = ", ".join(f"{method_label(method, language)} {percent(mean / 100, language)}" for mean, method in ranked)
    return say(
        language,
        "At the ratio {ratio} ({stage}): {results}.",
        ratio=percent(ratio, language, digits=0),
        stage=term(language, stage),
        results=results,
    )
