"""Sizes that a model keeps in attributes or takes for one: they follow a cut, shrink alike, or stay."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from nets import randomise
from oracle import assert_equals_masked, assert_removed, assert_runs
from torch import Tensor, nn
from torch.nn import functional as F

from cleanai import RandomImportance, StructuredPruner, analyze_model
from cleanai.coupling import couple_channels
from cleanai.fitting import Fitting, make_plan
from cleanai.models import CifarBlock, PaddedShortcut
from cleanai.plan import AttributeChange
from cleanai.slicing import slice_model
from cleanai.trace import trace_model


def some(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers, the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attributes(model: nn.Module) -> dict[str, Any]:
    """Every number, tuple and list of numbers that a model's own modules keep."""
    return {
        f"{path}.{name}".lstrip("."): copy.copy(value)
        for path, module in model.named_modules()
        if not type(module).__module__.startswith("torch.")
        for name, value in vars(module).items()
        if isinstance(value, (int, float, tuple, list)) and name != "training"
    }


def sizes(pruner: StructuredPruner) -> dict[str, int]:
    """{group: units} of all groups that can be pruned."""
    return {group.name: group.size for group in pruner.groups if group.size > 1}


def prune(build: Callable[[], nn.Module], inputs: Any, ratios: tuple[float, ...] = (0.25, 0.5)) -> tuple[Any, Any]:
    """Pruned at some ratios, equal to the masked original by both oracles, the original untouched; the last one."""
    model = randomise(build()).eval()
    before = attributes(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for ratio in ratios:
        pruner = StructuredPruner(model, inputs, RandomImportance(1), ratio)
        pruned = pruner.prune()
        assert pruner.plan is not None and pruner.verification is not None and pruner.verification.passed
        assert_equals_masked(model, pruned, pruner.plan, inputs)
        assert_removed(model, pruned, pruner.plan)
        assert_runs(pruned, inputs)
    assert attributes(model) == before
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shapes
    return pruned, pruner


def changed(pruned: Any, pruner: StructuredPruner) -> dict[str, Any]:
    """The attributes that are not what they were."""
    before = attributes(pruner.model)
    return {name: value for name, value in attributes(pruned).items() if value != before[name]}


# ------------------------------------------------------------------------------------------- attributes that follow


class Attention(nn.Module):
    """Attention over a residual stream, with its sizes kept in different ways."""

    def __init__(self, how: str, width: int = 10, heads: int = 4, dim: int = 3) -> None:
        super().__init__()
        self.how, inner = how, heads * dim
        self.q, self.k, self.v = (nn.Linear(width, inner) for _ in range(3))
        self.out = nn.Linear(inner, width)
        kept: dict[str, dict[str, Any]] = {
            "num_heads": {"num_heads": heads},
            "head_dim": {"head_dim": dim},
            "both": {"num_heads": heads, "head_dim": dim},
            "inner_dim": {"num_heads": heads, "head_dim": dim, "inner_dim": inner},
            "BERT": {"num_attention_heads": heads, "attention_head_size": dim, "all_head_size": inner},
            "tuple": {"shape": (heads, dim)},
            "list": {"shape": [heads, dim], "flat": [inner]},
            "other words": {"h": heads, "d": dim},
        }
        for name, value in kept[how].items():
            setattr(self, name, value)

    def split(self, x: Tensor) -> Tensor:
        """(batch, tokens, channels) as (batch, heads, tokens, channels)."""
        own: Any = self
        head = {
            "num_heads": lambda: (own.num_heads, -1),
            "head_dim": lambda: (-1, own.head_dim),
            "both": lambda: (own.num_heads, own.head_dim),
            "inner_dim": lambda: (own.num_heads, own.head_dim),
            "BERT": lambda: (own.num_attention_heads, own.attention_head_size),
            "tuple": lambda: own.shape,
            "list": lambda: own.shape,
            "other words": lambda: (own.h, own.d),
        }
        return x.view(*x.shape[:2], *head[self.how]()).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        own: Any = self
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        y = ((q @ k.mT * 0.5).softmax(-1) @ v).transpose(1, 2)
        flat = {"inner_dim": "inner_dim", "BERT": "all_head_size", "list": "flat"}.get(self.how)
        last = getattr(own, flat) if flat else -1
        return x + self.out(y.reshape(*x.shape[:2], last[0] if isinstance(last, list) else last))


class Stream(nn.Module):
    """A residual stream through some blocks."""

    def __init__(self, *blocks: nn.Module, width: int = 10) -> None:
        super().__init__()
        self.embed, self.blocks, self.head = nn.Linear(6, width), nn.ModuleList(blocks), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


FOLLOW: dict[str, dict[str, Any]] = {
    "num_heads": {"num_heads": 2},
    "head_dim": {},  # the number of heads is computed
    "both": {"num_heads": 2},
    "inner_dim": {"num_heads": 2, "inner_dim": 6},
    "BERT": {"num_attention_heads": 2, "all_head_size": 6},
    "tuple": {"shape": (2, 3)},
    "list": {"shape": [2, 3], "flat": [6]},
    "other words": {"h": 2},
}


@pytest.mark.parametrize("how", FOLLOW)
def test_heads_go_and_what_says_their_number_follows(how: str) -> None:
    pruned, pruner = prune(lambda: Stream(Attention(how), Attention(how)), some(2, 5, 6))
    assert sizes(pruner) == {"embed": 10, "blocks.0.q": 4, "blocks.1.q": 4}
    assert {group.kind for group in pruner.groups} == {"channels", "heads"}
    expected = {f"blocks.{block}.{name}": value for block in (0, 1) for name, value in FOLLOW[how].items()}
    assert changed(pruned, pruner) == expected
    assert pruned.blocks[1].q.weight.shape == (6, 5)


class Gate(nn.Module):
    """A gated layer whose pieces are cut at places that are kept in different ways."""

    def __init__(self, how: str, width: int = 10, hidden: int = 8) -> None:
        super().__init__()
        self.how = how
        self.hidden_dim, self.split_sizes, self.sizes, self.window = hidden, [hidden, hidden], (hidden, hidden), 8
        self.both, self.down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.both(x[:, -self.window :])
        if self.how == "split":
            gate, value = y.split(self.hidden_dim, -1)
        elif self.how == "sizes":
            gate, value = y.split(self.split_sizes, -1)
        elif self.how == "tuple":
            gate, value = y.split_with_sizes(self.sizes, -1)
        elif self.how == "view":
            gate, value = y.view(*y.shape[:-1], 2, self.hidden_dim).unbind(-2)
        elif self.how == "slice":
            gate, value = y[..., : self.hidden_dim], y[..., self.hidden_dim :]
        else:
            gate, value = y.narrow(-1, 0, self.sizes[0]), y.narrow(-1, self.sizes[0], self.sizes[1])
        return x + self.down(F.silu(gate) * value)


@pytest.mark.parametrize("how", ["split", "sizes", "tuple", "view", "slice", "narrow"])
def test_places_of_a_split_follow_and_other_things_of_the_same_number_do_not(how: str) -> None:
    pruned, pruner = prune(lambda: Stream(Gate(how)), some(2, 5, 6), (0.25, 0.75))
    assert sizes(pruner) == {"embed": 10, "blocks.0.both": 8}
    block = pruned.blocks[0]
    assert block.both.weight.shape == (4, 2) or block.both.out_features == 4
    if how in ("split", "view", "slice"):
        assert block.hidden_dim == 2
    if how == "sizes":
        assert block.split_sizes == [2, 2]
    if how in ("tuple", "narrow"):
        assert block.sizes == (2, 2)
    assert block.window == 8  # of tokens


class Counted(nn.Module):
    """Buckets, a seed and a number of classes that happen to be as many as there are heads or channels."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.buckets, self.seed, self.classes = 4, 4, 4, 12
        self.q, self.k, self.out = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 12)
        self.bias = nn.Embedding(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k = (layer(x).view(n, t, self.num_heads, -1).transpose(1, 2) for layer in (self.q, self.k))
        places = torch.arange(t, device=x.device)
        distance = (places[:, None] - places[None]).abs().clamp(max=self.buckets - 1)
        weights = (q @ k.mT + self.bias(distance).permute(2, 0, 1)).softmax(-1)
        return self.out((weights @ k).transpose(1, 2).flatten(2)) / self.classes + self.seed


def test_a_number_that_means_something_else_does_not_follow() -> None:
    pruned, pruner = prune(Counted, some(2, 6, 6), (0.5,))
    assert sizes(pruner) == {"q": 4} and changed(pruned, pruner) == {"num_heads": 2}
    assert pruned.bias.weight.shape == (4, 2)


# ------------------------------------------------------------------------------------------ one number for two sizes


class Computed(nn.Module):
    """Swin's attention: the code takes the width of what flows in for that of the heads together."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.out, self.norm = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, t, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return x + self.out(((q @ k.mT * 0.5).softmax(-1) @ v).transpose(1, 2).reshape(n, t, c))


class Feed(nn.Module):
    """Two layers with more between them."""

    def __init__(self, width: int = 12, hidden: int = 9) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


def test_a_width_that_the_code_takes_for_that_of_the_heads_shrinks_with_them() -> None:
    blocks = lambda: Stream(Computed(), Feed(), Computed(), width=12)
    pruned, pruner = prune(blocks, some(2, 5, 6), (0.34, 0.67))
    assert pruned.blocks[1].up.out_features == 3
    width = pruned.embed.out_features
    assert width < 12 and not any("follow" in frozen.reason for frozen in pruner.frozen)
    for block in (pruned.blocks[0], pruned.blocks[2]):
        assert block.qkv.out_features == 3 * width and block.out.in_features == width
        assert width % block.num_heads == 0


class Stages(nn.Module):
    """Two stages of other widths and numbers of heads, each block keeping its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.merge, self.head = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 4)
        self.stages = nn.ModuleList([
            nn.ModuleList([Attention("both", 8, 2, 4), Gate("split", 8, 6)]),
            nn.ModuleList([Attention("both", 12, 3, 4), Gate("split", 12, 9)]),
        ])  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        stages: Any = self.stages
        for number, stage in enumerate(stages):
            x = torch.tanh(self.merge(x)) if number else x
            for block in stage:
                x = block(x)
        return self.head(x)


def test_repeated_blocks_of_other_widths() -> None:
    pruned, pruner = prune(Stages, some(2, 5, 6), (0.34, 0.5))
    assert sizes(pruner) == {
        "embed": 8, "stages.0.0.q": 2, "stages.0.1.both": 6, "merge": 12, "stages.1.0.q": 3, "stages.1.1.both": 9,
    }  # fmt: skip
    first, second = pruned.stages
    assert (first[0].num_heads, first[1].hidden_dim, first[0].head_dim) == (1, 3, 4)
    assert second[0].num_heads in (1, 2) and second[1].hidden_dim in (4, 5)
    assert (pruned.merge.in_features, pruned.merge.out_features) == (4, 6)


# ----------------------------------------------------------------------------------------------------- what cannot


class Literal(nn.Module):
    """Heads of a literal number and size."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(x.shape[0], x.shape[1], 4, 3).transpose(1, 2)
        return x + self.out(((q @ q.mT).softmax(-1) @ q).transpose(1, 2).flatten(2))


def test_a_literal_number_freezes_what_it_measures_with_the_message_and_nothing_else() -> None:
    pruned, pruner = prune(lambda: Stream(Literal(), Feed(10), Attention("both")), some(2, 5, 6), (0.5,))
    assert sizes(pruner) == {"embed": 10, "blocks.1.up": 9, "blocks.2.q": 4}
    reasons = [f.reason for f in pruner.frozen if ("blocks.0.q.weight", 0) in f.parameters]
    assert len(reasons) == 1 and reasons[0].startswith("the forward does not follow a cut of it: ")
    assert "blocks.0" in reasons[0] and pruned.blocks[0].q.weight.shape == (12, 5)


def test_one_block_with_a_literal_among_its_likes_is_frozen_alone() -> None:
    class Sometimes(Feed):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.up(x))
            return x + self.down(y.reshape(-1, 9).view(y.shape) if self.up.in_features == 10 and self.literal else y)

    def build() -> nn.Module:
        blocks = [Sometimes(10), Sometimes(10), Sometimes(10)]
        for number, block in enumerate(blocks):
            block.literal = number == 1  # ty: ignore[invalid-assignment]
        return Stream(*blocks)

    pruned, pruner = prune(build, some(3, 3, 6), (0.34,))
    assert [block.up.out_features for block in pruned.blocks][1] == 9 or "embed" in sizes(pruner)
    assert {"blocks.0.up", "blocks.2.up"} <= set(sizes(pruner))


# ----------------------------------------------------------------------------------------------------- larger parts


class T5Attention(nn.Module):
    """T5: the first block makes a bias for every head, which all blocks add to theirs; the inner width is its own."""

    def __init__(self, has_bias: bool) -> None:
        super().__init__()
        self.n_heads, self.key_value_proj_dim = 4, 3
        self.inner_dim, self.relative_attention_num_buckets = 12, 4
        self.q, self.k, self.v = (nn.Linear(8, 12, bias=False) for _ in range(3))
        self.o = nn.Linear(12, 8, bias=False)
        self.relative_attention_bias = nn.Embedding(4, 4) if has_bias else None

    def forward(self, x: Tensor, bias: Any) -> tuple[Tensor, Tensor]:
        n, t, _ = x.shape
        q, k, v = (
            layer(x).view(n, -1, self.n_heads, self.key_value_proj_dim).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        if self.relative_attention_bias is not None:
            places = torch.arange(t, device=x.device)
            distance = (places[:, None] - places[None]).abs().clamp(max=self.relative_attention_num_buckets - 1)
            bias = self.relative_attention_bias(distance).permute(2, 0, 1).unsqueeze(0)
        y = (q @ k.transpose(3, 2) + bias).softmax(-1) @ v
        return x + self.o(y.transpose(1, 2).contiguous().view(n, -1, self.inner_dim)), bias


class T5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.blocks = nn.ModuleList(T5Attention(number == 0) for number in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x, bias = self.embed(x), None
        for block in self.blocks:
            x, bias = block(x, bias)
        return self.head(x)


def test_heads_that_share_a_bias_over_all_blocks_go_together() -> None:
    pruned, pruner = prune(T5, torch.arange(10).reshape(2, 5), (0.25, 0.5))
    assert sizes(pruner) == {"embed": 8, "blocks.0.q": 4}
    assert pruner.plan is not None
    assert len({pruner.plan.kept(f"blocks.{block}.o.weight", 1) for block in range(3)}) == 1
    assert pruned.blocks[0].relative_attention_bias.weight.shape == (4, 2)
    for block in pruned.blocks:
        assert (block.n_heads, block.key_value_proj_dim, block.inner_dim) == (2, 3, 6)
        assert block.relative_attention_num_buckets == 4


class GroupedQueries(nn.Module):
    """Llama's attention: queries in groups read a key head each; rotary tables as wide as a head."""

    cos: Tensor
    sin: Tensor

    def __init__(self, how: str, heads: int = 3, width: int = 10) -> None:
        super().__init__()
        self.how, self.num_heads, self.num_kv_heads, self.head_dim = how, 2 * heads, heads, 4
        self.num_key_value_groups = 2
        self.q, self.k, self.v = nn.Linear(width, 8 * heads), nn.Linear(width, 4 * heads), nn.Linear(width, 4 * heads)
        self.o = nn.Linear(8 * heads, width)
        angles = torch.outer(torch.arange(8.0), 1.0 / 100 ** torch.linspace(0, 1, 2)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def turn(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * self.cos[: x.shape[2]] + turned * self.sin[: x.shape[2]]

    def spread(self, x: Tensor) -> Tensor:
        """Each key head once for every query head that reads it."""
        if self.how == "expand":
            n, h, t, d = x.shape
            return x[:, :, None].expand(n, h, self.num_key_value_groups, t, d).reshape(n, -1, t, d)
        times = self.num_key_value_groups if self.how == "repeat" else self.num_heads // self.num_kv_heads
        return x.repeat_interleave(times, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.turn(self.q(x).view(n, t, self.num_heads, self.head_dim).transpose(1, 2))
        k = self.turn(self.k(x).view(n, t, self.num_kv_heads, self.head_dim).transpose(1, 2))
        v = self.v(x).view(n, t, self.num_kv_heads, self.head_dim).transpose(1, 2)
        if self.how == "flag":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            y = F.scaled_dot_product_attention(q, self.spread(k), self.spread(v), is_causal=True)
        return x + self.o(y.transpose(1, 2).reshape(n, t, self.num_heads * self.head_dim))


@pytest.mark.parametrize("heads", [2, 3, 4])
@pytest.mark.parametrize("how", ["flag", "expand", "repeat", "computed"])
def test_a_key_head_takes_its_queries_along_and_their_numbers_follow(how: str, heads: int) -> None:
    build = lambda: Stream(GroupedQueries(how, heads), GroupedQueries(how, heads))
    pruned, pruner = prune(build, some(2, 5, 6), (0.34, 1 - 1 / heads))
    assert sizes(pruner) == {"embed": 10, "blocks.0.q": heads, "blocks.1.q": heads}
    for block in pruned.blocks:
        assert (block.num_heads, block.num_kv_heads, block.head_dim, block.num_key_value_groups) == (2, 1, 4, 2)
        assert (block.q.out_features, block.k.out_features, block.cos.shape) == (8, 4, (8, 4))
    assert pruner.plan is not None
    kept = pruner.plan.kept("blocks.0.k.weight", 0)
    assert pruner.plan.kept("blocks.0.q.weight", 0) == tuple(range(2 * min(kept), 2 * min(kept) + 8))


# ------------------------------------------------------------------------------------------- nothing stays behind


def test_an_analysis_leaves_attributes_lists_and_caches_as_they_are() -> None:
    class Keeps(Stream):
        def __init__(self) -> None:
            super().__init__(Attention("list"), Gate("sizes"), Computed(10, 2))
            self.calls, self.sizes_seen, self.scale = 0, [], math.pi

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.sizes_seen.append(tuple(x.shape))
            return super().forward(x) * self.scale

    model, inputs = randomise(Keeps()), some(2, 5, 6)
    model(inputs)
    boxes: list[Any] = [model.blocks[0].shape, model.blocks[0].flat, model.blocks[1].split_sizes, model.sizes_seen]
    before, contents = attributes(model), [list(box) for box in boxes]
    for inplace in (False, True):
        pruner = StructuredPruner(copy.deepcopy(model) if inplace else model, inputs, RandomImportance(1), 0.5)
        pruner.prune()
        assert attributes(model) == before and [list(box) for box in boxes] == contents
    assert boxes[0] is model.blocks[0].shape and model.calls == 1


def test_a_pruned_model_is_analysed_and_pruned_again() -> None:
    model = randomise(Stream(Attention("BERT", heads=8), Gate("split", hidden=16), GroupedQueries("flag", 8)))
    inputs = some(2, 5, 6)
    once = StructuredPruner(model, inputs, RandomImportance(1), 0.5).prune()
    pruner = StructuredPruner(once, inputs, RandomImportance(2), 0.5)
    twice: Any = pruner.prune()
    assert pruner.plan is not None
    assert_equals_masked(once, twice, pruner.plan, inputs)
    assert (twice.blocks[0].all_head_size, twice.blocks[1].hidden_dim, twice.blocks[2].num_heads) == (6, 4, 4)
    assert ("blocks.1", "hidden_dim") in {(rule.module, rule.attribute) for rule in analyze_model(twice, inputs).rules}


def test_small_sizes_go_down_to_one_together() -> None:
    """With one head or one channel left, copies turn into views: another path, but the same model."""
    build = lambda: Stream(Attention("BERT", heads=2), Gate("split", hidden=4), GroupedQueries("flag", 2))
    pruned, pruner = prune(build, some(2, 5, 6), (0.5, 0.75))
    assert sizes(pruner) == {"embed": 10, "blocks.0.q": 2, "blocks.1.both": 4, "blocks.2.q": 2}
    assert (pruned.blocks[0].all_head_size, pruned.blocks[1].hidden_dim, pruned.blocks[2].num_kv_heads) == (3, 1, 1)


# ----------------------------------------------------------------------------------------------- sizes that coincide


class Padded(nn.Module):
    """A stem and two stages of one block, with the shortcut without parameters between them (option A)."""

    def __init__(self, *widths: int, zeros: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        blocks = [CifarBlock(*pair, stride=2) for pair in itertools.pairwise(widths)]
        if zeros is not None:
            blocks[-1].shortcut = PaddedShortcut(*zeros)
        self.stages = nn.ModuleList(blocks)
        self.head = nn.Linear(widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


class Chosen:
    """Scores of fixed units: {(group, size): those that go first}."""

    def __init__(self, first: dict[tuple[str, int], list[int]]) -> None:
        self.first = first

    def __call__(self, group: Any) -> Tensor:
        scores = torch.arange(1.0, group.size + 1)
        scores[self.first.get((group.name, group.size), [])] = 0.0
        return scores


IMAGE = some(1, 3, 8, 8)
ZEROS = ("zeros_before", "zeros_after")


@pytest.mark.parametrize("zeros", [(4, 4), (5, 3), (2, 6)])
def test_which_of_equal_sizes_an_attribute_counts_is_known_before_anything_is_chosen(zeros: tuple[int, int]) -> None:
    """There are as many zeros before as after: each unit alone takes only its own number along."""
    analysis = analyze_model(randomise(Padded(4, 8, 16, zeros=zeros)).eval(), IMAGE)
    for stage, counts in ((0, (2, 2)), (1, zeros)):
        group = analysis.coupling.group(f"stages.{stage}.conv2")
        for unit in range(group.size):
            side = int(unit >= counts[0])
            change = AttributeChange(f"stages.{stage}.shortcut", ZEROS[side], None, counts[side], counts[side] - 1)
            assert make_plan(analysis.coupling, {group.index: [unit]}, analysis.rules).attributes == (change,)


def test_a_rule_that_repeated_blocks_do_not_share_ties_nothing() -> None:
    """Zeros before in one stage and after in the other, of equal numbers: each block's own attribute follows."""
    coupling = couple_channels(trace_model(model := randomise(Padded(4, 8, 16, zeros=(5, 3))).eval(), IMAGE))
    fitting, groups = Fitting(model, IMAGE, coupling), coupling.groups
    index = {group.name: group.index for group in groups}
    fitting.fit(lambda _: {index["stages.0.conv2"]: [0], index["stages.1.conv2"]: [1]})
    fitting.fit(lambda _: {index["stages.0.conv2"]: [0], index["stages.1.conv2"]: [7]})
    assert coupling.groups is groups and not coupling.ties
    found = {(rule.module, rule.attribute): len(rule.labels) for rule in fitting.rules}
    stages = ("stages.0.shortcut", "stages.1.shortcut")
    assert found == {(stages[0], ZEROS[0]): 2, (stages[1], ZEROS[0]): 5, (stages[1], ZEROS[1]): 3}


def test_a_guess_among_equal_sizes_is_taken_back_not_tied() -> None:
    """As many go before as after: which number follows which is open until one of them shrinks alone."""
    model = randomise(Padded(4, 8, 16)).eval()
    coupling = couple_channels(trace_model(model, IMAGE))
    fitting, groups = Fitting(model, IMAGE, coupling), coupling.groups
    group = coupling.group("stages.1.conv2")
    for units in ([0, 7], [1], [6], [1, 2, 5]):
        fitting.fit(lambda _, units=units: {group.index: units})
        assert coupling.groups is groups and not coupling.ties
        before = sum(unit < 4 for unit in units)
        changed = {c.attribute: c.new for c in make_plan(coupling, {group.index: units}, fitting.rules).attributes}
        expected = dict(zip(ZEROS, (4 - before, 4 - len(units) + before), strict=True))
        assert changed == {name: new for name, new in expected.items() if new != 4}


def test_sizes_that_come_to_coincide_between_two_steps() -> None:
    """The numbers of zeros are equal after the first step only; the second cuts before in one stage, after in one."""
    model = randomise(Padded(4, 9, 18)).eval()  # zeros (2, 3) and (4, 5)
    first = {("stages.0.conv2", 5): [4], ("stages.1.conv2", 9): [0, 1]}
    second = {("stages.0.conv2", 4): [0], ("stages.1.conv2", 7): [5, 6]}
    pruner = StructuredPruner(model, IMAGE, Chosen({**first, **second}), 0.4, iterative_steps=2)
    pruned: Any = pruner.prune()
    assert pruner.plan is not None and pruner.verification is not None and pruner.verification.passed
    gone = {group.name: group.dropped for group in pruner.plan.groups}
    assert set(gone) == {group.name for group in pruner.analysis.groups}
    assert (gone["stages.0.conv2"], gone["stages.1.conv2"]) == ((0, 4), (0, 1, 7, 8))
    left = [(stage.shortcut.zeros_before, stage.shortcut.zeros_after) for stage in pruned.stages]
    assert left == [(1, 2), (2, 3)]
    assert_equals_masked(model, pruned, pruner.plan, IMAGE)


def test_the_last_zeros_go_too() -> None:
    """A number that comes down to 1 still follows to 0."""
    model = randomise(Padded(4, 8, 16, zeros=(1, 7))).eval()
    first = {("stages.1.conv2", 8): [0], ("stages.0.conv2", 4): [0], ("stages.0.conv2", 3): [0]}
    pruner = StructuredPruner(model, IMAGE, Chosen(first), 0.5, iterative_steps=2)
    pruned: Any = pruner.prune()
    assert pruner.plan is not None
    left = [(stage.shortcut.zeros_before, stage.shortcut.zeros_after) for stage in pruned.stages]
    assert left == [(0, 2), (0, 4)]
    assert_equals_masked(model, pruned, pruner.plan, IMAGE)


def blocks_of_attributes() -> nn.Module:
    return Stream(Attention("both", heads=3), Gate("split", hidden=6), GroupedQueries("flag", 4))


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([
        (lambda: Padded(4, 8, 16), (1, 3, 8, 8)), (lambda: Padded(4, 9, 16, zeros=(2, 5)), (1, 3, 8, 8)),
        (lambda: Padded(4, 8, 12, 16), (1, 3, 8, 8)), (blocks_of_attributes, (2, 5, 6)),
    ]),
    st.integers(0, 10**6), st.integers(2, 6), st.floats(0.1, 0.6), st.booleans(),
)  # fmt: skip
def test_steps_follow_each_other_whatever_goes(
    case: tuple[Callable[[], nn.Module], tuple[int, ...]], seed: int, steps: int, ratio: float, over_all: bool
) -> None:
    """Step by step, each proven in float64; the whole plan takes the original to the same model."""
    model, inputs = randomise(case[0]()).double().eval(), some(*case[1]).double()
    pruner = StructuredPruner(
        model, inputs, RandomImportance(seed), ratio, iterative_steps=steps, global_pruning=over_all
    )
    pruned = pruner.prune()
    assert pruner.plan is not None and pruner.verification is not None and pruner.verification.passed
    names = [group.name for group in pruner.plan.groups]
    assert len(names) == len(set(names)) == len(pruner.analysis.groups)
    again = slice_model(copy.deepcopy(model), pruner.plan)
    assert str(again) == str(pruned) and attributes(again) == attributes(pruned)
    states = zip(again.state_dict().items(), pruned.state_dict().items(), strict=True)
    assert all(name == other and torch.equal(ours, theirs) for (name, ours), (other, theirs) in states)
    assert_equals_masked(model, pruned, pruner.plan, inputs)
