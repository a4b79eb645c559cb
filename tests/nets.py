"""One tiny network per hard case, readable at a glance, shared by all tests.

A `Case` is a network with inputs that fit it; `CASES` holds all of them by name. ``kept_like`` tells the tests' own
oracle (`oracle.py`) which tensor a module's channels follow, where the module computes a statistic over them and has no
weight of its own to tell.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Inputs = Callable[[int], Any]


@dataclass(frozen=True)
class Case:
    """A network and its inputs: ``inputs(batch)``; ``prunes`` is False where every channel has a reason to stay."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    prunes: bool = True
    kept_like: dict[str, tuple[str, int]] = field(default_factory=dict)

    def make(self, seed: int = 0) -> Any:
        """The network with random parameters and statistics, in evaluation mode."""
        torch.manual_seed(seed)
        return randomise(self.build(), seed).eval()


CASES: dict[str, Case] = {}


def case(inputs: Inputs, *, prunes: bool = True, kept_like: dict[str, tuple[str, int]] | None = None) -> Callable:
    """Registers a network (a class or a function that builds one) under its name in snake case."""

    def register(build: Any) -> Any:
        name = "".join("_" + c.lower() if c.isupper() else c for c in build.__name__).lstrip("_")
        assert name not in CASES, f"two networks are named {name}"
        CASES[name] = Case(name, build, inputs, prunes, kept_like or {})
        return build

    return register


def randomise(model: nn.Module, seed: int = 0) -> Any:
    """Random values for every parameter and every running statistic: what is left at 0 or 1 hides wrong cuts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.25)
            else:
                values = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.copy_(values * max(1, parameter[0].numel()) ** -0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.3)
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model


def image(channels: int = 3, size: int = 8) -> Inputs:
    """Random images."""
    return lambda batch: torch.randn(batch, channels, size, size)


def tokens(count: int = 5, width: int = 6) -> Inputs:
    """Random token vectors."""
    return lambda batch: torch.randn(batch, count, width)


def vectors(width: int = 6) -> Inputs:
    """Random vectors."""
    return lambda batch: torch.randn(batch, width)


def words(count: int = 5, vocabulary: int = 11) -> Inputs:
    """Token numbers."""
    return lambda batch: torch.arange(batch * count).reshape(batch, count) % vocabulary


class OverKept(nn.Module):
    """A function of all channels together (along ``dim``): a module, so that the oracle can give it the kept ones."""

    def __init__(self, function: Callable[..., Tensor], dim: int = 1) -> None:
        super().__init__()
        self.function, self.dim = function, dim

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


# ------------------------------------------------------------------------------------------------- plain and joined


@case(image())
class PlainCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 8), nn.BatchNorm2d(8)
        self.conv2 = conv(8, 12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


@case(image())
class NoBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, 8, bias=False), conv(8, 6, bias=False)
        self.fc = nn.Linear(6, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.conv2(F.silu(self.conv1(x)))).mean((2, 3)))


@case(image())
class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.conv1, self.bn1 = conv(8, 12), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = conv(12, 8), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


@case(image())
class OptionA(nn.Module):
    """He et al.'s parameter-free shortcut: every second pixel, padded with zero channels on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.conv = conv(8, 16, stride=2)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))
        return self.fc(x.mean((2, 3)))


@case(image())
class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, 4), conv(4, 6)
        self.bn, self.conv3 = nn.BatchNorm2d(10), conv(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.conv1(x))
        b = F.relu(self.conv2(a))
        return self.conv3(F.relu(self.bn(torch.cat([a, b], 1))))


@case(image())
class ConcatGroupNorm(nn.Module):
    """The groups of the norm do not end where the pieces of the concatenation do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, 6), conv(3, 10)
        self.norm, self.conv3 = nn.GroupNorm(4, 16), conv(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.norm(torch.cat([self.conv1(x), self.conv2(x)], 1)))


@case(image())
class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = conv(3, 8), conv(8, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout2d(F.relu(self.conv1(x)), 0.5, self.training)
        return self.fc(F.dropout(self.conv2(x).mean((2, 3)), 0.5, self.training))


@case(image())
class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = conv(3, 8), conv(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).relu_()
        y = self.conv2(x)
        y += x
        y.mul_(0.5).add_(1.0)
        return self.fc(F.hardswish(y, inplace=True).mean((2, 3)))


# --------------------------------------------------------------------------------------------- cut, picked and moved


class _TwoBranches(nn.Module):
    """One layer whose 12 channels are cut into pieces that two other layers read; one more layer before it."""

    first = 6

    def __init__(self) -> None:
        super().__init__()
        self.entry, self.stem = conv(3, 7), conv(7, 12)
        self.left, self.right = conv(self.first, 4), conv(12 - self.first, 4)

    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cut(F.relu(self.stem(F.relu(self.entry(x)))))
        return self.left(a) + self.right(b)


@case(image())
class SplitLiteral(_TwoBranches):
    first = 4

    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, [4, 8], 1)


@case(image())
class SplitAttribute(_TwoBranches):
    first = 4

    def __init__(self) -> None:
        super().__init__()
        self.split = [4, 8]

    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, self.split, 1)


@case(image())
class Chunk(_TwoBranches):
    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.chunk(2, 1)


@case(image())
class SliceLiteral(_TwoBranches):
    first = 4

    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        return x[:, :4], x[:, 4:]


@case(image())
class SliceComputed(_TwoBranches):
    first = 4

    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        third = x.shape[1] // 3
        return x[:, :third], x[:, third:]


@case(image())
class SliceAttribute(_TwoBranches):
    first = 4

    def __init__(self) -> None:
        super().__init__()
        self.cut_at = 4

    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        return x[:, : self.cut_at], x[:, self.cut_at :]


@case(image())
class UnflattenUnbind(_TwoBranches):
    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.unflatten(1, (2, -1)).unbind(1)


@case(image())
class StridedStack(_TwoBranches):
    """Even and odd channels, told apart by a stride."""

    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        pair = torch.stack([x[:, ::2], x[:, 1::2]], 1)
        return pair[:, 0], pair[:, 1]


@case(image())
class IndexTensor(_TwoBranches):
    """Channels picked by a tensor of positions: what it points to must stay."""

    first = 4
    picks: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("picks", torch.tensor([0, 3, 6, 9]))

    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        return x[:, self.picks], x[:, 4:]


class _Moved(nn.Module):
    """Channels moved about between two layers, added to unmoved ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv(3, 12), conv(3, 12), conv(12, 5)

    def move(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.move(F.relu(self.conv1(x))) * self.conv2(x))


@case(image())
class Shuffle(_Moved):
    """ShuffleNet's channel shuffle: (groups, channels) transposed."""

    def move(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)


@case(image())
class Roll(_Moved):
    def move(self, x: Tensor) -> Tensor:
        return x.roll(5, 1)


@case(image())
class Flip(_Moved):
    def move(self, x: Tensor) -> Tensor:
        return x.flip(1)


@case(image())
class Interleave(_Moved):
    """Two halves stacked channel by channel."""

    def move(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.stack([a, b], 2).flatten(1, 2)


@case(image())
class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv(3, 6), conv(3, 6), conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.conv1(x), self.conv2(x)])
        return self.conv3(both.sum(0))


@case(image())
class FlattenNchw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = conv(3, 6, stride=4), nn.Linear(24, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(F.relu(self.conv(x)).flatten(1))))


@case(image())
class FlattenNhwc(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = conv(3, 6, stride=4), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).permute(0, 2, 3, 1).flatten(1))


@case(image())
class ViewLiteral(nn.Module):
    """``view(-1, 24)`` would silently make another batch size of fewer channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = conv(3, 6, stride=4), nn.Linear(24, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.conv(x).view(-1, 24))))


@case(image())
class ViewAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = 24
        self.conv, self.fc1, self.fc2 = conv(3, 6, stride=4), nn.Linear(24, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.conv(x).view(-1, self.features))))


@case(image())
class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1, self.conv2 = conv(3, 6), conv(6, 16), conv(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.pixel_shuffle(self.conv1(F.relu(self.conv0(x))), 2))


@case(vectors())
class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.weight = nn.Parameter(torch.empty(8, 10))
        self.fc2 = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(torch.einsum("bi,io->bo", F.relu(self.fc1(x)), self.weight)))


@case(image())
class SliceWrite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1, self.conv2 = conv(3, 6), conv(6, 8), conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(self.conv0(x)))
        x[:, :2] = x[:, 2:4] * 2.0
        return self.conv2(x)


@case(image())
class ShuffleUnit(nn.Module):
    """ShuffleNet's unit: half of the channels pass, half are convolved, then all are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.point, self.depth = conv(3, 12), conv(6, 6, 1), conv(6, 6, groups=6)
        self.bn, self.head = nn.BatchNorm2d(6), conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        x = torch.cat([a, F.relu(self.bn(self.depth(self.point(b))))], 1)
        n, c, h, w = x.shape
        return self.head(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


@case(image())
class Res2(nn.Module):
    """Res2Net's hierarchy: each piece is added to the next before it is convolved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 12), conv(12, 5)
        self.convs = nn.ModuleList([conv(4, 4), conv(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        pieces = list(self.stem(x).chunk(3, 1))
        for index, layer in enumerate(self.convs):
            pieces[index + 1] = F.relu(layer(pieces[index + 1] + pieces[index]))
        return self.head(torch.cat(pieces, 1))


@case(image())
class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.up = conv(3, 6), conv(6, 10, stride=2), nn.ConvTranspose2d(10, 8, 2, 2)
        self.join, self.head = conv(14, 7), conv(7, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down1(x))
        x = F.relu(self.up(F.relu(self.down2(skip))))
        return self.head(F.relu(self.join(torch.cat([x, skip], 1))))


@case(tokens())
class GatedMlp(nn.Module):
    """SwiGLU: one layer makes the gate and the value; the residual stream has a scale for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.both, self.down, self.head = (
            nn.Linear(6, 8), nn.Linear(8, 20), nn.Linear(10, 8), nn.Linear(8, 4),
        )  # fmt: skip
        self.scale = nn.Parameter(torch.empty(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        gate, value = self.both(x).chunk(2, -1)
        return self.head(x + self.scale * self.down(F.silu(gate) * value))


# -------------------------------------------------------------------------------------------------- other kernels


@case(image())
class GroupedConcat(nn.Module):
    """The groups of a convolution do not end where the pieces of the concatenation do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = conv(3, 4), conv(3, 8), conv(12, 6, groups=2), conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv4(F.relu(self.conv3(F.relu(torch.cat([self.conv1(x), self.conv2(x)], 1)))))


@case(image())
class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth = conv(3, 8, 1), conv(8, 8, groups=8)
        self.bn, self.project = nn.BatchNorm2d(8), conv(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.relu6(self.bn(self.depth(F.relu6(self.expand(x))))))


@case(image())
class DepthMultiplier(nn.Module):
    """Three output channels for each input channel."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth, self.project = conv(3, 4, 1), conv(4, 12, groups=4), conv(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.relu(self.depth(F.relu(self.expand(x)))))


@case(image())
class Grouped(nn.Module):
    """ResNeXt's bottleneck: what is left of each group must be equally many, not the same ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv(3, 12, 1), conv(12, 18, groups=3), conv(18, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))


@case(image())
class GroupedTransposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.up = conv(3, 12), nn.ConvTranspose2d(12, 8, 2, 2, groups=4)
        self.conv2 = conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.up(F.relu(self.conv1(x)))))


@case(image())
class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.up = conv(3, 8), nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1)
        self.bn, self.conv2 = nn.BatchNorm2d(6), conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.bn(self.up(F.relu(self.conv1(x))))))


@case(image(1))
class OneChannel(nn.Module):
    """A convolution on one channel is not a depthwise one: its eight output channels are free."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(1, 8), conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(x)))


@case(image())
class SizeOne(nn.Module):
    """A bottleneck of one channel, a gate of one channel, and a squeezed dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.narrow, self.widen, self.fc = conv(3, 8), conv(8, 1), conv(1, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = self.widen(self.narrow(x)) * torch.sigmoid(self.narrow(x))
        return self.fc(x.mean((2, 3))).squeeze(1)


@case(lambda batch: torch.randn(batch, 3, 16))
def conv1d() -> nn.Module:
    layers = [nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 6, 3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(30, 4))


@case(lambda batch: torch.randn(batch, 2, 4, 4, 4))
def conv3d() -> nn.Module:
    layers = [nn.Conv3d(2, 6, 3, padding=1), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(6, 4, 1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32, 4))


@case(image())
def upsample() -> nn.Module:
    layers = [nn.Upsample(scale_factor=2, mode="bilinear"), nn.ReflectionPad2d(1), nn.Upsample(scale_factor=0.5)]
    return nn.Sequential(conv(3, 8), *layers, conv(8, 5))


# ------------------------------------------------------------------------------------------------ broadcasting


@case(image())
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.squeeze, self.excite, self.conv2 = conv(3, 8), nn.Linear(8, 4), nn.Linear(4, 8), conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return self.conv2(x * gate[:, :, None, None])


@case(image(), kept_like={"mean": ("conv1.weight", 0)})
class SpatialAttention(nn.Module):
    """CBAM's spatial gate: the mean over the channels, back onto all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.gate, self.conv2 = conv(3, 8), conv(1, 1), conv(8, 5)
        self.mean = OverKept(lambda x: x.mean(1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        return self.conv2(x * torch.sigmoid(self.gate(self.mean(x))))


@case(image())
class Expand(nn.Module):
    """One number for each image, expanded over channels and positions; a bare scale for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.gate, self.conv2 = conv(3, 8), nn.Linear(8, 1), conv(8, 5)
        self.scale = nn.Parameter(torch.empty(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        gate = torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        return self.conv2(x * self.scale * gate.expand_as(x))


@case(tokens())
class ClassToken(nn.Module):
    """A learned token expanded over the batch, position embeddings, and only the first token read."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.token = nn.Parameter(torch.empty(1, 1, 8))
        self.positions = nn.Parameter(torch.empty(1, 6, 8))
        self.mix = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1) + self.positions
        return self.head(F.gelu(self.mix(x.transpose(1, 2)).transpose(1, 2))[:, 0])


@case(image(), kept_like={"softmax": ("conv1.weight", 0)})
class SoftmaxChannels(nn.Module):
    """A softmax over channels: over those that are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1, self.conv2 = conv(3, 6), conv(6, 8), conv(8, 5)
        self.softmax = OverKept(lambda x: x.softmax(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.softmax(self.conv1(F.relu(self.conv0(x)))))


# --------------------------------------------------------------------------------------------------------- norms


@case(tokens())
class LayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.fc1, self.fc2 = (
            nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8),
        )  # fmt: skip
        self.last, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.fc2(F.gelu(self.fc1(self.norm(x))))
        return self.head(self.last(x))


@case(tokens(), kept_like={"norm": ("embed.weight", 0)})
class LayerNormPlain(nn.Module):
    """Without weights, the size to normalise over is only in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(6, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(x)))


@case(image())
class GroupNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(3, 12), nn.GroupNorm(3, 12)
        self.conv2, self.norm2 = conv(12, 8), nn.GroupNorm(1, 8)
        self.conv3 = conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))))


@case(image())
class InstanceNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1, self.norm, self.conv2 = conv(3, 6), conv(6, 8), nn.InstanceNorm2d(8), conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.norm(self.conv1(F.relu(self.conv0(x))))))


@case(image())
class InstanceNormStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1, self.conv2 = conv(3, 6), conv(6, 8), conv(8, 5)
        self.norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.norm(self.conv1(F.relu(self.conv0(x))))))


class HandRmsNorm(nn.Module):
    """LLaMA's norm, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


@case(tokens())
class RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hand, self.fc = nn.Linear(6, 8), HandRmsNorm(8), nn.Linear(8, 10)
        self.norm, self.head = nn.RMSNorm(10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.fc(self.hand(self.embed(x)))))


@case(image())
class BatchNormPlain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn, self.conv2 = conv(3, 8), nn.BatchNorm2d(8, affine=False), conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.bn(self.conv1(x))))


@case(image())
def prelu() -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.PReLU(8), conv(8, 6), nn.PReLU(), conv(6, 5))


# --------------------------------------------------------------------------------------- parameters held in other ways


@case(vectors())
class TiedLinears(nn.Module):
    """An autoencoder whose decoder is the transposed encoder, and two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.fc2.weight = self.fc1.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc2(F.relu(self.fc1(F.relu(self.encode(x))))))
        return F.linear(x, self.encode.weight.t())


@case(words())
class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc1, self.fc2 = nn.Embedding(11, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.fc2(F.relu(self.fc1(x))))


@case(words())
class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions, self.fc, self.head = (
            nn.Embedding(11, 8), nn.Embedding(5, 8), nn.Linear(8, 6), nn.Linear(6, 4),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        return self.head(F.relu(self.fc(self.words(x) + self.positions(places))))


@case(image())
class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.fc = conv(3, 8), conv(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.shared(F.relu(self.shared(F.relu(self.stem(x))))))
        return self.fc(x.mean((2, 3)))


@case(image())
class BareParameters(nn.Module):
    """Functional layers on parameters that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.empty(8, 3, 3, 3)), nn.Parameter(torch.empty(8))
        self.hidden = nn.ParameterList([nn.Parameter(torch.empty(6, 8)), nn.Parameter(torch.empty(6))])
        self.readout = nn.ParameterDict({"weight": nn.Parameter(torch.empty(6, 5))})

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.kernel, self.shift, padding=1)).mean((2, 3))
        return F.relu(F.linear(x, *self.hidden)) @ self.readout["weight"]


@case(vectors())
class PlainTensors(nn.Module):
    """Tensors kept as plain attributes: neither parameters nor buffers, but they must shrink too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)
        self.scale = torch.linspace(0.5, 2.0, 8)
        self.register_buffer("shift", torch.linspace(-1.0, 1.0, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x) * self.scale + self.shift))


@case(vectors())
def weight_norm() -> nn.Module:
    wrap = nn.utils.parametrizations.weight_norm
    layers = [nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 10), nn.ReLU(), wrap(nn.Linear(10, 8)), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4))


@case(vectors())
def spectral_norm() -> nn.Module:
    wrap = nn.utils.parametrizations.spectral_norm
    layers = [nn.Linear(6, 10), nn.ReLU(), wrap(nn.Linear(10, 8)), nn.ReLU(), nn.Linear(8, 7), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(7, 4))


@case(image())
def frozen_parameters() -> nn.Module:
    return PlainCnn().requires_grad_(False)


@case(image())
class Unused(nn.Module):
    """A layer and a parameter that forward never reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.spare = conv(3, 8), conv(8, 5), conv(8, 8)
        self.nothing = nn.Parameter(torch.empty(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(x)))


# ------------------------------------------------------------------------------------------------------ attention


@case(tokens(width=12))
class AttentionMatmul(nn.Module):
    """timm's attention without the fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 3, 4
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, -1))


@case(tokens(width=12))
class AttentionSdpa(nn.Module):
    """The same with the fused kernel, which computes the scale from the head dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 3, 4
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))


@case(tokens(width=12))
class AttentionIndex(nn.Module):
    """``qkv[0]`` rather than unbind, the head dimension computed, tokens embedded before."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.embed, self.qkv, self.proj = nn.Linear(12, 8), nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        qkv = self.qkv(self.embed(x)).reshape(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        return self.proj(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2))


@case(tokens(width=12))
class AttentionChunk(nn.Module):
    """One packed projection cut into thirds; heads of a literal size; two kinds of masks."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        weights = (q @ k.mT / 2.0).masked_fill(hidden, float("-inf")).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


@case(tokens(width=12))
class AttentionSeparate(nn.Module):
    """Separate projections; values wider than queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.q, self.k, self.v, self.out = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(12, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, -1))


class _GroupedQuery(nn.Module):
    """Four query heads read two key and value heads."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = 4, 2, 6
        self.q, self.out = nn.Linear(12, 24), nn.Linear(24, 5)
        self.k, self.v = nn.Linear(12, 12), nn.Linear(12, 12)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k(x).view(n, t, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v(x).view(n, t, self.num_kv_heads, self.head_dim).transpose(1, 2)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        return self.out(self.attend(*self.project(x)).transpose(1, 2).reshape(n, t, -1))


@case(tokens(width=12))
class GqaFlag(_GroupedQuery):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


@case(tokens(width=12))
class GqaRepeat(_GroupedQuery):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (each.repeat_interleave(2, dim=1) for each in (k, v))
        return F.scaled_dot_product_attention(q, k, v)


@case(tokens(width=12))
class GqaExpand(_GroupedQuery):
    """LLaMA's repeat_kv."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, h, t, d = k.shape
        k, v = (each[:, :, None].expand(n, h, 2, t, d).reshape(n, h * 2, t, d) for each in (k, v))
        return F.scaled_dot_product_attention(q, k, v)


@case(tokens(width=12))
class GqaRotary(_GroupedQuery):
    """Rotary positions: tables over the head dimension, whose halves are turned against each other."""

    cos: Tensor
    sin: Tensor

    def __init__(self) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.3, 0.1]))
        self.register_buffer("cos", angles.cos().repeat(1, 2))
        self.register_buffer("sin", angles.sin().repeat(1, 2))

    def turn(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat([-b, a], -1) * self.sin

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (each.repeat_interleave(2, dim=1) for each in (self.turn(k), v))
        return F.scaled_dot_product_attention(self.turn(q), k, v)


@case(tokens(width=12))
class MultiheadAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(12, 8), nn.MultiheadAttention(8, 4, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


@case(tokens(width=12))
class MultiheadOddWidths(nn.Module):
    """Keys and values of other widths, sequence first, learned extra key and value, weights computed."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(12, 8), nn.Linear(12, 6), nn.Linear(12, 10)
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=10, add_bias_kv=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return self.head(self.attention(self.q(x), self.k(x), self.v(x))[0])


@case(tokens(width=12))
class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(12, 8), nn.Linear(8, 5)
        self.layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


@case(tokens(width=12))
class Mixer(nn.Module):
    """Tokens mixed by a layer over the transposed tokens: their number is given by the input and stays."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(12, 8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.token1, self.token2 = nn.Linear(5, 7), nn.Linear(7, 5)
        self.channel1, self.channel2, self.head = nn.Linear(8, 10), nn.Linear(10, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.token2(F.gelu(self.token1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.channel2(F.gelu(self.channel1(self.norm2(x))))
        return self.head(x.mean(1))


# ---------------------------------------------------------------------------------------------- inputs and outputs


@case(lambda batch: (torch.randn(batch, 6), torch.randn(batch, 4)))
class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.join = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.join(F.relu(self.left(x)) * torch.tanh(self.right(y)))


@case(lambda batch: {"x": torch.randn(batch, 6), "ids": torch.arange(batch) % 7})
class DictInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.embed, self.join = nn.Linear(6, 8), nn.Embedding(7, 4), nn.Linear(12, 5)

    def forward(self, *, x: Tensor, ids: Tensor) -> dict[str, Any]:
        return {"logits": self.join(torch.cat([F.relu(self.fc(x)), self.embed(ids)], 1)), "ids": ids, "none": None}


Pair = namedtuple("Pair", ["logits", "features"])


@case(vectors())
class NamedOutputs(nn.Module):
    """The hidden features are returned too, so they stay; the layer before them need not."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Pair:
        features = F.relu(self.fc2(F.relu(self.fc1(x))))
        return Pair(self.fc3(features), features)


@case(vectors())
class NoneOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        return None, self.fc2(F.relu(self.fc1(x))), ["text", 3, None]


@case(image())
class Auxiliary(nn.Module):
    """A head that only runs in training mode: it must follow what evaluation mode cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = conv(3, 8), conv(8, 6), nn.Linear(6, 5)
        self.aux_conv, self.aux_fc = conv(8, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.conv1(x))
        main = self.fc(F.relu(self.conv2(x)).mean((2, 3)))
        if self.training:
            return main, self.aux_fc(F.relu(self.aux_conv(x)).mean((2, 3)))
        return main


# --------------------------------------------------------------------------------------------- outside the rules


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # ty: ignore[incompatible-method-override]
        return grad * 2


@case(image())
class CustomFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1, self.conv2 = conv(3, 6), conv(6, 8), conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(_Doubled.apply(self.conv1(F.relu(self.conv0(x)))))


class _Checkpointed(nn.Module):
    reentrant = False

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv(3, 8), conv(8, 6), conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = checkpoint(lambda y: F.relu(self.conv2(y)), x, use_reentrant=self.reentrant)
        return self.conv3(x)


@case(image())
class Checkpointed(_Checkpointed):
    pass


@case(image())
class CheckpointedReentrant(_Checkpointed):
    reentrant = True


@case(tokens())
class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Linear(6, 8), nn.LSTM(8, 10, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(10, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.lstm(self.embed(x))[0][:, -1])))


@case(tokens())
class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.fc1, self.fc2 = nn.GRU(6, 10, batch_first=True), nn.Linear(10, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.gru(x)[0].mean(1))))


@case(image())
class Caching(nn.Module):
    """Keeps tensors of its last forward, and counts its calls, in plain attributes, a dict and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.seen, self.shapes, self.last = conv(3, 8), conv(8, 5), {}, [], None
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        self.last, self.calls = x.detach(), self.calls + 1
        self.seen["features"] = x.detach()
        self.shapes.append(tuple(x.shape))
        return self.conv2(x)


@case(image(), prunes=False)
class RunningBuffer(nn.Module):
    """Writes a detached statistic into a buffer: a coupling that autograd cannot see."""

    running: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, 8), conv(8, 5)
        self.register_buffer("running", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        self.running.mul_(0.9).add_(x.detach().mean((0, 2, 3)), alpha=0.1)
        return self.conv2(x)


@case(vectors())
class ValueDependent(nn.Module):
    """Its forward looks at values: it cannot be traced without data."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        if x.sum().item() > 1e6:
            x = x * 0.0
        return self.fc2(x)


@case(image())
class Hooked(nn.Module):
    """A user's hooks that change what flows: one doubles a layer's output, one counts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.counted = conv(3, 8), conv(8, 5), []
        self.conv1.register_forward_hook(_double_output)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(x)))


def _double_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 2


import nets_layers  # noqa: E402, F401 (registers more cases)
import nets_operations  # noqa: E402, F401
