"""The networks on which `benchmarks.peers` compares tools, and what a tool that asks for it is told about each.

Some are hard on purpose: most lines of the project's list of mistakes in the field have one here. They are small, so
that anybody can check a verdict by hand. The ordinary ones are torchvision's, with small inputs. All have random
weights, norms and statistics included, and no two equal values in a vector: a slice can be told by what it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.suites import SUITES, Case


@dataclass(frozen=True)
class Network:
    """One network of the comparison.

    ``suite`` and ``name`` say where `benchmarks.suites` builds it. What tools that ask for it are told: ``outputs`` are
    the layers whose outputs are the network's and must stay, ``heads`` the number of heads of layers that compute
    queries, keys or values.
    """

    name: str
    suite: str
    title: Mapping[str, str]
    outputs: tuple[str, ...] = ()
    heads: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_hard(self) -> bool:
        """Whether it was written to be hard."""
        return self.suite == "toys"


def _hard(name: str, english: str, turkish: str, *outputs: str, heads: Mapping[str, int] | None = None) -> Network:
    return Network(name, "toys", {"en": english, "tr": turkish}, outputs, heads or {})


def _ordinary(name: str, *outputs: str, heads: Mapping[str, int] | None = None) -> Network:
    return Network(
        name, "torchvision", {"en": f"torchvision `{name}`", "tr": f"torchvision `{name}`"}, outputs, heads or {}
    )


_VIT_HEADS = {f"encoder.layers.encoder_layer_{block}.self_attention": 12 for block in range(12)}
_SWIN_HEADS = {
    f"features.{stage}.{block}.attn.qkv": heads
    for stage, blocks, heads in ((1, 2, 3), (3, 2, 6), (5, 6, 12), (7, 2, 24))
    for block in range(blocks)
}

NETWORKS = {
    network.name: network
    for network in (
        _hard("flatten_nhwc", "permute, then flatten (NHWC)", "permute, ardından flatten (NHWC)", "fc"),
        _hard("shuffle", "channel shuffle", "kanal karıştırma (channel shuffle)", "conv3"),
        _hard("flip", "channels flipped", "ters çevrilen kanallar (flip)", "conv3"),
        _hard("roll", "channels rolled", "kaydırılan kanallar (roll)", "conv3"),
        _hard("strided_stack", "stack of even and odd channels", "çift ve tek kanalların yığılması", "left", "right"),
        _hard("unflatten_unbind", "unflatten and unbind", "unflatten ve unbind", "left", "right"),
        _hard(
            "index_tensor", "channels picked by an index tensor", "indeks tensörüyle seçilen kanallar", "left", "right"
        ),
        _hard(
            "option_a", "option-A shortcut (zero-padded channels)", "A tipi kısayol (sıfırla doldurulan kanallar)", "fc"
        ),
        _hard("grouped", "grouped convolution", "gruplu evrişim", "conv3"),
        _hard("grouped_transposed", "grouped transposed convolution", "gruplu devrik evrişim", "conv2"),
        _hard("pixel_shuffle", "pixel shuffle", "pixel shuffle", "conv2"),
        _hard("concat_group_norm", "GroupNorm over a concatenation", "birleştirme üzerinde GroupNorm", "conv3"),
        _hard(
            "instance_norm_statistics",
            "InstanceNorm with running statistics",
            "yürüyen istatistikli InstanceNorm",
            "conv2",
        ),
        _hard("layer_norm", "LayerNorm", "LayerNorm", "head"),
        _hard("weight_norm", "weight norm", "ağırlık normu (weight norm)", "8"),
        _hard("einsum", "bare weight in an einsum", "einsum içinde yalın ağırlık", "fc2"),
        _hard("tied_embedding", "head tied to the embedding", "gömmeyle ortak ağırlıklı başlık", "embed", "head"),
        _hard("view_literal", "`view` to a literal size", "sabit boyutlu `view`", "fc2"),
        _hard("checkpointed", "activation checkpointing", "aktivasyon checkpointing", "conv3"),
        _hard("lstm", "LSTM", "LSTM", "fc2"),
        _hard("gru", "GRU", "GRU", "fc2"),
        _hard("attention_index", "attention, fused `qkv[0]`", "dikkat, birleşik `qkv[0]`", "proj", heads={"qkv": 4}),
        _hard(
            "gqa_rotary",
            "grouped-query attention, rotary positions",
            "gruplu sorgulu dikkat, dönel konumlar",
            "out",
            heads={"q": 4, "k": 2, "v": 2},
        ),
        _hard(
            "multihead_attention", "`nn.MultiheadAttention`", "`nn.MultiheadAttention`", "head", heads={"attention": 4}
        ),
        _ordinary("resnet18", "fc"),
        _ordinary("resnext50_32x4d", "fc"),
        _ordinary("densenet121", "classifier"),
        _ordinary("mobilenet_v2", "classifier.1"),
        _ordinary("convnext_tiny", "classifier.2"),
        _ordinary("shufflenet_v2_x0_5", "fc"),
        _ordinary("vit_b_16", "heads.head", heads=_VIT_HEADS),
        _ordinary("swin_t", "head", heads=_SWIN_HEADS),
    )
}


def build_case(name: str) -> Case:
    """The network with its inputs, the same in every process."""
    network = NETWORKS[name]
    torch.manual_seed(0)
    case = SUITES[network.suite]()[name]()
    case.model.eval()
    make_distinct(case.model)
    return case


def make_distinct(model: nn.Module) -> None:
    """Moves equal values of a vector apart, so that each index is known by its value; in place.

    Example:
        >>> layer = nn.LayerNorm(4)
        >>> make_distinct(layer)
        >>> layer.weight.unique().numel()
        4
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 1 and tensor.is_floating_point():
            with torch.no_grad():
                tensor.copy_(_apart(tensor.detach()))


def _apart(vector: Tensor) -> Tensor:
    values, order = vector.sort()
    for _ in range(len(values)):
        equal = values[1:] <= values[:-1]
        if not bool(equal.any()):
            break
        values[1:] = torch.where(equal, torch.nextafter(values[:-1], torch.tensor(torch.inf)), values[1:])
    return torch.empty_like(vector).scatter_(0, order, values)
