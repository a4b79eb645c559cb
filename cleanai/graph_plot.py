"""The dependency graph drawn in stage columns: a matplotlib figure, and an SVG that shows each node's details on hover.

Nodes stand in columns from top to bottom in the order of the data flow; parallel branches stand side by side. A
number in a node is its group, and so is its colour; grey channels stay. Nothing is needed but matplotlib.
"""

from __future__ import annotations

import functools
import html
import io
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from cleanai.errors import InputError
from cleanai.graph import FROZEN, Companions, DependencyGraph, Node
from cleanai.isolation import process_state
from cleanai.plots import ReportFigure, figure_style, label_text
from cleanai.rendering import MISSING
from cleanai.texts import check_language, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "find_touched",
    "plot_graph",
    "render_graph",
]

_PALETTE = [sns.color_palette("colorblind")[place] for place in (0, 1, 2, 4, 8, 9, 3, 6)]
_GREY = (0.86, 0.86, 0.86)
_INK = (0.1, 0.1, 0.1)
_FAINT = (0.72, 0.72, 0.72)
_ROW, _BOX = 0.42, 0.27  # inches from node to node, and the height of one
_GAP_LANE, _GAP_COLUMN = 0.3, 0.4
_FONT = 7.5
_WIDEST_NAME, _WIDEST_ENTRY = 32, 48
_FEWEST_ROWS, _MOST_ROWS = 8, 26
_WIDTH_TO_HEIGHT = 1.5
_TRUNK = 0.22  # how far before a column edges from other columns run up and down
LOSES, READS = "loses", "reads"
_Point = tuple[float, float]


def plot_graph(
    graph: DependencyGraph, companions: Companions | None = None, ax: Axes | None = None, language: str = "en"
) -> Figure:
    """The graph in stage columns, its groups as colours and numbers, what stays in grey.

    With companions everything that must go lights up and the rest fades: a node with a thick frame loses channels of
    its output, one with a dashed frame only reads them. The patch of a node has ``"node-<index>"`` as its gid.

    Args:
        graph: of `cleanai.graph.build_graph`.
        companions: of `cleanai.graph.find_companions` or `cleanai.graph.list_companions`, or None.
        ax: axes to draw on; None makes a figure as large as the graph.
        language: "en" or "tr".

    Raises:
        InputError: the graph has no node, or an unknown language.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import analyze_model
        >>> from cleanai.graph import build_graph
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> figure = plot_graph(build_graph(analyze_model(net, torch.zeros(1, 3))))
        >>> "3 nodes, 1 group: equal numbers shrink together" in [text.get_text() for text in figure.axes[0].texts]
        True
    """
    check_language(language)
    if not graph.nodes:
        raise InputError("plot_graph: this graph has no node.")
    with figure_style():
        return _GraphDrawing(graph, companions, language).draw(ax)


def find_touched(graph: DependencyGraph, companions: Companions) -> dict[int, str]:
    """What happens to the nodes that companions touch: {index of the node: "loses" or "reads"}.

    A node loses where channels of its output go, or of a tensor inside it; it reads where it only takes such in.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import analyze_model
        >>> from cleanai.graph import build_graph, find_companions
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> analysis = analyze_model(net, torch.zeros(1, 3))
        >>> find_touched(build_graph(analysis), find_companions(analysis, "0", 5))
        {1: 'loses', 2: 'reads'}
    """
    touched: dict[int, str] = {}
    going = {part.parameter for part in companions.slices if part.role == "output"}
    losing = {part.parameter for part in companions.slices}
    for node in graph.nodes:
        if np.isin(node.classes, companions.classes).any() or going & set(node.parameters):
            touched[node.index] = LOSES
        elif losing & set(node.parameters):
            touched[node.index] = READS
    return touched


def render_graph(graph: DependencyGraph, companions: Companions | None = None, language: str = "en") -> str:
    """The figure as an SVG element for a web page: hovering over a node shows its shape, group, labels and tensors.

    It holds no script and refers to nothing outside of it; equal graphs give equal texts.

    Args:
        graph: of `cleanai.graph.build_graph`.
        companions: as in `plot_graph`.
        language: "en" or "tr".

    Raises:
        InputError: the graph has no node, or an unknown language.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import analyze_model
        >>> from cleanai.graph import build_graph
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> svg = render_graph(build_graph(analyze_model(net, torch.zeros(1, 3))))
        >>> svg.startswith("<svg"), "Linear + ReLU" in svg, "<script" in svg
        (True, True, False)
    """
    return write_svg(graph, plot_graph(graph, companions, language=language), language)


def write_svg(graph: DependencyGraph, figure: Figure, language: str = "en") -> str:
    """A figure of `plot_graph` as `render_graph` gives it."""
    buffer = io.StringIO()
    with process_state, mpl.rc_context({"svg.hashsalt": "cleanai", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    titles = {node.index: describe_node(graph, node, language) for node in graph.nodes}

    def add_title(found: re.Match[str]) -> str:
        return f"{found[0]}<title>{html.escape(titles[int(found[1])])}</title>"

    return re.sub(r'<g id="(?:node|name)-(\d+)">', add_title, text)


def describe_node(graph: DependencyGraph, node: Node, language: str = "en") -> str:
    """What hovering over a node shows: its operations, shape, groups, and the shapes of its channels."""
    lines = [node.name, node.kind, say(language, "output {shape}", shape=" × ".join(map(str, node.shape)) or MISSING)]
    for number, share in node.groups:
        count = round(share * len(node.classes))
        if number == FROZEN:
            lines.append(say(language, "{count} channels that stay", count=count))
        else:
            lines.append(
                say(language, "{count} channels of {group}", count=count, group=_name(graph, number, language))
            )
    lines += [say(language, "inside: {group}", group=_name(graph, number, language)) for number in node.inside]
    if node.parameters:
        lines.append(say(language, "tensors: {names}", names=", ".join(node.parameters)))
    return "\n".join(lines)


def _name(graph: DependencyGraph, number: int, language: str) -> str:
    return say(language, "group {number} ({name})", number=number + 1, name=graph.groups[number].name)


# ------------------------------------------------------------------------------------------------------- the layout


@dataclass(frozen=True)
class _Place:
    column: int
    lane: int
    row: int


def _rank_nodes(graph: DependencyGraph) -> list[int]:
    """How many nodes come before each on the longest way to it."""
    ranks: list[int] = []
    for node in graph.nodes:
        ranks.append(max((ranks[source] + 1 for source in node.inputs), default=0))
    return ranks


def _lane_nodes(graph: DependencyGraph, ranks: Sequence[int]) -> list[int]:
    """Side by side within a rank: each node under what it reads first, as far as that place is free."""
    lanes: list[int] = []
    taken: set[tuple[int, int]] = set()
    for node in graph.nodes:
        wanted = min((lanes[source] for source in node.inputs), default=0)
        lane = next(lane for lane in itertools.count(wanted) if (ranks[node.index], lane) not in taken)
        lane = next((free for free in range(lane) if (ranks[node.index], free) not in taken), lane)
        taken.add((ranks[node.index], lane))
        lanes.append(lane)
    return lanes


def _cut_columns(graph: DependencyGraph, ranks: Sequence[int]) -> list[int]:
    """The first rank of every column: as equal as possible, cut where a stage ends and few edges cross."""
    count = max(ranks) + 1
    columns = min(round(math.sqrt(count * _WIDTH_TO_HEIGHT * _ROW / 2.2)), count // _FEWEST_ROWS)
    columns = max(1, columns, math.ceil(count / _MOST_ROWS))
    height = count / columns
    price = [_price_of_cut(graph, ranks, rank) for rank in range(count)] + [0.0]
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for end in range(1, count + 1):
        options = [
            (best[start][0] + ((end - start) / height - 1) ** 2 + price[end], [*best[start][1], start])
            for start in range(max(0, end - _MOST_ROWS), end)
        ]
        best.append(min(options))
    return best[count][1]


def _price_of_cut(graph: DependencyGraph, ranks: Sequence[int], rank: int) -> float:
    """What it costs to begin a new column at a rank: the edges it cuts, and how far inside a module it is."""
    if rank == 0:
        return 0.0
    crossing = {source for source, target in graph.edges if ranks[source] < rank <= ranks[target]}
    above, below = (
        [node.name.split(".")[:-1] for node in graph.nodes if ranks[node.index] == place] for place in (rank - 1, rank)
    )
    shared = max(len(_common_start([first, second])) for first in above for second in below)
    return 0.25 * (len(crossing) - 1) + 0.1 * min(shared, 3)


def _common_start(paths: Sequence[Sequence[str]]) -> list[str]:
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return [parts[0] for parts in shared]


def _place_nodes(graph: DependencyGraph) -> list[_Place]:
    ranks = _rank_nodes(graph)
    lanes = _lane_nodes(graph, ranks)
    starts = _cut_columns(graph, ranks)
    columns = np.searchsorted(starts, ranks, side="right") - 1
    return [
        _Place(int(column), lane, rank - starts[int(column)])
        for column, lane, rank in zip(columns, lanes, ranks, strict=True)
    ]


@functools.lru_cache(maxsize=4096)
def _text_width(text: str, size: float, bold: bool = False) -> float:
    """The width of a text in inches."""
    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return TextPath((0, 0), text, size=size, prop=font).get_extents().width / 72 if text.strip() else 0.0


def colour_groups(graph: DependencyGraph) -> list[tuple[float, float, float]]:
    """A colour for every group, no two of them alike that meet along an edge, as far as there are colours."""
    meets: dict[int, set[int]] = {group.index: set() for group in graph.groups}
    for source, target in graph.edges:
        sides = [[n for n, _ in graph.nodes[end].groups if n != FROZEN] for end in (source, target)]
        for first, second in itertools.product(*sides):
            if first != second:
                meets[first].add(second)
                meets[second].add(first)
    chosen: dict[int, int] = {}
    for number in meets:
        near = [chosen[other] for other in meets[number] if other in chosen]
        uses = list(chosen.values())
        chosen[number] = min(range(len(_PALETTE)), key=lambda c: (near.count(c), uses.count(c), c))
    return [_PALETTE[chosen[number]] for number in sorted(chosen)]


def _round_path(corners: Sequence[_Point], radius: float = 0.08) -> Path:
    """A line through points with rounded corners."""
    points, codes = [corners[0]], [Path.MOVETO]
    for before, corner, after in zip(corners, corners[1:], corners[2:], strict=False):
        points += [_towards(corner, before, radius), corner, _towards(corner, after, radius)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    return Path([*points, corners[-1]], [*codes, Path.LINETO])


def _towards(start: _Point, end: _Point, radius: float) -> _Point:
    """The point at most so far from one point in the direction of another, and at most halfway."""
    length = math.dist(start, end)
    share = min(radius, length / 2) / length if length else 0.0
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


# ------------------------------------------------------------------------------------------------------ the drawing


class _GraphDrawing:
    """One drawing in inches, the origin at the lower left; y runs upwards."""

    def __init__(self, graph: DependencyGraph, companions: Companions | None, language: str) -> None:
        self._graph, self._companions, self._language = graph, companions, language
        self._touched = find_touched(graph, companions) if companions is not None else {}
        self._colours = colour_groups(graph)
        self._places = _place_nodes(graph)
        self._names, self._headings = self._name_nodes()
        self._left, self._widths, self._width = self._measure()
        self._legend = self._list_legend()
        shown = [(self._places[n.index].column, self._places[n.index].row) for n in graph.nodes]
        self._rows = max(row for _, row in shown) + 1
        legend_lines = math.ceil(len(self._legend) / self._legend_columns)
        self._foot = 0.55 + 0.19 * legend_lines
        self._head = 0.95 if any(self._headings) else 0.7 if len(self._headings) > 1 else 0.5
        self._height = self._foot + self._rows * _ROW + self._head
        self._over = self._height - self._head + 0.12  # where edges pass over columns

    def draw(self, ax: Axes | None) -> Figure:
        if ax is None:
            figure: Figure = ReportFigure(figsize=(self._width, self._height))
            axes = figure.add_axes((0, 0, 1, 1))
        else:
            figure, axes = cast("Figure", ax.get_figure(root=True)), ax
        axes.set_xlim(0, self._width)
        axes.set_ylim(0, self._height)
        axes.set_axis_off()
        axes.set_facecolor("white")
        for source, target in self._graph.edges:
            axes.add_artist(self._edge(source, target))
        for node in self._graph.nodes:
            self._draw_node(axes, node)
        self._draw_words(axes)
        return figure

    # ---- measuring

    def _name_nodes(self) -> tuple[list[str], list[str]]:
        """What is written into each node and over each column: a path that all its nodes share is written once."""
        columns = max(place.column for place in self._places) + 1
        headings = []
        for column in range(columns):
            paths = [node.name.split(".")[:-1] for node in self._in(column)]
            headings.append(".".join(_common_start(paths)) if len(paths) > 1 else "")
        names = [
            label_text(node.name[len(head) + 1 :] if (head := headings[place.column]) else node.name, _WIDEST_NAME)
            for node, place in zip(self._graph.nodes, self._places, strict=True)
        ]
        return names, headings

    def _in(self, column: int) -> list[Node]:
        return [node for node in self._graph.nodes if self._places[node.index].column == column]

    def _tag(self, node: Node) -> str:
        """The numbers of the groups of a node, as many as there is room for; those inside it in brackets."""
        numbers = [f"({number + 1})" for number in node.inside]
        numbers += [str(number + 1) for number, _ in node.groups if number != FROZEN]
        return " ".join(numbers[:3]) + ("…" if len(numbers) > 3 else "")

    def _measure(self) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], float], float]:
        """Left edge and width of every lane of every column, and the width of all."""
        widths: dict[tuple[int, int], float] = {}
        for node, place in zip(self._graph.nodes, self._places, strict=True):
            tag = self._tag(node)
            wide = _text_width(self._names[node.index], _FONT) + _text_width(tag, _FONT, True) + 0.2 + 0.1 * bool(tag)
            key = (place.column, place.lane)
            widths[key] = max(widths.get(key, 0.55), wide)
        left, x, previous = {}, 0.25, 0
        for key in sorted(widths):
            x += _GAP_COLUMN if key[0] != previous else 0.0
            previous = key[0]
            left[key] = x
            x += widths[key] + _GAP_LANE
        return left, widths, max(x + 0.15, _text_width(self._title(), 10, True) + 0.4, 5.0)

    @property
    def _legend_columns(self) -> int:
        widest = max((_text_width(text, _FONT) for _, text in self._legend), default=1.0)
        return max(1, int((self._width - 0.4) // (widest + 0.45)))

    def _list_legend(self) -> list[tuple[Any, str]]:
        """(colour, text) of every group, then of what stays."""
        found: list[tuple[Any, str]] = [
            (self._colours[group.index], f"{group.index + 1}  {label_text(group.name, _WIDEST_ENTRY)} ({group.size})")
            for group in self._graph.groups
        ]
        return [*found, (_GREY, say(self._language, "stays (frozen)"))]

    def _box(self, node: int) -> tuple[float, float, float]:
        """Left edge, width and middle height of a node's box."""
        place = self._places[node]
        key = (place.column, place.lane)
        return self._left[key], self._widths[key], self._height - self._head - (place.row + 0.5) * _ROW

    # ---- nodes and edges

    def _draw_node(self, axes: Axes, node: Node) -> None:
        x, width, y = self._box(node.index)
        state = self._touched.get(node.index)
        faded = self._companions is not None and state is None
        shape = FancyBboxPatch(
            (x, y - _BOX / 2), width, _BOX, boxstyle="round,pad=0,rounding_size=0.06", linewidth=0, facecolor="white"
        )
        axes.add_artist(shape)
        start = x
        for number, share in node.groups or ((FROZEN, 1.0),):
            colour = _GREY if number == FROZEN else _lighten(self._colours[number], 0.82 if faded else 0.45)
            colour = (0.95, 0.95, 0.95) if faded and number == FROZEN else colour
            band = Rectangle((start, y - _BOX / 2), width * share, _BOX, facecolor=colour, linewidth=0, zorder=2)
            axes.add_artist(band)
            band.set_clip_path(shape)
            start += width * share
        frame = FancyBboxPatch(
            (x, y - _BOX / 2),
            width,
            _BOX,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor="none",
            edgecolor=_FAINT if faded else _INK,
            linewidth=2.2 if state else 0.7,
            linestyle=(0, (2.2, 1.2)) if state == READS else "solid",
            zorder=3,
        )
        frame.set_gid(f"node-{node.index}")
        axes.add_artist(frame)
        ink = (0.5, 0.5, 0.5) if faded else _INK
        name = axes.text(x + 0.1, y - 0.005, self._names[node.index], fontsize=_FONT, va="center", color=ink, zorder=4)
        name.set_gid(f"name-{node.index}")
        tag: dict[str, Any] = {"va": "center", "ha": "right", "fontweight": "bold", "color": ink, "zorder": 4}
        axes.text(x + width - 0.08, y - 0.005, self._tag(node), fontsize=_FONT, **tag)

    def _edge(self, source: int, target: int) -> PathPatch:
        lit = self._carries(source)
        colour = _INK if lit else (0.45, 0.45, 0.45) if self._companions is None else (0.8, 0.8, 0.8)
        path = _round_path(self._route(source, target))
        patch = PathPatch(
            path, facecolor="none", edgecolor=colour, linewidth=1.9 if lit else 0.8, zorder=1.5 if lit else 1
        )
        patch.set_gid(f"edge-{source}-{target}")
        return patch

    def _route(self, source: int, target: int) -> list[_Point]:
        """The corners of an edge; it runs between the boxes, through the gaps of rows and columns."""
        (x1, w1, y1), (x2, w2, y2) = self._box(source), self._box(target)
        first, second = self._places[source], self._places[target]
        middle, right, above = x2 + w2 / 2, x1 + w1, y2 + _ROW / 2
        if first.column != second.column:
            turn, start = x2 if second.lane == 0 else self._left[second.column, 0], [(right, y1)]
            turn -= _TRUNK
            if second.column - first.column > 1:
                own = self._left[first.column + 1, 0] - _TRUNK
                start += [(own, y1), (own, self._over), (turn, self._over)]
            else:
                start += [(turn, y1)]
            return [*start, (turn, y2), (x2, y2)] if second.lane == 0 else [
                *start, (turn, above), (middle, above), (middle, y2 + _BOX / 2)
            ]  # fmt: skip
        if second.row - first.row == 1:
            half = y1 - _ROW / 2
            return [(x1 + w1 / 2, y1 - _BOX / 2), (x1 + w1 / 2, half), (middle, half), (middle, y2 + _BOX / 2)]
        if first.lane > second.lane:
            return [(x1 + w1 / 2, y1 - _BOX / 2), (x1 + w1 / 2, y2), (x2 + w2, y2)]
        if first.lane < second.lane:
            return [(right, y1), (middle, y1), (middle, y2 + _BOX / 2)]
        side = right + 0.12 + 0.03 * min(second.row - first.row - 2, 4)
        return [(right, y1 - 0.05), (side, y1 - 0.05), (side, y2 + 0.05), (right, y2 + 0.05)]

    def _carries(self, source: int) -> bool:
        """Whether what flows out of a node holds channels that go."""
        companions = self._companions
        return companions is not None and bool(np.isin(self._graph.nodes[source].classes, companions.classes).any())

    # ---- words

    def _draw_words(self, axes: Axes) -> None:
        top = self._height - 0.16
        axes.text(0.15, top, self._title(), fontsize=10, fontweight="bold", va="top")
        for column, heading in enumerate(self._headings):
            x = self._left[column, 0]
            axes.text(x, self._height - self._head + 0.2, heading, fontsize=8.5, va="bottom", style="italic")
        columns = self._legend_columns
        lines = math.ceil(len(self._legend) / columns)
        step = (self._width - 0.4) / columns
        for number, (colour, text) in enumerate(self._legend):
            column, line = divmod(number, lines)
            x, y = 0.25 + column * step, self._foot - 0.3 - 0.19 * line
            swatch = _lighten(colour, 0.45) if colour is not _GREY else _GREY
            axes.add_artist(Rectangle((x, y - 0.06), 0.16, 0.12, facecolor=swatch, edgecolor=_INK, linewidth=0.5))
            axes.text(x + 0.22, y - 0.005, text, fontsize=_FONT, va="center")
        axes.text(0.25, 0.12, self._key(), fontsize=_FONT, va="center", color=(0.3, 0.3, 0.3))

    def _title(self) -> str:
        language, companions = self._language, self._companions
        if companions is None:
            nodes, groups = len(self._graph.nodes), len(self._graph.groups)
            phrase = "{nodes} nodes, {groups} groups: equal numbers shrink together"
            if groups == 1:
                phrase = "{nodes} nodes, {groups} group: equal numbers shrink together"
            return say(language, phrase, nodes=nodes, groups=groups)
        if companions.group is None:
            return say(language, "{what}: it stays", what=companions.title)
        return say(
            language, "{what}: {count} layers lose something", what=companions.title, count=len(companions.layers)
        )

    def _key(self) -> str:
        phrase = "data flows downwards and to the right; a number is a group, in brackets its channels"
        if self._companions is not None:
            phrase = "thick frame: loses channels; dashed frame: reads them; thick line: carries them"
        return say(self._language, phrase)


def _lighten(colour: Sequence[float], white: float) -> tuple[float, ...]:
    return tuple(part + (1 - part) * white for part in colour)
