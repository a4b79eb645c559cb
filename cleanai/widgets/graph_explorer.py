"""`GraphExplorer`: choose a channel or a group, and everything that must go with it lights up in the graph."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from torch import nn

from cleanai.analysis import Analysis, analyze_model
from cleanai.errors import InputError
from cleanai.graph import FROZEN, Companions, Detail, build_graph, find_companions, list_channels, list_companions
from cleanai.graph_plot import plot_graph, render_graph, write_svg
from cleanai.rendering import Table
from cleanai.texts import check_language, say
from cleanai.widgets.drawing import make_drawing
from cleanai.widgets.panel import Panel, import_widgets


class GraphExplorer(Panel):
    """The dependency graph of a model with controls for a layer's channel or a whole group.

    A panel over `cleanai.graph.find_companions`, `cleanai.graph.list_companions` and `cleanai.graph_plot.plot_graph`.
    A click on a layer in the drawing chooses it, a click on an operation its group. The controls are ``what``
    ("channel" or "group"), ``layer``, ``channel`` and ``group``; setting their ``value`` does what a user does.
    ``companions`` holds what is lit, ``figure`` and ``drawing`` the picture, ``table`` the slices beside it.

    Args:
        model: a model, or what `cleanai.analyze_model` or a pruner found out about one.
        example_inputs: for a model, what it is called with.
        detail: "layers", or "operations" for every operation on its own.
        language: "en" or "tr".

    Raises:
        InputError: ipywidgets is not installed, a model came without inputs, or it has no layer with channels.

    Example:
        >>> import torch
        >>> from cleanai.models import digits_resnet
        >>> explorer = GraphExplorer(digits_resnet(4), torch.zeros(1, 1, 8, 8))
        >>> explorer.layer.value, explorer.channel.value = "block2.conv2", 3
        >>> explorer
        GraphExplorer(Channel 3 of block2.conv2, group 4 (block2.conv2))
        >>> explorer.companions.layers[:3]
        ('block2.conv2', 'block2.bn2', 'block2.shortcut.0')
    """

    def __init__(
        self,
        model: nn.Module | Analysis,
        example_inputs: Any = None,
        *,
        detail: Detail = "layers",
        language: str = "en",
    ) -> None:
        self.language = check_language(language)
        self.analysis = _analyze(model, example_inputs)
        self.graph = build_graph(self.analysis, detail)
        self._channels = list_channels(self.analysis)
        if not self._channels:
            raise InputError("GraphExplorer: this model has no layer with channels.")
        self._make_controls(import_widgets("GraphExplorer"))
        self.companions: Companions
        self._update()

    def __repr__(self) -> str:
        return f"GraphExplorer({self.companions.title})"

    def click(self, node: int) -> None:
        """Does what a click on a node of ``graph`` does: chooses its layer, or the group of an operation.

        Args:
            node: its index in ``graph.nodes``.

        Example:
            >>> import torch
            >>> from cleanai.models import digits_resnet
            >>> explorer = GraphExplorer(digits_resnet(4), torch.zeros(1, 1, 8, 8))
            >>> explorer.click(explorer.graph.node("block1.conv1").index)
            >>> explorer.layer.value
            'block1.conv1'
        """
        clicked = self.graph.nodes[node]
        owners = [clicked.name, *(name.rpartition(".")[0] for name in clicked.parameters)]
        layer = next((name for name in owners if name in self._channels), None)
        groups = [number for number, _ in clicked.groups if number != FROZEN]
        if layer is not None:
            self.what.value, self.layer.value = "channel", layer
        elif groups:
            self.what.value, self.group.value = "group", self.graph.groups[groups[0]].name

    def to_html(self, path: str | Path | None = None) -> str:
        """The drawing and the table as a page of its own, also written to a file when a path is given.

        Hovering over a node shows its shape, its groups and its tensors. The page holds no script and loads nothing.

        Args:
            path: where the page is written; None writes none.

        Example:
            >>> import torch
            >>> from cleanai.models import digits_resnet
            >>> explorer = GraphExplorer(digits_resnet(4), torch.zeros(1, 1, 8, 8))
            >>> page = explorer.to_html()
            >>> page.startswith("<!DOCTYPE html>"), "<script" in page
            (True, False)
        """
        svg = render_graph(self.graph, self.companions, self.language)
        page = _PAGE.format(
            language=self.language,
            title=html.escape(self.companions.title),
            hint=html.escape(say(self.language, "Hover over a node to see its shape, groups and tensors.")),
            svg=svg,
            table=render_table(self.companions.to_table()),
        )
        if path is not None:
            Path(path).write_text(page, encoding="utf-8")
        return page

    def _make_controls(self, widgets: Any) -> None:
        def name(phrase: str) -> str:
            return say(self.language, phrase)

        first = next(iter(self._channels))
        kinds = [(name("channel"), "channel"), (name("group"), "group")]
        names = [f"{group.index + 1}  {group.name}" for group in self.analysis.groups]
        groups = [(text, group.name) for text, group in zip(names, self.analysis.groups, strict=True)]
        self.what = widgets.ToggleButtons(options=kinds if groups else kinds[:1], description=name("show"))
        self.layer = widgets.Dropdown(options=list(self._channels), value=first, description=name("layer"))
        top = self._channels[first] - 1
        self.channel = widgets.IntSlider(value=0, min=0, max=top, description=name("channel"), continuous_update=False)
        self.group = widgets.Dropdown(options=groups, description=name("group"))
        self.drawing = make_drawing("GraphExplorer", self.click)
        self.table = widgets.HTML()
        self.what.observe(self._on_change, names="value")
        self.layer.observe(self._on_layer, names="value")
        self.channel.observe(self._on_change, names="value")
        self.group.observe(self._on_change, names="value")
        controls = widgets.VBox([self.what, widgets.HBox([self.layer, self.channel, self.group])])
        self.box = widgets.VBox([controls, self.drawing, self.table])

    def _on_layer(self, change: Any) -> None:
        """Another layer has other channels; the slider keeps its place as far as there is one."""
        self.channel.unobserve(self._on_change, names="value")
        self.channel.max = self._channels[change["new"]] - 1
        self.channel.observe(self._on_change, names="value")
        self._update()

    def _on_change(self, _: Any) -> None:
        self._update()

    def _update(self) -> None:
        by_group = self.what.value == "group"
        for control, shown in ((self.layer, not by_group), (self.channel, not by_group), (self.group, by_group)):
            control.layout.display = None if shown else "none"
        if by_group:
            self.companions = list_companions(self.analysis, self.group.value, self.language)
        else:
            self.companions = find_companions(self.analysis, self.layer.value, self.channel.value, self.language)
        self.figure = plot_graph(self.graph, self.companions, language=self.language)
        self.drawing.svg = write_svg(self.graph, self.figure, self.language)
        self.table.value = render_table(self.companions.to_table())


def _analyze(model: nn.Module | Analysis, example_inputs: Any) -> Analysis:
    if isinstance(model, Analysis):
        return model
    if example_inputs is None:
        raise InputError(
            "GraphExplorer: a model needs example_inputs, as in GraphExplorer(model, torch.zeros(1, 3, 32, 32))."
        )
    return analyze_model(model, example_inputs)


def render_table(table: Table) -> str:
    """A table as plain HTML, readable on bright and dark pages alike."""
    sides = ["right" if side == "r" else "left" for side in table.align]

    def cells(tag: str, texts: tuple[str, ...]) -> str:
        style = "padding:2px 10px;text-align:{}"
        return "".join(
            f'<{tag} style="{style.format(side)}">{html.escape(text)}</{tag}>'
            for side, text in zip(sides, texts, strict=True)
        )

    rows = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    head = f"<tr>{cells('th', table.columns)}</tr>" if table.rows else ""
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
    return f"<b>{html.escape(table.title)}</b><table>{head}{rows}</table>{notes}"


_PAGE = """<!DOCTYPE html>
<html lang="{language}"><head><meta charset="utf-8"><title>{title}</title>
<style>body {{ font-family: sans-serif; color: #222; background: #fff; margin: 1.5em; }}
svg {{ display: block; max-width: 100%; height: auto; }}
svg g[id^="node-"] path {{ pointer-events: all; }}</style></head>
<body><p>{hint}</p>
{svg}
{table}
</body></html>
"""
