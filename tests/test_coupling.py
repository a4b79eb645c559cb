"""Groups, members, constraints, names and reasons of the small networks, derived by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from nets import CASES
from torch import Tensor, nn
from torch.nn import functional as F

from cleanai import analyze_model
from cleanai.analysis import Analysis
from cleanai.coupling import Group, couple_channels
from cleanai.errors import TraceError
from cleanai.trace import trace_model


def analyze(name: str) -> Analysis:
    """The analysis of a network of `nets.py`."""
    return analyze_model(CASES[name].make(), CASES[name].inputs(2))


def prunable(analysis: Analysis) -> dict[str, Group]:
    """The groups that have more than one unit."""
    return {group.name: group for group in analysis.groups if group.size > 1}


def layer(path: str) -> str:
    """The outputs of a layer with a bias."""
    return f"{path}.weight:0 {path}.bias:0"


def norm(path: str) -> str:
    """The four vectors of a batch normalisation."""
    return " ".join(f"{path}.{name}:0" for name in ("weight", "bias", "running_mean", "running_var"))


def reads(*paths: str) -> str:
    """The inputs of layers."""
    return " ".join(f"{path}.weight:1" for path in paths)


def recurrent(path: str) -> str:
    """The hidden units of one recurrent layer: rows of every gate, and the columns that read them back."""
    rows = " ".join(f"{path}.{name}_l0:0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    return f"{rows} {path}.weight_hh_l0:1"


def assert_group(group: Group, kind: str, blocks: Sequence[int], members: str) -> None:
    """A group has these units, in these blocks, and exactly these members ("parameter:dim" by spaces)."""
    assert group.kind == kind
    assert group.size == sum(blocks)
    assert sorted(len(block) for block in group.blocks) == sorted(blocks)
    assert sorted(np.concatenate(group.blocks).tolist()) == list(range(group.size))
    assert {f"{m.parameter}:{m.dim}" for m in group.members} == set(members.split())


Expected = dict[str, tuple[str, list[int], str]]
STEM = ("channels", [7], f"{layer('entry')} {reads('stem')}")
BRANCHES = f"{layer('stem')} {reads('left', 'right')}"
TWICE = f"{layer('stem')} shared.weight:0 shared.weight:1 shared.bias:0 {reads('fc')}"
QUERIES = f"{layer('q')} {layer('k')} {layer('v')} {reads('out')}"
NORMED = "4.parametrizations.weight."
CHECKPOINTED = {
    "conv1": ("channels", [8], f"{layer('conv1')} {reads('conv2')}"),
    "conv2": ("channels", [6], f"{layer('conv2')} {reads('conv3')}"),
}

EXPECTED: dict[str, Expected] = {
    "plain_cnn": {
        "conv1": ("channels", [8], f"{layer('conv1')} {norm('bn1')} {reads('conv2')}"),
        "conv2": ("channels", [12], f"{layer('conv2')} {reads('fc')}"),
    },
    "no_bias": {
        "conv1": ("channels", [8], "conv1.weight:0 conv2.weight:1"),
        "conv2": ("channels", [6], "conv2.weight:0 fc.weight:1"),
    },
    "residual": {
        "stem": ("channels", [8], f"{layer('stem')} {layer('conv2')} {norm('bn2')} {reads('conv1', 'fc')}"),
        "conv1": ("channels", [12], f"{layer('conv1')} {norm('bn1')} {reads('conv2')}"),
    },
    "option_a": {"stem": ("channels", [8], f"{layer('stem')} {layer('conv')} {reads('conv', 'fc')}")},
    "dense": {
        "conv1": ("channels", [4], f"{layer('conv1')} {norm('bn')} {reads('conv2', 'conv3')}"),
        "conv2": ("channels", [6], f"{layer('conv2')} {norm('bn')} {reads('conv3')}"),
    },
    # Four channels to a group of the norm, equally many of each: 0-3 | 4, 5 and 0, 1 | 2-5 | 6-9.
    "concat_group_norm": {
        "conv1": ("channels", [4, 4, 4, 4], f"{layer('conv1')} {layer('conv2')} {layer('norm')} {reads('conv3')}")
    },
    "in_place": {"conv1": ("channels", [8], f"{layer('conv1')} {layer('conv2')} {reads('conv2', 'fc')}")},
    "split_literal": {"entry": STEM},
    "split_attribute": {"entry": STEM, "stem": ("channels", [4, 8], BRANCHES)},
    "chunk": {"entry": STEM, "stem": ("channels", [6, 6], BRANCHES)},
    "slice_literal": {"entry": STEM},
    "slice_computed": {"entry": STEM, "stem": ("channels", [4, 8], BRANCHES)},
    "slice_attribute": {"entry": STEM, "stem": ("channels", [4, 8], BRANCHES)},
    "unflatten_unbind": {"entry": STEM, "stem": ("channels", [6, 6], BRANCHES)},
    "strided_stack": {"entry": STEM, "stem": ("channels", [6], BRANCHES)},
    "index_tensor": {"entry": STEM},
    "shuffle": {"conv1": ("groups", [4], f"{layer('conv1')} {layer('conv2')} {reads('conv3')}")},
    "roll": {"conv1": ("channels", [7], f"{layer('conv1')} {layer('conv2')} {reads('conv3')}")},
    "flip": {"conv1": ("channels", [12], f"{layer('conv1')} {layer('conv2')} {reads('conv3')}")},
    "interleave": {"conv1": ("channels", [6], f"{layer('conv1')} {layer('conv2')} {reads('conv3')}")},
    "stack": {"conv1": ("channels", [6], f"{layer('conv1')} {layer('conv2')} {reads('conv3')}")},
    "flatten_nchw": {
        "conv": ("channels", [6], f"{layer('conv')} {reads('fc1')}"),
        "fc1": ("channels", [8], f"{layer('fc1')} {reads('fc2')}"),
    },
    "flatten_nhwc": {"conv": ("channels", [6], f"{layer('conv')} {reads('fc')}")},
    "view_literal": {"fc1": ("channels", [8], f"{layer('fc1')} {reads('fc2')}")},
    "view_attribute": {
        "conv": ("channels", [6], f"{layer('conv')} {reads('fc1')}"),
        "fc1": ("channels", [8], f"{layer('fc1')} {reads('fc2')}"),
    },
    "pixel_shuffle": {
        "conv0": ("channels", [6], f"{layer('conv0')} {reads('conv1')}"),
        "conv1": ("groups", [4], f"{layer('conv1')} {reads('conv2')}"),
    },
    "einsum": {
        "fc1": ("channels", [8], f"{layer('fc1')} weight:0"),
        "weight": ("channels", [10], f"weight:1 {reads('fc2')}"),
    },
    "slice_write": {"conv0": ("channels", [6], f"{layer('conv0')} {reads('conv1')}")},
    # The passing half and the convolved half are shuffled channel by channel; the half that is read is free.
    "shuffle_unit": {
        "stem": (
            "groups",
            [6, 6],
            f"{layer('stem')} {layer('point')} {layer('depth')} {norm('bn')} {reads('point', 'head')}",
        )
    },
    # Pieces 0 and 1 are added; what comes out is added to piece 2; only the last convolution's channels are free.
    "res2": {
        "stem": ("channels", [4, 4], f"{layer('stem')} {layer('convs.0')} {reads('convs.0', 'convs.1', 'head')}"),
        "convs.1": ("channels", [4], f"{layer('convs.1')} {reads('head')}"),
    },
    "unet": {
        "down1": ("channels", [6], f"{layer('down1')} {reads('down2', 'join')}"),
        "down2": ("channels", [10], f"{layer('down2')} up.weight:0"),
        "up": ("channels", [8], f"up.weight:1 up.bias:0 {reads('join')}"),
        "join": ("channels", [7], f"{layer('join')} {reads('head')}"),
    },
    "gated_mlp": {
        "embed": ("channels", [8], f"{layer('embed')} {layer('down')} scale:0 {reads('both', 'head')}"),
        "both": ("channels", [10], f"{layer('both')} {reads('down')}"),
    },
    "depthwise": {
        "expand": ("channels", [8], f"{layer('expand')} {layer('depth')} {norm('bn')} {reads('project')}"),
    },
    "depth_multiplier": {"expand": ("groups", [4], f"{layer('expand')} {layer('depth')} {reads('project')}")},
    "grouped": {"conv1": ("groups", [3], f"{layer('conv1')} {layer('conv2')} {reads('conv3')}")},
    # Six columns for both groups: the same columns of each; 0-3 hold conv1 in the first group and 4, 5 do not.
    "grouped_concat": {
        "conv1": ("channels", [4], f"{layer('conv1')} {layer('conv2')} {reads('conv3')}"),
        "conv2": ("channels", [2], f"{layer('conv2')} {reads('conv3')}"),
        "conv3": ("channels", [3, 3], f"{layer('conv3')} {reads('conv4')}"),
    },
    "grouped_transposed": {"conv1": ("groups", [4], f"{layer('conv1')} {layer('up')} {reads('conv2')}")},
    "transposed": {
        "conv1": ("channels", [8], f"{layer('conv1')} up.weight:0"),
        "up": ("channels", [6], f"up.weight:1 up.bias:0 {norm('bn')} {reads('conv2')}"),
    },
    "one_channel": {"conv1": ("channels", [8], f"{layer('conv1')} {reads('conv2')}")},
    "size_one": {
        "conv1": ("channels", [8], f"{layer('conv1')} {reads('narrow')}"),
        "widen": ("channels", [6], f"{layer('widen')} {reads('fc')}"),
    },
    "squeeze_excite": {
        "conv1": ("channels", [8], f"{layer('conv1')} {layer('excite')} {reads('squeeze', 'conv2')}"),
        "squeeze": ("channels", [4], f"{layer('squeeze')} {reads('excite')}"),
    },
    "spatial_attention": {"conv1": ("channels", [8], f"{layer('conv1')} {reads('conv2')}")},
    "expand": {"conv1": ("channels", [8], f"{layer('conv1')} scale:0 {reads('gate', 'conv2')}")},
    "class_token": {"token": ("channels", [8], f"token:2 {layer('embed')} positions:2 {reads('head')}")},
    "softmax_channels": {
        "conv0": ("channels", [6], f"{layer('conv0')} {reads('conv1')}"),
        "conv1": ("channels", [8], f"{layer('conv1')} {reads('conv2')}"),
    },
    "layer_norm": {
        "embed": (
            "channels",
            [8],
            f"{layer('embed')} {layer('norm')} {layer('fc2')} {layer('last')} {reads('fc1', 'head')}",
        ),
        "fc1": ("channels", [12], f"{layer('fc1')} {reads('fc2')}"),
    },
    "layer_norm_plain": {"embed": ("channels", [8], f"{layer('embed')} {reads('head')}")},
    "group_norm": {
        "conv1": ("groups", [3], f"{layer('conv1')} {layer('norm1')} {reads('conv2')}"),
        "conv2": ("channels", [8], f"{layer('conv2')} {layer('norm2')} {reads('conv3')}"),
    },
    "instance_norm": {
        "conv0": ("channels", [6], f"{layer('conv0')} {reads('conv1')}"),
        "conv1": ("channels", [8], f"{layer('conv1')} {reads('conv2')}"),
    },
    "instance_norm_statistics": {
        "conv0": ("channels", [6], f"{layer('conv0')} {reads('conv1')}"),
        "conv1": ("channels", [8], f"{layer('conv1')} {norm('norm')} {reads('conv2')}"),
    },
    "rms_norm": {
        "embed": ("channels", [8], f"{layer('embed')} hand.weight:0 {reads('fc')}"),
        "fc": ("channels", [10], f"{layer('fc')} norm.weight:0 {reads('head')}"),
    },
    "batch_norm_plain": {
        "conv1": ("channels", [8], f"{layer('conv1')} bn.running_mean:0 bn.running_var:0 {reads('conv2')}")
    },
    "prelu": {
        "0": ("channels", [8], f"{layer('0')} 1.weight:0 {reads('2')}"),
        "2": ("channels", [6], f"{layer('2')} {reads('4')}"),
    },
    "tied_linears": {
        "fc1": ("channels", [8], f"{layer('encode')} {layer('fc1')} fc1.weight:1 fc2.bias:0"),
    },
    "tied_embedding": {
        "fc2": ("channels", [8], f"embed.weight:1 {layer('fc2')} {reads('fc1')}"),
        "fc1": ("channels", [12], f"{layer('fc1')} {reads('fc2')}"),
    },
    "embedding": {
        "words": ("channels", [8], f"words.weight:1 positions.weight:1 {reads('fc')}"),
        "fc": ("channels", [6], f"{layer('fc')} {reads('head')}"),
    },
    "called_twice": {"stem": ("channels", [8], TWICE)},
    "bare_parameters": {
        "kernel": ("channels", [8], "kernel:0 shift:0 hidden.0:1"),
        "hidden.0": ("channels", [6], "hidden.0:0 hidden.1:0 readout.weight:0"),
    },
    "plain_tensors": {"fc1": ("channels", [8], f"{layer('fc1')} scale:0 shift:0 {reads('fc2')}")},
    # Directions (original1) and their lengths (original0); a column that goes is missing in every direction.
    "weight_norm": {
        "0": ("channels", [9], f"{layer('0')} {reads('2')}"),
        "2": ("channels", [10], f"{layer('2')} {NORMED}original1:1"),
        "4.parametrizations.weight.original1": (
            "channels",
            [8],
            f"{NORMED}original0:0 {NORMED}original1:0 4.bias:0 {reads('6')}",
        ),
        "6": ("channels", [7], f"{layer('6')} {reads('8')}"),
    },
    "attention_matmul": {"qkv": ("heads", [3], f"{layer('qkv')} {reads('proj')}")},
    "attention_sdpa": {"qkv": ("heads", [3], f"{layer('qkv')} {reads('proj')}")},
    "attention_index": {
        "embed": ("channels", [8], f"{layer('embed')} {reads('qkv')}"),
        "qkv": ("heads", [4], f"{layer('qkv')} {reads('proj')}"),
    },
    "attention_chunk": {"qkv": ("heads", [3], f"{layer('qkv')} {reads('proj')}")},
    "attention_separate": {"q": ("heads", [2], QUERIES)},
    "gqa_flag": {"q": ("heads", [2], QUERIES)},
    "gqa_repeat": {"q": ("heads", [2], QUERIES)},
    "gqa_expand": {"q": ("heads", [2], QUERIES)},
    "gqa_rotary": {"q": ("heads", [2], QUERIES)},
    "multihead_attention": {
        "embed": (
            "channels",
            [8],
            f"{layer('embed')} attention.in_proj_weight:1 {layer('attention.out_proj')} {reads('head')}",
        ),
        "attention.in_proj_weight": (
            "heads",
            [4],
            f"attention.in_proj_weight:0 attention.in_proj_bias:0 {reads('attention.out_proj')}",
        ),
    },
    "mixer": {
        "embed": (
            "channels",
            [8],
            f"{layer('embed')} {layer('norm1')} {layer('norm2')} {layer('channel2')} {reads('channel1', 'head')}",
        ),
        "token1": ("channels", [7], f"{layer('token1')} {reads('token2')}"),
        "channel1": ("channels", [10], f"{layer('channel1')} {reads('channel2')}"),
    },
    "two_inputs": {"left": ("channels", [8], f"{layer('left')} {layer('right')} {reads('join')}")},
    "dict_inputs": {
        "fc": ("channels", [8], f"{layer('fc')} {reads('join')}"),
        "embed": ("channels", [4], f"embed.weight:1 {reads('join')}"),
    },
    "named_outputs": {"fc1": ("channels", [8], f"{layer('fc1')} {reads('fc2')}")},
    "none_outputs": {"fc1": ("channels", [8], f"{layer('fc1')} {reads('fc2')}")},
    "auxiliary": {
        "conv1": ("channels", [8], f"{layer('conv1')} {reads('conv2', 'aux_conv')}"),
        "conv2": ("channels", [6], f"{layer('conv2')} {reads('fc')}"),
        "aux_conv": ("channels", [10], f"{layer('aux_conv')} {reads('aux_fc')}"),
    },
    "custom_function": {
        "conv0": ("channels", [6], f"{layer('conv0')} {reads('conv1')}"),
        "conv1": ("channels", [8], f"{layer('conv1')} {reads('conv2')}"),
    },
    "checkpointed": CHECKPOINTED,
    "checkpointed_reentrant": CHECKPOINTED,
    "lstm": {
        "embed": ("channels", [8], f"{layer('embed')} lstm.weight_ih_l0:1"),
        "lstm.weight_ih_l0": ("channels", [10], f"{recurrent('lstm')} {reads('fc1')}"),
        "fc1": ("channels", [7], f"{layer('fc1')} {reads('fc2')}"),
    },
    "gru": {
        "gru.weight_ih_l0": ("channels", [10], f"{recurrent('gru')} {reads('fc1')}"),
        "fc1": ("channels", [7], f"{layer('fc1')} {reads('fc2')}"),
    },
    "unused": {"conv1": ("channels", [8], f"{layer('conv1')} {reads('conv2')}")},
    "caching": {"conv1": ("channels", [8], f"{layer('conv1')} {reads('conv2')}")},
    "value_dependent": {"fc1": ("channels", [8], f"{layer('fc1')} {reads('fc2')}")},
    "hooked": {"conv1": ("channels", [8], f"{layer('conv1')} {reads('conv2')}")},
    "running_buffer": {},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_groups_of_each_network_are_those_derived_by_hand(name: str) -> None:
    found = prunable(analyze(name))
    assert set(found) == set(EXPECTED[name])
    for group, (kind, blocks, members) in EXPECTED[name].items():
        assert_group(found[group], kind, blocks, members)


# ---------------------------------------------------------------------------------------------- which index is which


def units_of(group: Group, parameter: str, dim: int = 0) -> list[int]:
    """The unit of each index of a dimension, -1 where the group owns none."""
    member = next(m for m in group.members if (m.parameter, m.dim) == (parameter, dim))
    units = np.full(member.size, -1)
    units[member.positions] = member.units
    return units.tolist()


def test_flatten_keeps_four_positions_of_a_channel_together_in_either_layout() -> None:
    nchw, nhwc = prunable(analyze("flatten_nchw"))["conv"], prunable(analyze("flatten_nhwc"))["conv"]
    assert units_of(nchw, "fc1.weight", 1) == [index // 4 for index in range(24)]
    assert units_of(nhwc, "fc.weight", 1) == [index % 6 for index in range(24)]


def test_flip_pairs_first_with_last() -> None:
    group = prunable(analyze("flip"))["conv1"]
    assert units_of(group, "conv2.weight") == units_of(group, "conv1.weight")[::-1]
    assert units_of(group, "conv3.weight", 1) == units_of(group, "conv2.weight")


def test_roll_moves_every_channel_by_five_and_keeps_what_wraps_around() -> None:
    analysis = analyze("roll")
    group = prunable(analysis)["conv1"]
    made = units_of(group, "conv1.weight")
    assert [index for index, unit in enumerate(made) if unit < 0] == [7, 8, 9, 10, 11]
    assert units_of(group, "conv2.weight") == made[-5:] + made[:-5]
    assert any("Roll wraps it" in frozen.reason for frozen in analysis.frozen)


def test_shuffle_takes_one_channel_of_each_group() -> None:
    group = prunable(analyze("shuffle"))["conv1"]
    assert units_of(group, "conv1.weight") == [index % 4 for index in range(12)]
    assert units_of(group, "conv2.weight") == [index // 3 for index in range(12)]


def test_interleave_and_strided_stack_pair_the_right_channels() -> None:
    interleaved = prunable(analyze("interleave"))["conv1"]
    assert units_of(interleaved, "conv1.weight") == [index % 6 for index in range(12)]
    assert units_of(interleaved, "conv2.weight") == [index // 2 for index in range(12)]
    strided = prunable(analyze("strided_stack"))["stem"]
    assert units_of(strided, "stem.weight") == [index // 2 for index in range(12)]
    assert units_of(strided, "left.weight", 1) == list(range(6))


def test_concatenation_reads_each_piece_where_it_lies() -> None:
    groups = prunable(analyze("dense"))
    assert units_of(groups["conv1"], "conv3.weight", 1) == [0, 1, 2, 3] + [-1] * 6
    assert units_of(groups["conv2"], "conv3.weight", 1) == [-1] * 4 + [0, 1, 2, 3, 4, 5]
    assert units_of(groups["conv2"], "bn.running_var") == [-1] * 4 + [0, 1, 2, 3, 4, 5]


def test_a_split_keeps_the_proportion_of_its_pieces() -> None:
    group = prunable(analyze("slice_computed"))["stem"]
    assert [block.tolist() for block in group.blocks] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11]]
    assert group.bundles == 4
    assert units_of(group, "right.weight", 1) == [4, 5, 6, 7, 8, 9, 10, 11]


def test_option_a_frees_the_channels_of_the_shortcut_and_keeps_the_padding() -> None:
    analysis = analyze("option_a")
    group = prunable(analysis)["stem"]
    assert units_of(group, "conv.weight") == [-1] * 4 + list(range(8)) + [-1] * 4
    frozen = next(frozen for frozen in analysis.frozen if ("conv.weight", 0) in frozen.parameters)
    assert frozen.channels == 8 and set(frozen.layers) == {"conv", "fc"}
    assert "ConstantPadNd" in frozen.reason or "does not follow a cut" in frozen.reason


def test_a_group_of_a_convolution_goes_with_all_its_channels() -> None:
    grouped = prunable(analyze("grouped"))["conv1"]
    assert units_of(grouped, "conv1.weight") == [index // 4 for index in range(12)]
    assert units_of(grouped, "conv2.weight") == [index // 6 for index in range(18)]
    multiplied = prunable(analyze("depth_multiplier"))["expand"]
    assert units_of(multiplied, "depth.bias") == [index // 3 for index in range(12)]
    transposed = prunable(analyze("grouped_transposed"))["conv1"]
    assert units_of(transposed, "up.weight") == [index // 3 for index in range(12)]
    assert units_of(transposed, "up.bias") == [index // 2 for index in range(8)]
    concatenated = prunable(analyze("grouped_concat"))
    assert units_of(concatenated["conv1"], "conv2.weight") == [-1, -1, 0, 1, 2, 3, -1, -1]
    assert units_of(concatenated["conv2"], "conv2.weight") == [0, 1, -1, -1, -1, -1, 0, 1]


def test_a_head_goes_with_its_queries_keys_values_and_columns() -> None:
    packed = prunable(analyze("attention_matmul"))["qkv"]
    assert units_of(packed, "qkv.weight") == [(index // 4) % 3 for index in range(36)]
    assert units_of(packed, "proj.weight", 1) == [index // 4 for index in range(12)]
    assert packed.width == 12
    separate = prunable(analyze("attention_separate"))["q"]
    assert units_of(separate, "v.weight") == [index // 10 for index in range(20)]


@pytest.mark.parametrize("name", ["gqa_flag", "gqa_repeat", "gqa_expand", "gqa_rotary"])
def test_a_key_head_goes_with_all_query_heads_that_read_it(name: str) -> None:
    group = prunable(analyze(name))["q"]
    assert units_of(group, "q.weight") == [index // 12 for index in range(24)]
    assert units_of(group, "k.weight") == units_of(group, "v.weight") == [index // 6 for index in range(12)]


def test_gates_pair_each_gate_with_its_value() -> None:
    group = prunable(analyze("gated_mlp"))["both"]
    assert units_of(group, "both.weight") == [index % 10 for index in range(20)]


def test_a_pixel_shuffle_takes_the_four_channels_that_become_one() -> None:
    group = prunable(analyze("pixel_shuffle"))["conv1"]
    assert units_of(group, "conv1.weight") == [index // 4 for index in range(16)]
    assert units_of(group, "conv2.weight", 1) == [0, 1, 2, 3]


@pytest.mark.parametrize(("name", "gates"), [("lstm", 4), ("gru", 3)])
def test_a_hidden_unit_goes_with_its_row_in_every_gate(name: str, gates: int) -> None:
    group = prunable(analyze(name))[f"{name}.weight_ih_l0"]
    rows = [index % 10 for index in range(10 * gates)]
    assert units_of(group, f"{name}.weight_ih_l0") == units_of(group, f"{name}.bias_hh_l0") == rows
    assert units_of(group, f"{name}.weight_hh_l0", 1) == units_of(group, "fc1.weight", 1) == list(range(10))
    assert group.width == gates


def test_members_say_whether_a_dimension_is_written_or_read() -> None:
    roles = {f"{m.parameter}:{m.dim}": m.role for m in prunable(analyze("plain_cnn"))["conv1"].members}
    assert roles == {
        "conv1.weight:0": "output", "conv1.bias:0": "output", "bn1.weight:0": "output", "bn1.bias:0": "output",
        "bn1.running_mean:0": "output", "bn1.running_var:0": "output", "conv2.weight:1": "input",
    }  # fmt: skip


def test_layers_are_listed_in_the_order_of_the_forward() -> None:
    assert prunable(analyze("plain_cnn"))["conv1"].layers == ("conv1", "bn1", "conv2")


# ------------------------------------------------------------------------------------------------------- reasons

REASONS = {
    "plain_cnn": ("fc.weight", "the output of the model"),
    "index_tensor": ("stem.weight", "Index picks from it by position"),
    "slice_write": ("conv1.weight", "does not follow a cut of it: Slice"),
    "split_literal": ("stem.weight", "does not follow a cut of it"),
    "slice_literal": ("stem.weight", "does not follow a cut of it"),
    "view_literal": ("conv.weight", "does not follow a cut of it"),
    "running_buffer": ("conv1.weight", "does not follow a cut of it"),
    "embedding": ("words.weight", "the vocabulary of Embedding in words"),
    "named_outputs": ("fc2.weight", "the output of the model"),
    "grouped": ("conv2.weight", "whole heads or groups"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_stays_is_named_with_its_reason(name: str) -> None:
    parameter, reason = REASONS[name]
    found = [f.reason for f in analyze(name).frozen if parameter in {name for name, _ in f.parameters}]
    assert any(reason in text for text in found), found


def test_every_channel_is_in_a_group_or_has_a_reason() -> None:
    for name, case in CASES.items():
        model = case.make()
        analysis = analyze_model(model, case.inputs(2))
        known = {(m.parameter, m.dim) for g in analysis.groups for m in g.members}
        known |= {place for frozen in analysis.frozen for place in frozen.parameters}
        unused = {s.name for labelled in analysis.coupling.traces[-1:] for s in labelled.trace.unused}
        for parameter, tensor in model.named_parameters():
            for dim in range(min(tensor.dim(), 2)):
                known_or_unused = (parameter, dim) in known or parameter in unused
                assert known_or_unused or tensor.shape[dim] == 1, f"{name}: {parameter} dimension {dim}"


def test_a_rule_that_fails_is_an_error_with_the_operation_and_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    from cleanai import rules

    def broken(*_: object) -> list[object]:
        raise IndexError("planted")

    monkeypatch.setitem(rules.RULES, "Relu", broken)
    trace = trace_model(CASES["no_bias"].make(), CASES["no_bias"].inputs(2))
    couple_channels(trace)  # no Relu in it
    with pytest.raises(TraceError, match=r"Relu.*planted"):
        couple_channels(trace_model(CASES["dense"].make(), CASES["dense"].inputs(2)))


# ---------------------------------------------------------------------------------------------------- other shapes


def group_sizes(model: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> dict[str, int]:
    """{group: units}, groups of one unit left out."""
    return {group.name: group.size for group in analyze_model(model, inputs).groups if group.size > 1}


class Lambda(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.fc1, self.fc2, self.between = nn.Linear(6, 8), nn.Linear(width, 4), between

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.between(self.fc1(x)))


@pytest.mark.parametrize(
    ("between", "free"),
    [
        (lambda x: x.reshape(-1, 2, x.shape[1] // 2).transpose(1, 2).flatten(1), 4),  # pairs (i, i + 4)
        (lambda x: x.reshape(-1, x.shape[1] // 2, 2).flip(2).flatten(1), 4),  # neighbours
        (lambda x: torch.cat([x.chunk(2, 1)[1], x.chunk(2, 1)[0]], 1), 8),
        (lambda x: x.unsqueeze(-1).squeeze(-1).contiguous().clone(), 8),
        (lambda x: x - x.amax(0, keepdim=True), 8),
        (lambda x: x * x.new_tensor(3.0) + 1, 8),
        (lambda x: torch.cat([x, x[:, :0]], 1), 8),
        (lambda x: x + x.roll(0, 1), 8),
        (lambda x: F.leaky_relu(x, 0.2) * torch.erf(x) / (1 + x.abs()), 8),
        (lambda x: x.cumsum(1), 8),  # what is gone adds nothing to the sums that are left
        (lambda x: x.clamp(-1, 1).square().add(1).log(), 8),
        (lambda x: torch.where(x > 0, x, 0.1 * x), 0),  # where the condition comes from is not in the graph
        (lambda x: x + x.roll(8, 1), 0),  # moves nothing now, but would after a cut
        (lambda x: x.roll(9, 1), 0),
        (lambda x: x.sort(1)[0], 0),
        (lambda x: x[:, [7, 6, 5, 4, 3, 2, 1, 0]], 0),
        (lambda x: torch.where(torch.arange(8) > 3, x, -x), 0),
        (lambda x: x * torch.arange(8.0), 0),
        (lambda x: x + torch.ones(8), 0),
        (lambda x: x.unfold(1, 8, 1)[:, 0], 0),
    ],
)
def test_an_operation_between_two_layers_frees_or_freezes_what_it_must(
    between: Callable[[Tensor], Tensor], free: int
) -> None:
    expected = {"fc1": free} if free else {}
    assert group_sizes(Lambda(between), torch.randn(3, 6)) == expected


def test_halves_that_swap_places_must_stay_equal() -> None:
    model = Lambda(lambda x: torch.cat([x.chunk(2, 1)[1], x.chunk(2, 1)[0]], 1))
    (group,) = (g for g in analyze_model(model, torch.randn(3, 6)).groups if g.size > 1)
    assert sorted(block.tolist() for block in group.blocks) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("shuffled", [2, 3, 6])
def test_a_convolution_by_groups_before_a_shuffle_of_others_shrinks_right_or_not_at_all(shuffled: int) -> None:
    """Three groups of two channels seen as two groups of three: what freezes one view freezes the other."""

    def shuffle(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, shuffled, c // shuffled, h, w).transpose(1, 2).reshape(n, c, h, w)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2, self.conv3 = (
                nn.Conv2d(2, 3, 1), nn.Conv2d(3, 6, 1, groups=3), nn.Conv2d(6, 3, 1),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return self.conv3(shuffle(self.conv2(self.conv1(x))))

    for group in analyze_model(Net(), torch.randn(2, 2, 4, 4)).groups:
        if any(member.parameter == "conv1.weight" for member in group.members):
            assert units_of(group, "conv2.weight") == [index // 2 for index in range(6)]


def test_names_stay_apart_where_one_layer_makes_two_groups() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.GLU(), nn.Linear(4, 3))
    names = [group.name for group in analyze_model(model, torch.randn(2, 6)).groups]
    assert len(names) == len(set(names))
