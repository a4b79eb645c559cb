"""What torch's own layers need: an attention layer that can shrink, and sizes they keep besides their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def _additive_mask(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


class SlicedMultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` whose heads, head dimension and model dimension may differ in size.

    Same parameters, same state-dict keys, same results; torch's own forward insists on
    ``num_heads * head_dim == embed_dim``, which no longer holds once heads are removed. Pruning turns an attention
    layer into this class. ``attention_scale`` keeps the scale of the layer as it was trained.
    """

    attention_scale: float
    # torch's fused encoder kernels assume equal sizes; this is the flag by which they ask.
    _qkv_same_embed_dim = property(lambda self: False)  # type: ignore[assignment]

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        weights: Any = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        biases: Any = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]

    def _merge_masks(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor, extra: int
    ) -> Tensor | None:
        attn_mask = _additive_mask(attn_mask, query.dtype)
        padding = _additive_mask(key_padding_mask, query.dtype)
        if attn_mask is not None:
            if attn_mask.dim() == 3:  # one mask per sample and head
                attn_mask = attn_mask.view(query.shape[0], self.num_heads, *attn_mask.shape[1:])
            attn_mask = F.pad(attn_mask, (0, extra))
        if padding is None:
            return attn_mask
        padding = F.pad(padding[:, None, None, :] if padding.dim() == 2 else padding[None, None, :], (0, extra))
        return padding if attn_mask is None else attn_mask + padding

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `torch.nn.MultiheadAttention.forward`."""
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = self._project(query, key, value)
        extra = 0
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1)], dim=1)
            extra += 1
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
            extra += 1
        q, k, v = (x.view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2) for x in (q, k, v))
        mask = self._merge_masks(attn_mask, key_padding_mask, q, extra)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.attention_scale) @ k.transpose(-2, -1)
            attention = F.softmax(scores if mask is None else scores + mask, dim=-1)
            attention = F.dropout(attention, dropout)
            mixed = attention @ v
            weights = attention.mean(dim=1) if average_attn_weights else attention
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.attention_scale)
        output = self.out_proj(mixed.transpose(1, 2).reshape(q.shape[0], q.shape[2], -1))
        if not batched:
            return output[0], weights[0] if weights is not None else None
        return (output if self.batch_first else output.transpose(0, 1)), weights


def make_sliceable(module: nn.Module) -> None:
    """Turns a torch attention layer into one whose sizes may differ; leaves every other module alone."""
    if type(module) is nn.MultiheadAttention:
        scale = module.head_dim**-0.5
        module.__class__ = SlicedMultiheadAttention
        module.attention_scale = scale  # type: ignore[assignment]


def refuse_nested_tensors(module: nn.Module) -> None:
    """Keeps an encoder from handing its layers nested tensors, which only torch's own attention can read."""
    encoder = module if isinstance(module, nn.TransformerEncoder) else None
    if encoder is not None and any(isinstance(part, SlicedMultiheadAttention) for part in encoder.modules()):
        encoder.use_nested_tensor = False


def prepare_layers(model: nn.Module) -> None:
    """Makes every layer of a stand-in model sliceable before it is traced."""
    for module in model.modules():
        make_sliceable(module)


def _tensor(module: Any, name: str) -> Any:
    """A tensor of a layer; where a hook computes it anew in every forward (weight_norm, prune), what it is made of."""
    for source in (f"{name}_v", f"{name}_orig", name):
        tensor = getattr(module, source, None)
        if tensor is not None:
            return tensor
    return None


def _size(module: nn.Module, name: str, dim: int) -> int | None:
    tensor = _tensor(module, name)
    return tensor.shape[dim] if isinstance(tensor, Tensor) and tensor.dim() > dim else None


def _conv_sizes(module: Any) -> dict[str, Any]:
    first, second = _tensor(module, "weight").shape[:2]
    if module.transposed:
        return {"in_channels": first, "out_channels": second * module.groups}
    return {"in_channels": second * module.groups, "out_channels": first}


def _norm_sizes(module: Any) -> dict[str, Any]:
    features = _size(module, "weight", 0)
    return {"num_features": features if features is not None else _size(module, "running_mean", 0)}


def _layer_norm_sizes(module: Any) -> dict[str, Any]:
    return {"normalized_shape": tuple(module.weight.shape) if module.weight is not None else None}


def _attention_sizes(module: Any) -> dict[str, Any]:
    packed = module.in_proj_weight is not None
    q, k, v = (
        (module.in_proj_weight,) * 3 if packed else (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    )
    rows = q.shape[0] // 3 if packed else q.shape[0]
    return {
        "embed_dim": q.shape[1],
        "kdim": k.shape[1],
        "vdim": v.shape[1],
        "head_dim": rows // module.num_heads,
    }


_GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3, nn.RNN: 1, nn.RNNCell: 1}


def count_gates(module: nn.Module) -> int:
    """How many gates a recurrent layer computes for each hidden unit."""
    return next(gates for kind, gates in _GATES.items() if isinstance(module, kind))


def _recurrent_sizes(module: Any) -> dict[str, Any]:
    suffix = "_l0" if isinstance(module, nn.RNNBase) else ""
    first, second = getattr(module, f"weight_ih{suffix}"), getattr(module, f"weight_hh{suffix}")
    projected = getattr(module, "proj_size", 0)
    return {
        "input_size": first.shape[1],
        "hidden_size": first.shape[0] // count_gates(module),
        "proj_size": second.shape[1] if projected else 0,
    }


# Each layer type with the attributes that repeat a size of its tensors.
_SIZES: tuple[tuple[Any, Callable[[Any], dict[str, Any]]], ...] = (
    (_ConvNd, _conv_sizes),
    (_NormBase, _norm_sizes),
    (nn.LayerNorm, _layer_norm_sizes),
    (nn.RMSNorm, _layer_norm_sizes),
    (nn.GroupNorm, lambda m: {"num_channels": _size(m, "weight", 0)}),
    (nn.Linear, lambda m: {"in_features": _size(m, "weight", 1), "out_features": _size(m, "weight", 0)}),
    (
        nn.Bilinear,
        lambda m: {
            "out_features": _size(m, "weight", 0),
            "in1_features": _size(m, "weight", 1),
            "in2_features": _size(m, "weight", 2),
        },
    ),
    (nn.Embedding, lambda m: {"num_embeddings": _size(m, "weight", 0), "embedding_dim": _size(m, "weight", 1)}),
    (nn.EmbeddingBag, lambda m: {"num_embeddings": _size(m, "weight", 0), "embedding_dim": _size(m, "weight", 1)}),
    (nn.PReLU, lambda m: {"num_parameters": _size(m, "weight", 0)}),
    (nn.MultiheadAttention, _attention_sizes),
    (nn.RNNBase, _recurrent_sizes),
    (nn.RNNCellBase, _recurrent_sizes),
)


def sizes_of(module: nn.Module) -> dict[str, Any]:
    """The size attributes of one of torch's layers, as its tensors say they should be: {"out_channels": 64, …}."""
    for kind, read in _SIZES:
        if isinstance(module, kind):
            return {name: value for name, value in read(module).items() if value is not None and hasattr(module, name)}
    return {}


def update_sizes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Brings a layer's size attributes in line with its tensors; returns {attribute: (old, new)} of what changed."""
    changed = {}
    for name, value in sizes_of(module).items():
        old = getattr(module, name)
        if old != value:
            setattr(module, name, value)
            changed[name] = (old, value)
    return changed


def group_attributes(module: nn.Module) -> tuple[str, ...]:
    """The attributes in which one of torch's layers keeps a number of groups or heads, or a size without a weight."""
    if isinstance(module, _ConvNd):
        return ("groups",)
    if isinstance(module, nn.GroupNorm):
        return ("num_groups",) if module.affine else ("num_groups", "num_channels")
    if isinstance(module, nn.MultiheadAttention):
        return ("num_heads",)
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and module.weight is None:
        return ("normalized_shape",)
    if isinstance(module, _NormBase) and module.weight is None and module.running_mean is None:
        return ("num_features",)
    return ()


def channel_dim(module: nn.Module) -> int:
    """Where a convolution or linear layer has its channels, counted from the end; 0 for any other module."""
    if isinstance(module, _ConvNd):
        return -1 - len(module.kernel_size)  # inputs may come without a batch dimension
    return -1 if isinstance(module, nn.Linear) else 0


def input_weight_norms(module: nn.Module) -> Tensor | None:
    """The sum of the absolute weights that each input channel of a layer is multiplied with: shape [in channels]."""
    if isinstance(module, nn.Linear):
        return module.weight.detach().abs().double().sum(0)
    if not isinstance(module, _ConvNd):
        return None
    weight = module.weight.detach().abs().double().flatten(2).sum(2)
    if module.transposed:  # (in, out / groups)
        return weight.sum(1)
    return weight.reshape(module.groups, -1, weight.shape[1]).sum(1).flatten()  # (groups, out / groups, in / groups)
