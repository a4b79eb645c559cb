"""Small networks around operations that hold parameters of their own or tie layers; more cases of `nets.py`."""

from __future__ import annotations

import torch
from nets import OverKept, case, conv, image, tokens, vectors, words
from torch import Tensor, nn
from torch.nn import functional as F

# -------------------------------------------------------------------------------------------------------- products


@case(tokens())
class EinsumHeads(nn.Module):
    """Attention written with einsum and weights (model, heads, channels): heads and head channels are dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.query, self.key, self.value = (nn.Parameter(torch.empty(8, 6, 4)) for _ in range(3))
        self.out = nn.Parameter(torch.empty(6, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (torch.einsum("btm,mhc->bthc", x, weight) for weight in (self.query, self.key, self.value))
        weights = torch.einsum("bqhc,bkhc->bhqk", q, k).softmax(-1)
        return self.head(x + torch.einsum("bhqk,bkhc,hcm->bqm", weights, v, self.out))


@case(lambda batch: torch.randn(batch, 3, 6, 5))
class GraphConvolution(nn.Module):
    """Skeleton networks: one adjacency matrix for each of two subsets of channels, both operands of einsum learned."""

    def __init__(self) -> None:
        super().__init__()
        self.subsets = 2
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 7, 1), nn.Linear(7, 4)
        self.adjacency = nn.Parameter(torch.empty(2, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        n, _, t, v = x.shape
        x = self.conv1(x).view(n, self.subsets, -1, t, v)
        x = F.relu(torch.einsum("nkctv,kvw->nctw", x, self.adjacency))
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


@case(lambda batch: (torch.randn(batch, 6), torch.randn(batch, 4)))
class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.join, self.head = (
            nn.Linear(6, 8), nn.Linear(4, 5), nn.Bilinear(8, 5, 7), nn.Linear(7, 3),
        )  # fmt: skip

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(F.relu(self.join(F.relu(self.left(x)), torch.tanh(self.right(y)))))


@case(vectors())
class MatrixOperations(nn.Module):
    """Layers spelled with baddbmm, addmm, addbmm, addmv, addr and mv on bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias1 = nn.Parameter(torch.empty(6, 8)), nn.Parameter(torch.empty(8))
        self.second, self.bias2 = nn.Parameter(torch.empty(8, 10)), nn.Parameter(torch.empty(1, 1, 10))
        self.column, self.row = nn.Parameter(torch.empty(10)), nn.Parameter(torch.empty(7))
        self.third, self.gate = nn.Parameter(torch.empty(10, 7)), nn.Parameter(torch.empty(7, 7))
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(torch.addmm(self.bias1, x, self.first))[None]
        x = torch.tanh(torch.baddbmm(self.bias2, x, self.second[None], alpha=0.5))
        x = torch.tanh(torch.addbmm(self.row, x, torch.addr(self.third, self.column, self.row)[None]))
        return self.head(x * torch.sigmoid(torch.addmv(self.row, self.gate, self.row.tanh())))


@case(vectors())
class Gates(nn.Module):
    """Parameters joined to channels by addcmul, addcdiv, lerp, where, clamp, maximum and pow."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)
        names = ("scale", "shift", "mix", "other", "low", "high", "power")
        self.gates = nn.ParameterDict({name: nn.Parameter(torch.empty(8)) for name in names})

    def forward(self, x: Tensor) -> Tensor:
        x, gate = torch.tanh(self.fc1(x)), self.gates
        x = torch.addcmul(gate["shift"], x, gate["scale"])
        x = torch.lerp(x, gate["other"], gate["mix"])
        x = torch.where(torch.ones(len(x), 1, dtype=torch.bool, device=x.device), x, gate["shift"])
        x = torch.maximum(x, gate["low"] - 1).clamp(gate["low"] - 3, gate["high"] + 3)
        return self.fc2(torch.addcdiv(x, gate["other"], 1 + gate["scale"].square()) * (1 + x.square()) ** gate["power"])


@case(vectors())
class CosineHead(nn.Module):
    """Normalised features times normalised class vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.classes = nn.Linear(6, 8), nn.Parameter(torch.empty(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return 5 * F.linear(F.normalize(torch.tanh(self.fc(x))), F.normalize(self.classes))


@case(tokens(), kept_like={"choose": ("codes", 0)})
class SoftCodebook(nn.Module):
    """Distances to learned codes, a softmax over the codes, their mixture: codes can go, and so can channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.codes, self.head = nn.Linear(6, 8), nn.Parameter(torch.empty(10, 8)), nn.Linear(8, 4)
        self.spread = nn.Parameter(torch.empty(10))
        self.choose = OverKept(lambda distances: (-distances).softmax(-1), -1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        codes = self.codes.expand(len(x), -1, -1)
        return self.head(self.choose(torch.cdist(x, codes) * self.spread) @ self.codes)


@case(words())
class OneHot(nn.Module):
    """A table read by a product with one-hot vectors: the words stay, the channels are free."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc, self.head = nn.Parameter(torch.empty(11, 8)), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.fc(F.one_hot(x, 11).to(self.table.dtype) @ self.table)))


@case(words())
class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.most, self.head = nn.EmbeddingBag(11, 8), nn.EmbeddingBag(11, 6, mode="max"), nn.Linear(14, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.words(x), torch.relu(self.most(x))], 1))


# ------------------------------------------------------------------------------------------------- tokens and tables


@case(tokens(width=12))
class RotaryComplex(nn.Module):
    """LLaMA's first rotary code: pairs of channels as complex numbers, turned by a complex table."""

    turns: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.q, self.k, self.v, self.out = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 18), nn.Linear(18, 5)
        angles = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.3]))
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))

    def turn(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.turns[: x.shape[1], None]).flatten(3).type_as(x)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, self.heads, -1) for layer in (self.q, self.k, self.v))
        q, k, v = (part.transpose(1, 2) for part in (self.turn(q), self.turn(k), v))
        return self.out(((q @ k.mT / 2.0).softmax(-1) @ v).transpose(1, 2).flatten(2))


@case(tokens(8))
class TopTokens(nn.Module):
    """The best tokens are kept: positions that a score chooses, the same for every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.score, self.head = nn.Linear(6, 8), nn.Linear(8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x))
        score, best = self.score(x).topk(3, dim=1)
        x = x.gather(1, best.expand(-1, -1, x.shape[2])) * score.sigmoid()
        return self.head(x.mean(1))


@case(tokens(), kept_like={"attend": ("latents", 0)})
class Latents(nn.Module):
    """Perceiver's learned queries read the tokens, then each other: their number is nobody's but the softmax's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.latents, self.head = nn.Linear(6, 8), nn.Parameter(torch.empty(7, 8)), nn.Linear(8, 4)
        self.level = nn.Parameter(torch.empty(7, 1))
        self.attend = OverKept(lambda x: ((x @ x.mT).softmax(-1) @ x).mean(1, keepdim=True), 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        latents = (self.latents @ x.mT).softmax(-1) @ x * self.level
        return self.head(self.attend(latents)[:, 0])


@case(lambda batch: (torch.randn(batch * 4, 6), torch.arange(batch * 4).flip(0)))
class MessagePassing(nn.Module):
    """A graph layer: messages gathered from nodes, added up and averaged where they arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.message, self.norm = nn.Linear(6, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.update, self.head = nn.Linear(8, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor, sources: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x))
        targets = torch.div(sources, 2, rounding_mode="floor")
        message = F.silu(self.message(x[sources]))
        x = x + torch.zeros_like(x).index_add_(0, targets, message)
        x = x + x.new_zeros(x.shape).scatter_add(
            0, targets[:, None].expand_as(message), message.index_select(0, sources)
        )
        x = x.scatter_reduce(0, targets[:, None].expand_as(message), message, "amax")
        return self.head(F.relu(self.update(self.norm(x))))


# -------------------------------------------------------------------------------------------------- pixels in channels


@case(image())
def sub_pixels() -> nn.Module:
    """Channels become pixels and back: whole blocks of four go."""
    down = [conv(3, 6), nn.PixelUnshuffle(2), nn.ReLU(), conv(24, 8, 1), nn.ReLU()]
    return nn.Sequential(*down, conv(8, 20), nn.PixelShuffle(2), nn.ReLU(), conv(5, 4))


@case(image())
class Patches(nn.Module):
    """``nn.Unfold``, a layer on every patch, ``nn.Fold``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.cut, self.mix = conv(3, 6), nn.Unfold(2, stride=2), nn.Linear(24, 10)
        self.spread, self.paste, self.head = nn.Linear(10, 20), nn.Fold((8, 8), 2, stride=2), conv(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.mix(self.cut(torch.tanh(self.stem(x))).mT))
        return self.head(self.paste(self.spread(x).mT))


@case(image())
def shuffled_groups() -> nn.Module:
    layers = [conv(3, 8), nn.ReLU(), conv(8, 12, groups=2), nn.ChannelShuffle(2), nn.ReLU()]
    return nn.Sequential(*layers, conv(12, 6, groups=2), conv(6, 5))


@case(image())
class Unpooling(nn.Module):
    """SegNet: the decoder puts values back where the encoder's maxima were, channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.head = conv(3, 6), conv(6, 8), conv(8, 6), conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, places = F.max_pool2d(torch.tanh(self.conv1(x)), 2, return_indices=True)
        x = torch.tanh(self.conv3(F.relu(self.conv2(x))))
        return self.head(F.max_unpool2d(x, places, [2, 2]))


@case(image())
class FourierLayer(nn.Module):
    """A Fourier neural operator's layer: complex weights for the lowest frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.skip, self.head = conv(3, 8), conv(8, 6, 1), conv(6, 5)
        self.low = nn.Parameter(torch.empty(8, 6, 4, 3, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        low = torch.einsum("bixy,ioxy->boxy", torch.fft.rfft2(x)[:, :, :4, :3], self.low)
        return self.head(torch.tanh(self.skip(x) + torch.fft.irfft2(low, s=x.shape[-2:])))


@case(image())
class SpatialTransformer(nn.Module):
    """A small network predicts how to turn the features of another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.look, self.theta, self.head = conv(3, 8), conv(8, 6), nn.Linear(6, 6), conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        theta = self.theta(torch.tanh(self.look(x)).mean((2, 3))).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return self.head(F.grid_sample(x, grid, align_corners=False))


@case(image(), kept_like={"most": ("conv1.weight", 0), "mean": ("conv1.weight", 0)})
class Cbam(nn.Module):
    """The mean and the maximum over the channels make a gate for every position."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.gate, self.conv2 = conv(3, 8), conv(2, 1), conv(8, 5)
        self.mean = OverKept(lambda x: x.mean(1, keepdim=True))
        self.most = OverKept(lambda x: x.max(1, keepdim=True)[0])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv1(x))
        return self.conv2(x * torch.sigmoid(self.gate(torch.cat([self.mean(x), self.most(x)], 1))))


@case(image())
class ChannelNeighbours(nn.Module):
    """ECA's convolution over the channels: neighbours count, so these stay; the layer before is free."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1, self.conv2 = conv(3, 6), conv(6, 8), conv(8, 5)
        self.slide = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv1(F.relu(self.conv0(x))))
        return self.conv2(x * torch.sigmoid(self.slide(x.mean((2, 3))[:, None]))[:, 0, :, None, None])


@case(image())
def response_norm() -> nn.Module:
    return nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 8), nn.LocalResponseNorm(3), nn.ReLU(), conv(8, 5))


# --------------------------------------------------------------------------------------------------- layers in a row


@case(lambda batch: torch.randn(batch, 3, 12))
def sequence_layers() -> nn.Module:
    """Everything for sequences: transposed and grouped convolution, norms, gates, pooling."""
    down = [nn.Conv1d(3, 8, 3, padding=1), nn.InstanceNorm1d(8, affine=True), nn.PReLU(8), nn.LPPool1d(2, 2)]
    middle = [nn.ConvTranspose1d(8, 12, 2, 2), nn.GLU(1), nn.Conv1d(6, 6, 3, groups=6), nn.CELU(), nn.AvgPool1d(2)]
    return nn.Sequential(*down, *middle, nn.ReflectionPad1d(1), nn.Conv1d(6, 7, 1), nn.SELU(), nn.Conv1d(7, 4, 1))


@case(lambda batch: torch.randn(batch, 2, 4, 4, 4))
def volume_layers() -> nn.Module:
    norm = nn.InstanceNorm3d(6, affine=True, track_running_stats=True)
    up = [nn.ConvTranspose3d(6, 8, 2, 2, groups=2), nn.BatchNorm3d(8, track_running_stats=False), nn.RReLU()]
    return nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1), norm, nn.MaxPool3d(2), *up, nn.ReplicationPad3d(1), nn.Conv3d(8, 4, 1)
    )


@case(image())
def flat_layers() -> nn.Module:
    first = [conv(3, 8), nn.InstanceNorm2d(8, track_running_stats=True), nn.Softsign(), nn.FractionalMaxPool2d(2, 4)]
    second = [conv(8, 6), nn.BatchNorm2d(6, affine=False, track_running_stats=False), nn.Tanhshrink()]
    third = [nn.CircularPad2d(1), nn.Conv2d(6, 9, 3, padding=1, padding_mode="reflect"), nn.LogSigmoid()]
    return nn.Sequential(
        *first, *second, *third, nn.AdaptiveMaxPool2d(2), nn.Upsample(scale_factor=2, mode="bicubic"), conv(9, 4)
    )


@case(vectors(), kept_like={"3": ("0.weight", 0)})
def softmax_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Softshrink(), nn.Hardsigmoid(), OverKept(nn.Softmin(1)), nn.Linear(8, 4))


# ----------------------------------------------------------------------------------------------- weights reparametrised


@case(image())
def weight_norm_convolutions() -> nn.Module:
    """A norm for every output channel, of a transposed convolution too, and one for every column of a layer."""
    wrap = nn.utils.parametrizations.weight_norm
    layers = [conv(3, 8), nn.ReLU(), wrap(conv(8, 7)), nn.Tanh(), wrap(nn.ConvTranspose2d(7, 6, 2, 2), dim=1)]
    return nn.Sequential(*layers, nn.Tanh(), conv(6, 4))


@case(image())
def spectral_norm_convolution() -> nn.Module:
    wrap = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(conv(3, 6), nn.ReLU(), wrap(conv(6, 8)), nn.ReLU(), conv(8, 7), nn.ReLU(), conv(7, 4))


@case(vectors())
def orthogonal() -> nn.Module:
    """An orthogonal matrix is not orthogonal without a row: it stays, what is around it does not."""
    wrap = nn.utils.parametrizations.orthogonal
    layers = [nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), wrap(nn.Linear(8, 8)), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4))
