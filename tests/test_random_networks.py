"""Random small networks out of the supported operations: every plan on them passes both oracles, or says what it froze.

A network is a list of steps, each of which takes the running image or token sequence to another one.
``CLEANAI_EXAMPLES`` sets how many networks of each kind are built (default 60, under a minute on one core).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, event, given, note, settings
from nets import HandRmsNorm, conv, randomise
from oracle import assert_equals_masked, assert_removed, assert_runs
from torch import Tensor, nn
from torch.nn import functional as F

from cleanai import RandomImportance, StructuredPruner

EXAMPLES = int(os.environ.get("CLEANAI_EXAMPLES", "60"))
SIZE, TOKENS = 4, 5
profile = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=False
)


# ------------------------------------------------------------------------------------------------ steps on images


class Residual(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.a, self.norm, self.b = conv(width, hidden), nn.BatchNorm2d(hidden), conv(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.tanh(self.norm(self.a(x))))


class Dense(nn.Module):
    def __init__(self, width: int, grown: int) -> None:
        super().__init__()
        self.a = conv(width, grown)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.sigmoid(self.a(x))], 1)


class Chunked(nn.Module):
    """Pieces convolved one by one; sizes computed from the input."""

    def __init__(self, width: int, pieces: int, swap: bool) -> None:
        super().__init__()
        self.convs, self.swap = nn.ModuleList(conv(width // pieces, width // pieces) for _ in range(pieces)), swap

    def forward(self, x: Tensor) -> Tensor:
        parts = [layer(part) for layer, part in zip(self.convs, x.chunk(len(self.convs), 1), strict=True)]
        return torch.cat(parts[::-1] if self.swap else parts, 1)


class Halves(nn.Module):
    """Two slices at a computed place, one gating the other."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        return x[:, :half] * torch.sigmoid(x[:, half:])


class Split(nn.Module):
    """Uneven pieces whose sizes are kept in an attribute; the second is convolved and joined again."""

    def __init__(self, width: int, first: int) -> None:
        super().__init__()
        self.sections = [first, width - first]
        self.a = conv(width - first, width - first, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split(self.sections, 1)
        return torch.cat([a, self.a(b)], 1)


class Shuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Mirror(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.flip(1)


class Rolled(nn.Module):
    def __init__(self, by: int) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5 + x.roll(self.by, 1)


class Interleave(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = conv(width, width, 1), conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a(x), self.b(x)], 2).flatten(1, 2)


class Excite(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.a, self.b = conv(width, hidden, 1), conv(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.b(F.silu(self.a(x.mean((2, 3), keepdim=True)))))


class Shortcut(nn.Module):
    """Zero channels added before and after, next to a convolution that widens."""

    def __init__(self, width: int, before: int, after: int) -> None:
        super().__init__()
        self.pads = (0, 0, 0, 0, before, after)
        self.a = conv(width, width + before + after)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + F.pad(x, self.pads)


class Scale(nn.Module):
    """A bare parameter for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(width, 1, 1)), nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma + self.beta


Step = tuple[nn.Module, int]


def divisors(width: int) -> list[int]:
    """The divisors of a width from 2 on, the width itself included."""
    return [d for d in range(2, width + 1) if width % d == 0]


def draw_image_step(draw: st.DrawFn, width: int) -> Step:
    """A step on images of some width, and the width after it."""
    other = draw(st.integers(3, 9))
    makers: list[Callable[[], Step]] = [
        lambda: (conv(width, other), other),
        lambda: (nn.Sequential(conv(width, other, 1), nn.BatchNorm2d(other), nn.SiLU()), other),
        lambda: (Residual(width, other), width),
        lambda: (Dense(width, other), width + other),
        lambda: (Excite(width, other), width),
        lambda: (Mirror(), width),
        lambda: (Rolled(draw(st.integers(-2, width))), width),
        lambda: (Scale(width), width),
        lambda: (Interleave(width), 2 * width),
        lambda: (Shortcut(width, draw(st.integers(0, 2)), draw(st.integers(0, 2))), -1),
        lambda: (conv(width, width, groups=width), width),
        lambda: (conv(width, 2 * width, groups=width), 2 * width),
        lambda: (nn.ConvTranspose2d(width, other, 3, padding=1), other),
        lambda: (nn.Sequential(nn.Tanh(), nn.AvgPool2d(3, 1, 1)), width),
        lambda: (nn.PReLU(width), width),
        lambda: (nn.GroupNorm(1, width), width),
        lambda: (nn.BatchNorm2d(width, affine=False), width),
        lambda: (Split(width, draw(st.integers(1, width - 1))), width),
    ]
    for groups in divisors(width):
        makers += [
            lambda g=groups: (Chunked(width, g, draw(st.booleans())), width),
            lambda g=groups: (Shuffle(g), width),
            lambda g=groups: (nn.GroupNorm(g, width), width),
            lambda g=groups: (conv(width, g * draw(st.integers(1, 3)), groups=g), -1),
            lambda g=groups: (nn.ConvTranspose2d(width, g * draw(st.integers(1, 3)), 1, groups=g), -1),
        ]
    if width % 2 == 0:
        makers.append(lambda: (Halves(), width // 2))
    step, after = draw(st.sampled_from(makers))()
    if after < 0:
        after = step(torch.zeros(1, width, SIZE, SIZE)).shape[1]
    return step, after


@st.composite
def image_networks(draw: st.DrawFn) -> nn.Module:
    """A stem, a few steps, and one of several heads."""
    width = draw(st.integers(3, 8))
    steps: list[nn.Module] = [conv(2, width)]
    for _ in range(draw(st.integers(1, 5))):
        step, width = draw_image_step(draw, width)
        steps.append(step)
        if width > 24:
            break
    flat: list[nn.Module] = [nn.Flatten(), nn.Linear(width * SIZE * SIZE, 7), nn.Tanh(), nn.Linear(7, 3)]
    heads = [
        [conv(width, 3)],
        [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)],
        flat,
        [ChannelsLast(), *flat],
    ]
    return nn.Sequential(*steps, *draw(st.sampled_from(heads)))


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


# ------------------------------------------------------------------------------------------------ steps on tokens


class Attention(nn.Module):
    """Attention with every choice drawn: packed or separate, written out or fused, head sizes kept or computed."""

    def __init__(self, width: int, heads: int, dim: int, packed: bool, fused: bool, kept: bool) -> None:
        super().__init__()
        self.num_heads, self.packed, self.fused = heads, packed, fused
        self.head_dim = dim if kept else -1
        self.scale = dim**-0.5
        if packed:
            self.qkv = nn.Linear(width, 3 * heads * dim)
        else:
            self.q, self.k, self.v = (nn.Linear(width, heads * dim, bias=i != 1) for i in range(3))
        self.proj = nn.Linear(heads * dim, width)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        n, t, _ = x.shape
        if self.packed:
            return self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        layers = (self.q, self.k, self.v)
        return tuple(f(x).view(n, t, self.num_heads, self.head_dim).transpose(1, 2) for f in layers)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            mixed = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        return x + self.proj(mixed.transpose(1, 2).flatten(2))


class Normed(nn.Module):
    """A step on normalised tokens, added back."""

    def __init__(self, norm: nn.Module, *steps: nn.Module) -> None:
        super().__init__()
        self.norm, self.steps = norm, nn.Sequential(*steps)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.steps(self.norm(x))


class Gated(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.both(x).chunk(2, -1)
        return self.down(F.silu(gate) * value)


class Mixed(nn.Module):
    """Two layers over the tokens."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(TOKENS, hidden), nn.Linear(hidden, TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x.transpose(1, 2)))).transpose(1, 2)


class Rotary(nn.Module):
    """Halves of the width turned against each other by tables."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("cos", torch.randn(TOKENS, width).cos())
        self.register_buffer("sin", torch.randn(TOKENS, width).sin())

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat([-b, a], -1) * self.sin


class TokenNet(nn.Module):
    def __init__(self, embed: nn.Module, steps: list[nn.Module], head: nn.Module, pooled: bool) -> None:
        super().__init__()
        self.embed, self.steps, self.head, self.pooled = embed, nn.Sequential(*steps), head, pooled

    def forward(self, x: Tensor) -> Tensor:
        x = self.steps(self.embed(x))
        return self.head(x.mean(1) if self.pooled else x)


@st.composite
def token_networks(draw: st.DrawFn) -> nn.Module:
    """An embedding, a few blocks, and a head."""
    width = 2 * draw(st.integers(2, 5))
    norms: list[Callable[[], nn.Module]] = [
        lambda: nn.LayerNorm(width),
        lambda: nn.RMSNorm(width),
        lambda: HandRmsNorm(width),
        nn.Identity,
    ]
    steps: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        hidden = draw(st.integers(3, 9))
        norm = draw(st.sampled_from(norms))
        makers: list[Callable[[], nn.Module]] = [
            lambda h=hidden, n=norm: Normed(n(), nn.Linear(width, h), nn.GELU(), nn.Linear(h, width)),
            lambda h=hidden, n=norm: Normed(n(), Gated(width, h)),
            lambda h=hidden, n=norm: Normed(n(), Mixed(h)),
            lambda: Rotary(width),
            lambda n=norm: Normed(
                n(),
                Attention(
                    width, draw(st.integers(2, 4)), draw(st.integers(2, 4)), draw(st.booleans()), draw(st.booleans()),
                    draw(st.booleans()),
                ),
            ),
            lambda n=norm: Normed(n(), _multihead(width, draw(st.sampled_from(divisors(width))))),
        ]  # fmt: skip
        steps.append(draw(st.sampled_from(makers))())
    return TokenNet(nn.Linear(4, width), steps, nn.Linear(width, 3), draw(st.booleans()))


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


def _multihead(width: int, heads: int) -> nn.Module:
    return _SelfAttention(width, heads)


# --------------------------------------------------------------------------------------------------- the property


def assert_prunes_right(model: nn.Module, make_inputs: Callable[[int], Any], ratio: float, over_all: bool) -> None:
    """Pruned and equal to the masked original by both oracles; what is not pruned has a reason."""
    note(str(model))
    randomise(model).eval()
    torch.manual_seed(0)
    pruner = StructuredPruner(model, make_inputs(2), RandomImportance(), ratio, global_pruning=over_all)
    pruned = pruner.prune()
    assert pruner.plan is not None and pruner.verification is not None
    event(f"pruned {len([g for g in pruner.plan.groups if g.dropped]) > 0}")
    assert pruner.verification.passed
    for batch in (1, 2):
        assert_equals_masked(model, pruned, pruner.plan, make_inputs(batch))
    assert_removed(model, pruned, pruner.plan)
    assert_runs(pruned, make_inputs(1))
    assert_runs(pruned.train(), make_inputs(2))
    known = {(m.parameter, m.dim) for g in pruner.groups for m in g.members}
    known |= {place for frozen in pruner.frozen for place in frozen.parameters}
    assert all(frozen.reason for frozen in pruner.frozen)
    for name, parameter in model.named_parameters():
        assert parameter.shape[0] == 1 or (name, 0) in known, f"{name} is in no group and has no reason"


ratios = st.sampled_from([0.2, 0.3, 0.5, 0.65, 0.9])


@profile
@given(image_networks(), ratios, st.booleans())
def test_random_image_networks(model: nn.Module, ratio: float, over_all: bool) -> None:
    assert_prunes_right(model, lambda batch: torch.randn(batch, 2, SIZE, SIZE), ratio, over_all)


@profile
@given(token_networks(), ratios, st.booleans())
def test_random_token_networks(model: nn.Module, ratio: float, over_all: bool) -> None:
    assert_prunes_right(model, lambda batch: torch.randn(batch, TOKENS, 4), ratio, over_all)
