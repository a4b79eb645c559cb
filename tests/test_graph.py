"""The dependency graph: nodes by hand, what goes with a channel proven by cutting it, drawings that can be read."""

from __future__ import annotations

import copy
import itertools
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.text import Text
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from cleanai import InputError, analyze_model, slice_model, verify_pruning
from cleanai.analysis import Analysis
from cleanai.graph import (
    FROZEN,
    DependencyGraph,
    build_graph,
    find_companions,
    list_channels,
    list_companions,
    list_labels,
    plan_removal,
)
from cleanai.graph_plot import LOSES, READS, colour_groups, describe_node, find_touched, plot_graph, render_graph
from cleanai.models import CifarBlock


def make_net() -> nn.Module:
    """A convolution, a residual block, and a classifier that reads 2 × 2 pixels of 4 channels."""
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("stem", nn.Conv2d(1, 4, 3, padding=1, bias=False))
    net.add_module("block", CifarBlock(4, 4, 1))
    net.add_module("pool", nn.AdaptiveAvgPool2d(2))
    net.add_module("flatten", nn.Flatten())
    net.add_module("head", nn.Linear(16, 3))
    return net


IMAGE = torch.zeros(1, 1, 8, 8)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyze_model(make_net(), IMAGE)


@pytest.fixture(scope="module")
def large() -> Analysis:
    return analyze_model(resnet50(), torch.zeros(1, 3, 64, 64))


# ------------------------------------------------------------------------------------------------------------ nodes


def test_layers_hold_what_follows_them_channel_by_channel(analysis: Analysis) -> None:
    graph = build_graph(analysis)
    assert [(node.name, node.kind, node.inputs, [number for number, _ in node.groups]) for node in graph.nodes] == [
        ("input", "Input", (), []),
        ("stem", "Conv2d", (0,), [0]),
        ("block.conv1", "Conv2d + BatchNorm2d + relu", (1,), [1]),
        ("block.conv2", "Conv2d + BatchNorm2d", (2,), [0]),
        ("block.add", "add + relu + AdaptiveAvgPool2d", (3, 1), [0]),
        ("flatten", "Flatten", (4,), [0]),
        ("head", "Linear", (5,), [FROZEN]),
    ]
    assert graph.node("block.add").shape == (1, 4, 2, 2)
    assert graph.node("block.conv1").parameters == ("block.conv1.weight", "block.bn1.weight", "block.bn1.bias")
    with pytest.raises(InputError, match=r"'tail'.*block\.conv2"):
        graph.node("tail")


def test_operations_stand_alone(analysis: Analysis) -> None:
    names = [node.name for node in build_graph(analysis, "operations").nodes]
    block = [f"block.{name}" for name in ("conv1", "bn1", "relu", "conv2", "bn2", "add", "relu")]
    assert names == ["input", "stem", *block, "pool", "flatten", "head"]


def test_an_unknown_detail_lists_the_choices(analysis: Analysis) -> None:
    with pytest.raises(InputError, match="'layers', 'operations'"):
        build_graph(analysis, "modules")  # ty: ignore[invalid-argument-type]


def test_what_two_layers_read_keeps_its_node() -> None:
    """A ReLU whose input is read elsewhere too must not disappear into it: the other reader sees what was before."""

    def forward(parts: nn.Module, x: Tensor) -> Tensor:
        before = parts.get_submodule("widen")(x)
        return parts.get_submodule("head")(torch.cat([before, before.relu()], dim=1))

    parts = nn.ModuleDict({"widen": nn.Linear(3, 4), "head": nn.Linear(8, 2)})
    graph = build_graph(analyze_model(parts, torch.zeros(1, 3), forward_fn=forward))
    assert [node.name for node in graph.nodes] == ["input", "widen", "relu", "cat", "head"]
    assert graph.edges == ((0, 1), (1, 2), (1, 3), (2, 3), (3, 4))


def test_a_depthwise_convolution_is_a_layer_and_attention_is_one() -> None:
    depthwise = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 1, 1))
    assert [node.name for node in build_graph(analyze_model(depthwise, IMAGE)).nodes] == ["input", "0", "1", "3"]

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attend(x, x, x)[0])

    analysis = analyze_model(Attention(), torch.zeros(1, 5, 8))
    graph = build_graph(analysis)
    heads = next(group for group in analysis.groups if group.name.startswith("attend.in_proj"))
    assert graph.node("attend").inside == (heads.index,)
    assert f"inside: group {heads.index + 1}" in describe_node(graph, graph.node("attend"))
    names = [node.name for node in graph.nodes]
    assert names.count("attend") == 1 and names[-1] == "head" and not [name for name in names if "out_proj" in name]


def test_a_concatenation_shows_the_shares_of_its_groups() -> None:
    def forward(parts: nn.Module, x: Tensor) -> Tensor:
        sides = [parts.get_submodule(name)(x) for name in ("first", "second")]
        return parts.get_submodule("head")(torch.cat(sides, dim=1))

    parts = nn.ModuleDict({"first": nn.Linear(3, 2), "second": nn.Linear(3, 6), "head": nn.Linear(8, 2)})
    graph = build_graph(analyze_model(parts, torch.zeros(1, 3), forward_fn=forward))
    assert graph.node("cat").groups == ((0, 0.25), (1, 0.75))


@pytest.mark.parametrize("detail", ["layers", "operations"])
def test_every_node_reads_only_earlier_ones(large: Analysis, detail: str) -> None:
    graph = build_graph(large, detail)  # ty: ignore[invalid-argument-type]
    assert all(source < target for source, target in graph.edges)
    operations = [operation for node in graph.nodes for operation in node.operations]
    assert len(operations) == len(set(operations))
    assert {number for node in graph.nodes for number, _ in node.groups} - {FROZEN} == set(range(len(large.groups)))
    assert not any(node.inside for node in graph.nodes)


# ------------------------------------------------------------------------------------------------------- companions


def test_companions_of_a_shortcut_by_hand(analysis: Analysis) -> None:
    found = find_companions(analysis, "block.conv2", 1)
    norm = [(f"block.bn2.{name}", 0, (1,)) for name in ("weight", "bias", "running_mean", "running_var")]
    assert [(part.parameter, part.dim, part.indices) for part in found.slices] == [
        ("stem.weight", 0, (1,)),
        ("block.conv1.weight", 1, (1,)),
        ("block.conv2.weight", 0, (1,)),
        *norm,
        ("head.weight", 1, (4, 5, 6, 7)),
    ]
    assert found.units == (1,) and found.group is analysis.groups[0]
    assert found.slices == find_companions(analysis, "stem", 1).slices
    assert "4–7" in repr(found)


def test_a_frozen_channel_says_why(analysis: Analysis) -> None:
    found = find_companions(analysis, "head", 2)
    assert found.group is None and not found.slices and found.reason == "the output of the model"
    assert "It stays: the output of the model." in repr(found)
    assert "Kalır: modelin çıktısı." in repr(find_companions(analysis, "head", 2, language="tr"))
    with pytest.raises(InputError, match="the output of the model"):
        plan_removal(analysis, found)


def test_mistakes_are_named(analysis: Analysis) -> None:
    with pytest.raises(InputError, match=r"'tail'.*stem, block\.conv1"):
        find_companions(analysis, "tail", 0)
    with pytest.raises(InputError, match="0 to 3, not 4"):
        find_companions(analysis, "stem", 4)
    with pytest.raises(InputError, match=r"'tail'.*stem"):
        list_companions(analysis, "tail")
    with pytest.raises(InputError, match="'de'"):
        find_companions(analysis, "stem", 0, language="de")


def test_a_whole_group_is_the_sum_of_its_units(analysis: Analysis) -> None:
    whole = list_companions(analysis, "stem")
    parts = [find_companions(analysis, "stem", channel) for channel in range(4)]
    for number, part in enumerate(whole.slices):
        assert sorted(index for each in parts for index in each.slices[number].indices) == list(part.indices)


@pytest.mark.parametrize("layer", ["stem", "block.conv1", "block.bn1", "block.conv2", "block.bn2"])
def test_removing_companions_is_a_right_cut(analysis: Analysis, layer: str) -> None:
    model = make_net()
    assert list_channels(analysis)[layer] == 4
    for channel in range(4):
        plan = plan_removal(analysis, find_companions(analysis, layer, channel))
        assert verify_pruning(model, slice_model(copy.deepcopy(model), plan), plan, IMAGE).passed


def test_parts_that_must_shrink_alike_are_mentioned() -> None:
    def forward(parts: nn.Module, x: Tensor) -> Tensor:
        halves = parts.get_submodule("widen")(x).chunk(2, dim=1)
        return sum(parts.get_submodule(name)(half) for name, half in zip(("left", "right"), halves, strict=True))

    parts = nn.ModuleDict({"widen": nn.Linear(3, 8), "left": nn.Linear(4, 2), "right": nn.Linear(4, 2)})
    analysis = analyze_model(parts, torch.zeros(1, 3), forward_fn=forward)
    assert "The same share must go from each of the 2 parts" in repr(find_companions(analysis, "widen", 0))
    assert "must go" not in repr(list_companions(analysis, "widen"))


# ----------------------------------------------------------------------------------------------------------- labels


def test_labels_travel_and_unite(analysis: Analysis) -> None:
    raw, united = list_labels(analysis, united=False).labels, list_labels(analysis).labels
    operations = {op.where: op.index for op in analysis.coupling.traces[0].trace.operations if op.state is None}
    stem, first, second, total, flat = (
        operations[name]
        for name in (
            *("Convolution in stem", "Convolution in block.conv1", "Convolution in block.conv2"),
            *("Add in block", "View in flatten"),
        )
    )
    assert len({raw[stem, 1], raw[first, 1], raw[second, 1]}) == 3
    assert united[stem, 1] == united[second, 1] == united[total, 1] == (1, 2, 3, 4)
    assert united[first, 1] == (5, 6, 7, 8)
    assert united[flat, 1] == (1,) * 4 + (2,) * 4 + (3,) * 4 + (4,) * 4
    assert set(united[operations["Addmm in head"], 1]) == {0}
    assert "Etiketler" in repr(list_labels(analysis, language="tr"))


# --------------------------------------------------------------------------------------------------------- drawings


def frames_of(figure: Figure) -> dict[int, FancyBboxPatch]:
    """The frame of every node in a figure."""
    boxes = [
        (artist.get_gid(), artist) for artist in figure.axes[0].get_children() if isinstance(artist, FancyBboxPatch)
    ]
    return {int(gid.removeprefix("node-")): box for gid, box in boxes if gid is not None}


def test_what_goes_lights_up(analysis: Analysis) -> None:
    graph = build_graph(analysis)
    found = find_companions(analysis, "block.conv1", 2)
    assert find_touched(graph, found) == {2: LOSES, 3: READS}
    frames = frames_of(plot_graph(graph, found))
    assert {index for index, frame in frames.items() if frame.get_linewidth() > 2} == {2, 3}
    assert [frames[index].get_linestyle() == "solid" for index in (2, 3)] == [True, False]


def test_the_shortcut_carries_the_stream(analysis: Analysis) -> None:
    figure = plot_graph(build_graph(analysis), find_companions(analysis, "stem", 0))
    edges = {
        patch.get_gid(): patch.get_linewidth()
        for patch in figure.axes[0].get_children()
        if isinstance(patch, PathPatch)
    }
    thick = {name for name, width in edges.items() if width > 1.5}
    assert thick == {"edge-1-2", "edge-1-4", "edge-3-4", "edge-4-5", "edge-5-6"}


@pytest.mark.parametrize("language", ["en", "tr"])
def test_nothing_is_clipped_and_no_boxes_overlap(large: Analysis, language: str) -> None:
    graph = build_graph(large)
    figure = plot_graph(graph, list_companions(large, "layer3.0.conv3", language), language=language)
    figure.draw_without_rendering()
    boxes = {index: frame.get_window_extent() for index, frame in frames_of(figure).items()}
    assert len(boxes) == len(graph.nodes) == 71
    for first, second in itertools.combinations(boxes.values(), 2):
        assert not first.overlaps(second)
    words = [text for text in figure.axes[0].texts if text.get_text()]
    for text in words:
        place = text.get_window_extent()
        assert figure.bbox.x0 <= place.x0 and place.x1 <= figure.bbox.x1, text.get_text()
        assert figure.bbox.y0 <= place.y0 and place.y1 <= figure.bbox.y1, text.get_text()
        if (gid := text.get_gid()) is not None:
            box = boxes[int(gid.removeprefix("name-"))]
            assert box.x0 <= place.x0 and place.x1 <= box.x1, text.get_text()
    assert_apart([text for text in words if text.get_gid() is None and float(text.get_fontsize()) < 8])


def assert_apart(words: list[Text]) -> None:
    """No word of a legend runs into the next."""
    for first, second in itertools.combinations([text.get_window_extent() for text in words], 2):
        assert not first.overlaps(second)


def test_groups_that_meet_have_different_colours(large: Analysis) -> None:
    graph = build_graph(large)
    colours = colour_groups(graph)
    for source, target in graph.edges:
        numbers = [{number for number, _ in graph.nodes[end].groups} - {FROZEN} for end in (source, target)]
        for first, second in itertools.product(*numbers):
            assert first == second or colours[first] != colours[second]


def test_the_svg_holds_everything_and_loads_nothing(analysis: Analysis) -> None:
    graph = build_graph(analysis)
    text = render_graph(graph, find_companions(analysis, "stem", 1))
    root = ElementTree.fromstring(text)
    titles = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(titles) == sorted([describe_node(graph, node) for node in graph.nodes] * 2)  # of boxes and names
    links = [value for element in root.iter() for name, value in element.attrib.items() if name.endswith("href")]
    assert "<script" not in text and all(link.startswith("#") for link in links)
    assert text == render_graph(graph, find_companions(analysis, "stem", 1))


def test_hovering_tells_shape_groups_and_tensors(analysis: Analysis) -> None:
    graph = build_graph(analysis)
    assert describe_node(graph, graph.node("block.conv1")).splitlines() == [
        "block.conv1",
        "Conv2d + BatchNorm2d + relu",
        "output 1 × 4 × 8 × 8",
        "4 channels of group 2 (block.conv1)",
        "tensors: block.conv1.weight, block.bn1.weight, block.bn1.bias",
    ]
    assert "3 channels that stay" in describe_node(graph, graph.node("head"))
    assert "çıkış 1 × 4 × 8 × 8" in describe_node(graph, graph.node("block.conv1"), "tr")


def test_a_drawing_on_given_axes_stays_there(analysis: Analysis) -> None:
    figure = Figure()
    axes = figure.subplots()
    assert plot_graph(build_graph(analysis), ax=axes) is figure
    with pytest.raises(InputError, match="no node"):
        plot_graph(DependencyGraph((), ()))


def test_stages_stand_in_columns() -> None:
    graph = build_graph(analyze_model(resnet18(), torch.zeros(1, 3, 64, 64)))
    frames = frames_of(plot_graph(graph))
    middle = {graph.nodes[index].name: frame.get_x() for index, frame in frames.items()}
    height = {graph.nodes[index].name: frame.get_y() for index, frame in frames.items()}
    assert middle["layer1.0.conv1"] < middle["layer2.0.conv1"] < middle["layer4.0.conv1"]
    assert height["layer2.0.conv1"] > height["layer2.0.conv2"] > height["layer2.0.add"]
    assert np.isclose(height["layer2.0.conv1"], height["layer2.0.downsample.0"])
