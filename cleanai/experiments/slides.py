"""Slides: figures of 13.33 × 7.5 inches with a finding above and a foot that says what was measured, and their files.

What is drawn on them is in `result_slides` (experiments) and `cut_slides` (many cuts of one network).
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import textwrap
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from cleanai.errors import InputError
from cleanai.plots import KEPT, ReportFigure, figure_style, label_text
from cleanai.rendering import Table, with_minus
from cleanai.serialize import write_bytes, write_text
from cleanai.texts import local_number, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SLIDE_INCHES = (40 / 3, 7.5)
SLIDE_DPI = 144  # 1920 × 1080 pixels
NOTEBOOK_DPI = 54
FORMATS = ("png", "svg", "pdf")
TITLE_SIZE, TABLE_SIZE, FOOT_SIZE = 25, 18, 13
VALUE_SIZE = 15  # of numbers at bars and points
TITLE_LETTERS, FOOT_LETTERS, HEAD_LETTERS = 57, 128, 10

_PALETTE = sns.color_palette("colorblind")
LOOKS: dict[str, dict[str, Any]] = {
    "coverage": {"color": KEPT, "marker": "o"},
    "wanda": {"color": _PALETTE[1], "marker": "s"},
    "weight_activation": {"color": _PALETTE[2], "marker": "D"},
    "magnitude": {"color": _PALETTE[4], "marker": "^"},
    "taylor": {"color": _PALETTE[5], "marker": "v"},
    "random": {"color": (0.45, 0.45, 0.45), "marker": "X", "linestyle": ":"},
}
"""A criterion looks the same on every slide."""

BEFORE: dict[str, Any] = {"color": "0.4", "linestyle": (0, (1, 2)), "linewidth": 2}


def find_look(criterion: str) -> dict[str, Any]:
    """Colour and mark of a criterion; one that is not in `LOOKS` is black."""
    return LOOKS.get(criterion, {"color": "black", "marker": "P"})


class SlideFigure(ReportFigure):
    """A slide: prints its finding, shows itself small in a notebook, and is saved at full size by `save_slide`."""

    finding = ""

    def __repr__(self) -> str:
        return self.finding

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with slide_style():
            self.savefig(buffer, format="png", dpi=NOTEBOOK_DPI, metadata={"Software": None})
        return buffer.getvalue()


@contextlib.contextmanager
def slide_style() -> Generator[None]:
    """The look of all figures with letters for the last row; the caller's settings come back at the end."""
    sizes = {"axes.titlesize": 20, "axes.labelsize": 18, "xtick.labelsize": 16, "ytick.labelsize": 16}
    lines = {"lines.linewidth": 3, "lines.markersize": 11, "legend.fontsize": 16, "font.size": 16}
    # TrueType letters stay text that can be searched; in SVG they are drawn, so that no viewer lacks the font.
    files = {"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "cleanai"}
    look: dict[Any, Any] = {**sizes, **lines, **files}
    with figure_style():
        mpl.rcParams.update(look)
        yield


def make_slide(finding: str, foot: str, columns: int = 1, **settings: Any) -> tuple[SlideFigure, list[Axes]]:
    """An empty slide with its title and its foot, and axes side by side."""
    figure = SlideFigure(figsize=SLIDE_INCHES)
    figure.finding = with_minus(finding)
    lines = _wrap(finding, TITLE_LETTERS)
    figure.text(
        0.025, 0.965, "\n".join(lines), fontsize=TITLE_SIZE, fontweight="bold", va="top", ha="left", linespacing=1.25
    )
    foot_lines = _wrap(foot, FOOT_LETTERS)
    figure.text(0.025, 0.02, "\n".join(foot_lines), fontsize=FOOT_SIZE, color="0.35", va="bottom", linespacing=1.3)
    bottom, top = 0.03 + 0.035 * len(foot_lines), 0.955 - 0.065 * max(2, len(lines))
    rect = (0.015, bottom, 0.97, top - bottom)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.05, rect=rect))
    return figure, list(figure.subplots(1, columns, squeeze=False, **settings)[0])


def _wrap(text: str, letters: int) -> list[str]:
    """Lines of so many letters; a percent sign stays with its number."""
    lines = textwrap.wrap(with_minus(text).replace(" %", "\u00a0%"), letters)
    return [line.replace("\u00a0", " ") for line in lines]


def check_formats(formats: Sequence[str]) -> None:
    """Raises `InputError` for a format that slides are not written in, listing those that they are."""
    unknown = [each for each in formats if each not in FORMATS]
    if unknown:
        raise InputError(f"There is no format {unknown[0]!r}; use {', '.join(FORMATS)}.")


def save_slide(figure: SlideFigure, folder: str | Path, name: str, formats: Sequence[str] = FORMATS) -> dict[str, Path]:
    """Writes a slide as PNG (1920 × 1080), SVG and PDF: the same bytes for the same slide. Gives the files by format.

    Raises:
        InputError: a format that is none of these.
    """
    check_formats(formats)
    undated: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None, "Title": figure.finding},
    }
    paths = {each: Path(folder) / f"{name}.{each}" for each in formats}
    _lay_out(figure)
    for each, path in paths.items():
        buffer = io.BytesIO()
        with slide_style():
            figure.savefig(buffer, format=each, dpi=SLIDE_DPI, metadata=undated[each])
        write_bytes(path, buffer.getvalue())
    return paths


def _lay_out(figure: SlideFigure) -> None:
    """Places the panels for good; what the solver leaves in the last digits would otherwise differ from run to run."""
    with slide_style():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(float(edge), 6) for edge in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))


def save_table(table: Table, folder: str | Path, name: str, language: str = "en") -> dict[str, Path]:
    """Writes a table as a page (HTML) and as CSV, numbers as the language writes them. Gives the files by format."""
    paths = {each: Path(folder) / f"{name}.{each}" for each in ("html", "csv")}
    head = f'<!doctype html>\n<html lang="{language}">\n<meta charset="utf-8">\n'
    write_text(paths["html"], f"{head}{table._repr_html_()}</html>\n")
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([table.columns, *table.rows])
    write_text(paths["csv"], buffer.getvalue())
    return paths


def slide_table(table: Table, finding: str, foot: str = "") -> SlideFigure:
    """A table at slide size, in the largest letters that fit; its notes stand at the foot where none is given.

    Rows up to the next one with a first cell belong together and share a shade.
    """
    with slide_style():
        figure, [axes] = make_slide(finding, foot or " ".join(table.notes))
        axes.axis("off")
        letters = [_column_letters(table, place) + _COLUMN_GAP for place in range(len(table.columns))]
        size = min(TABLE_SIZE, _TABLE_POINTS / (_LETTER_WIDTH * sum(letters)))
        edges = np.cumsum([0, *letters]) / sum(letters)
        axes.set_xlim(0, 1)
        axes.set_ylim(len(table.rows) - 0.5, -0.6 - _head_lines(table))
        axes.axhline(-0.5, color="0.3", linewidth=1.5)
        for place, head in enumerate(table.columns):
            look: dict[str, Any] = {"fontsize": size, "ha": "left" if table.align[place] == "l" else "right"}
            at = edges[place] if table.align[place] == "l" else edges[place + 1] - _COLUMN_GAP / sum(letters)
            axes.text(at, -0.7, "\n".join(_wrap(head, HEAD_LETTERS)), va="bottom", fontweight="bold", **look)
            for line, row in enumerate(table.rows):
                weight = "bold" if row[place].endswith("†") else "normal"
                axes.text(at, line, label_text(row[place]), va="center", fontweight=weight, **look)
        shade = 0
        for line, row in enumerate(table.rows):
            shade += bool(row[0])
            axes.axhspan(line - 0.5, line + 0.5, color="0.93" if shade % 2 else "white", zorder=0, linewidth=0)
    return figure


_COLUMN_GAP = 1.5  # letters between columns
_LETTER_WIDTH = 0.57  # of the size of the letters, on average
_TABLE_POINTS = 905  # that wide is a table


def _column_letters(table: Table, place: int) -> float:
    """How wide a column is; bold letters are wider."""
    head = max(1.12 * len(line) for line in _wrap(table.columns[place], HEAD_LETTERS) or [""])
    return max(head, *(len(row[place]) for row in table.rows))


def _head_lines(table: Table) -> int:
    return max(len(_wrap(head, HEAD_LETTERS)) for head in table.columns)


# ------------------------------------------------------------------------------------------------ shared by all slides


def write_value(axes: Axes, place: float, value: float, language: str) -> None:
    """A number with one decimal above a bar or a line."""
    write_text_at(axes, place, value, local_number(f"{value:.1f}", language))


def write_text_at(
    axes: Axes, place: float, value: float, text: str, shift: tuple[float, float] = (0, 4), size: float = VALUE_SIZE
) -> None:
    """A text so many points from a place; centred unless it stands beside it."""
    side = "left" if shift[0] > 0 else "center"
    axes.annotate(text, (place, value), shift, textcoords="offset points", ha=side, fontsize=size)


def title_panel(axes: Axes, title: str, size: float = 20) -> None:
    """What a panel shows, bold above its left edge."""
    axes.set_title(title, loc="left", fontweight="bold", fontsize=size)


def draw_before(axes: Axes, accuracy: float) -> None:
    """The untouched network's accuracy, across the panel."""
    axes.axhline(accuracy, **BEFORE)


def share_legend(figure: SlideFigure, handles: Sequence[Any], columns: int = 4) -> None:
    """One legend between the panels and the foot; the panels make room for it."""
    engine = cast("ConstrainedLayoutEngine", figure.get_layout_engine())
    left, bottom, width, height = engine.get()["rect"]
    room = _LEGEND_ROW * math.ceil(len(handles) / columns)
    engine.set(rect=(left, bottom + room, width, height - room))
    look: dict[str, Any] = {"frameon": False, "borderaxespad": 0.0, "columnspacing": 1.4}
    figure.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, bottom), ncols=columns, **look)


_LEGEND_ROW = 0.052  # of the height of a slide


def before_handle(language: str) -> Line2D:
    """The legend's entry for `draw_before`."""
    return Line2D([], [], label=say(language, "before pruning"), **BEFORE)
