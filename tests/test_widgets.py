"""The panels: a control is set, and what the panel shows is what the public function under it says."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.patches import FancyBboxPatch
from torch import nn

from cleanai import InputError, analyze_model
from cleanai.graph import find_companions, list_companions
from cleanai.graph_plot import find_touched
from cleanai.models import digits_resnet
from cleanai.widgets import GraphExplorer
from cleanai.widgets.panel import draw_png

pytest.importorskip("ipywidgets")
IMAGE = torch.zeros(1, 1, 8, 8)


@pytest.fixture
def explorer() -> GraphExplorer:
    return GraphExplorer(digits_resnet(4), IMAGE)


def lit_nodes(explorer: GraphExplorer) -> set[int]:
    """The nodes with a thick frame in the figure that is shown."""
    boxes = [artist for artist in explorer.figure.axes[0].get_children() if isinstance(artist, FancyBboxPatch)]
    thick = [box.get_gid() for box in boxes if box.get_linewidth() > 2]
    return {int(gid.removeprefix("node-")) for gid in thick if gid is not None}


def assert_shows(explorer: GraphExplorer, layer: str, channel: int) -> None:
    expected = find_companions(explorer.analysis, layer, channel)
    assert explorer.companions == expected
    assert lit_nodes(explorer) == set(find_touched(explorer.graph, expected))
    assert all(f">{name}<" in explorer.table.value for name in expected.layers)


def test_it_opens_on_the_first_channel(explorer: GraphExplorer) -> None:
    assert_shows(explorer, "conv1", 0)
    assert explorer.layer.options[:2] == ("conv1", "bn1") and explorer.channel.max == 3
    assert repr(explorer) == "GraphExplorer(Channel 0 of conv1, group 1 (conv1))"


def test_layer_and_channel_move_the_picture(explorer: GraphExplorer) -> None:
    seen = [explorer.drawing.svg]
    explorer.layer.value = "block2.conv2"
    assert explorer.channel.max == 7
    assert_shows(explorer, "block2.conv2", 0)
    seen.append(explorer.drawing.svg)
    explorer.channel.value = 6
    assert_shows(explorer, "block2.conv2", 6)
    seen.append(explorer.drawing.svg)
    assert len(set(seen)) == 3 and all(value.startswith("<svg") for value in seen)


def test_a_layer_with_fewer_channels_pulls_the_slider_back(explorer: GraphExplorer) -> None:
    explorer.layer.value = "block3.conv1"
    explorer.channel.value = 7
    explorer.layer.value = "block1.conv1"
    assert (explorer.channel.value, explorer.channel.max) == (3, 3)
    assert_shows(explorer, "block1.conv1", 3)


def test_a_group_as_a_whole(explorer: GraphExplorer) -> None:
    explorer.what.value = "group"
    explorer.group.value = "block2.conv2"
    assert explorer.companions == list_companions(explorer.analysis, "block2.conv2")
    assert lit_nodes(explorer) == set(find_touched(explorer.graph, explorer.companions))
    assert (explorer.layer.layout.display, explorer.group.layout.display) == ("none", None)
    explorer.what.value = "channel"
    assert_shows(explorer, "conv1", 0)


def click_in_browser(explorer: GraphExplorer, name: str) -> None:
    """What the browser sends when a node is clicked."""
    node = next(node for node in explorer.graph.nodes if node.name == name)
    explorer.drawing._handle_custom_msg({"node": node.index}, [])


def test_a_click_on_a_layer_chooses_it(explorer: GraphExplorer) -> None:
    click_in_browser(explorer, "block2.conv2")
    assert (explorer.what.value, explorer.layer.value) == ("channel", "block2.conv2")
    assert_shows(explorer, "block2.conv2", 0)


def test_a_click_on_an_operation_chooses_its_group(explorer: GraphExplorer) -> None:
    sums = [node for node in explorer.graph.nodes if node.kind.startswith("add")]
    click_in_browser(explorer, sums[0].name)
    assert explorer.what.value == "group"
    assert explorer.companions == list_companions(explorer.analysis, explorer.group.value)
    assert sums[0].index in lit_nodes(explorer)


def test_a_click_on_the_input_changes_nothing(explorer: GraphExplorer) -> None:
    before = explorer.drawing.svg
    click_in_browser(explorer, "input")
    assert explorer.drawing.svg == before


def test_a_frozen_channel_is_explained(explorer: GraphExplorer) -> None:
    explorer.layer.value = "linear"
    assert explorer.companions.group is None and not lit_nodes(explorer)
    assert "It stays: the output of the model." in explorer.table.value


def test_an_analysis_and_another_language() -> None:
    analysis = analyze_model(digits_resnet(4), IMAGE)
    explorer = GraphExplorer(analysis, language="tr", detail="operations")
    assert explorer.analysis is analysis and "1. grup (conv1)" in repr(explorer)
    assert explorer.layer.description == "katman" and "boyut" in explorer.table.value
    assert "block1.bn1" in [node.name for node in explorer.graph.nodes]


def test_a_model_without_groups_has_only_channels() -> None:
    explorer = GraphExplorer(nn.Linear(3, 2), torch.zeros(1, 3))
    assert [value for _, value in explorer.what.options] == ["channel"]
    assert explorer.companions.reason == "the output of the model"


def test_a_page_of_its_own(explorer: GraphExplorer, tmp_path: Path) -> None:
    explorer.layer.value = "block1.conv2"
    page = explorer.to_html(tmp_path / "graph.html")
    assert (tmp_path / "graph.html").read_text(encoding="utf-8") == page
    assert "<script" not in page and "block1.conv2" in page
    assert page.count("<title>") == 1 + 2 * len(explorer.graph.nodes)


def test_where_no_kernel_runs_the_picture_is_shown(explorer: GraphExplorer) -> None:
    bundle = explorer._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == draw_png(explorer.figure)
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.box.model_id
    assert bundle["text/plain"] == repr(explorer)


def test_a_callback_that_fails_is_heard(explorer: GraphExplorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no picture")

    monkeypatch.setattr("cleanai.widgets.graph_explorer.plot_graph", fail)
    with pytest.raises(RuntimeError, match="no picture"):
        explorer.channel.value = 1


def test_mistakes_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="needs example_inputs"):
        GraphExplorer(digits_resnet(4))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(InputError, match=r'GraphExplorer needs ipywidgets: pip install "cleanai\[notebooks\]"'):
        GraphExplorer(digits_resnet(4), IMAGE)
