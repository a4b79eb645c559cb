"""The settings that were tried, as accuracy against what is left of the MACs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cleanai.errors import InputError
from cleanai.plots import (
    FIGURE_WIDTH,
    KEPT,
    ORIGINAL,
    TickFormatter,
    add_legend,
    figure_style,
    finish_axes,
    label_text,
    make_canvas,
    title_figure,
)
from cleanai.texts import percent, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cleanai.preview import Trial

__all__ = [
    "plot_trials",
]


def plot_trials(trials: Sequence[Trial], ax: Axes | None = None, language: str = "en") -> Figure:
    """Accuracy against the share of the MACs that is kept: one numbered point per trial, and the untouched model.

    The numbers are those of `cleanai.preview.tabulate_trials`; the title names the most accurate trial.

    Args:
        trials: of `cleanai.preview.try_settings`, with a ``test_loader``.
        ax: axes to draw on; None makes a figure.
        language: "en" or "tr".

    Raises:
        InputError: no trial was measured on test data.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner
        >>> from cleanai.preview import try_settings
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> batch = torch.randn(16, 3), torch.zeros(16, dtype=torch.int64)
        >>> pruner = StructuredPruner(net, batch[0])
        >>> trials = [try_settings(pruner, [batch], pruning_ratio=ratio) for ratio in (0.25, 0.5)]
        >>> figure = plot_trials(trials)
        >>> figure.axes[0].get_xlabel(), [text.get_text() for text in figure.axes[0].texts]
        ('MACs kept (%)', ['1', '2'])
    """
    points = [(number, trial) for number, trial in enumerate(trials, 1) if trial.metrics.accuracy is not None]
    if not points:
        raise InputError("plot_trials: no trial has an accuracy: give try_settings a test_loader.")
    original = points[0][1].before.accuracy
    with figure_style():
        figure, axes = make_canvas(ax, (FIGURE_WIDTH, 3.6))
        if original is not None:
            axes.axhline(original, color="0.4", linestyle=":", linewidth=1)
            axes.plot([100], [original], "D", color=ORIGINAL, markersize=8, label=say(language, "before pruning"))
        across = [100 * trial.macs_kept for _, trial in points]
        heights = [trial.metrics.accuracy or 0.0 for _, trial in points]
        known = heights if original is None else [*heights, original]
        axes.plot(across, heights, "o", color=KEPT, markersize=8, label=say(language, "pruned"))
        together: dict[tuple[float, float], list[str]] = {}
        for (number, _), x, y in zip(points, across, heights, strict=True):
            together.setdefault((round(x, 1), round(y, 1)), []).append(str(number))
        for place, numbers in together.items():
            axes.annotate(", ".join(numbers), place, textcoords="offset points", xytext=(7, 5), fontsize=9)
        axes.set_xlim(0, 106)
        axes.set_ylim(max(0.0, min(known) - 6), min(100.0, max(known)) + 6)
        axes.set_xlabel(say(language, "MACs kept (%)"))
        axes.set_ylabel(say(language, "accuracy (%)"))
        axes.xaxis.set_major_formatter(TickFormatter(language))
        axes.yaxis.set_major_formatter(TickFormatter(language))
        finish_axes(axes, grid="y")
        title_figure(figure, axes, _title(points, language), own_figure=ax is None)
        add_legend(figure, axes, own_figure=ax is None)
    return figure


def _title(points: Sequence[tuple[int, Trial]], language: str) -> str:
    """The finding: the most accurate trial, the smallest of those at a tie."""
    number, best = max(points, key=lambda point: (point[1].metrics.accuracy or 0.0, -point[1].macs_kept))
    return say(
        language,
        "Most accurate so far: {number} ({label}) with {accuracy} at {share} of the MACs",
        number=number,
        label=label_text(best.label, 40),
        accuracy=percent((best.metrics.accuracy or 0.0) / 100, language),
        share=percent(best.macs_kept, language),
    )
