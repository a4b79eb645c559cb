"""The tests' own oracle: the original with every dropped slice set to zero, in float64.

It shares no code with the engine. Zero contributes nothing to a sum or a product, so this is exact except where a
statistic is taken over channels. There (`LayerNorm`, `RMSNorm`, `GroupNorm`, the `OverKept` of `nets.py`) the copy
computes it over the kept part.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from nets import HandRmsNorm, OverKept
from torch import Tensor, nn

from cleanai.plan import Plan

KeptLike = Mapping[str, tuple[str, int]]


class _KeptNorm(nn.Module):
    """Normalises groups of channels by the statistics of the kept ones, then scales and shifts."""

    def __init__(self, norm: Any, kept: Tensor, dim: int, groups: int, center: bool) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, getattr(norm, "bias", None)
        self.eps = norm.eps if getattr(norm, "eps", None) is not None else torch.finfo(torch.float64).eps
        self.kept, self.dim, self.groups, self.center = kept.double(), dim, groups, center

    def forward(self, x: Tensor) -> Tensor:
        channels = x.movedim(self.dim, -1)
        if self.dim == 1:  # the statistics of a GroupNorm run over all positions of a sample too
            flat = channels.flatten(1, -2) if channels.dim() > 2 else channels[:, None]
            flat = flat.unflatten(-1, (self.groups, -1))
            over: tuple[int, ...] = (1, 3)
        else:
            flat, over = channels.unflatten(-1, (1, -1)), (-1,)
        kept = self.kept.unflatten(-1, (self.groups, -1)).expand_as(flat)
        count = kept.sum(over, keepdim=True).clamp(min=1)
        mean = (flat * kept).sum(over, keepdim=True) / count if self.center else 0.0
        variance = ((flat - mean) ** 2 * kept).sum(over, keepdim=True) / count
        normal = ((flat - mean) / (variance + self.eps).sqrt()).reshape(channels.shape) * self.kept
        normal = normal if self.weight is None else normal * self.weight
        normal = normal if self.bias is None else normal + self.bias
        return normal.movedim(-1, self.dim)


class _KeptOnly(nn.Module):
    """A function of the kept channels; where it has a result for each, those of the others are zero."""

    def __init__(self, layer: OverKept, kept: Tensor) -> None:
        super().__init__()
        self.function, self.dim, self.kept = layer.function, layer.dim, kept.nonzero().flatten()

    def forward(self, *tensors: Tensor) -> Tensor:
        full = self.function(*tensors)
        result = self.function(*(tensor.index_select(self.dim, self.kept) for tensor in tensors))
        if full.shape == result.shape:
            return result
        return torch.zeros_like(full).index_copy(self.dim, self.kept, result)


class _HandEps:
    """`HandRmsNorm` with its literal epsilon as an attribute."""

    def __init__(self, norm: HandRmsNorm) -> None:
        self.weight, self.bias, self.eps = norm.weight, None, 1e-6


def to_double(model: nn.Module) -> nn.Module:
    """A copy in float64 and evaluation mode, tensors in plain attributes included."""
    twin = copy.deepcopy(model).double().eval()
    for tensor in (*twin.parameters(), *twin.buffers()):
        if tensor.is_complex():
            tensor.data = tensor.data.to(torch.complex128)
    for module in twin.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                vars(module)[name] = value.detach().double()
    return twin


def doubled(inputs: Any) -> Any:
    """Inputs in float64; token numbers stay as they are."""
    if isinstance(inputs, Tensor):
        return inputs.double() if inputs.is_floating_point() else inputs
    if isinstance(inputs, Mapping):
        return {key: doubled(value) for key, value in inputs.items()}
    return tuple(doubled(value) for value in inputs)


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Every tensor a model returns."""
    if isinstance(inputs, Tensor):
        output = model(inputs)
    else:
        output = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    return flatten(output)


def flatten(output: Any) -> list[Tensor]:
    """The tensors in tuples, lists and dicts, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    return [tensor for item in output for tensor in flatten(item)] if isinstance(output, list | tuple) else []


def mask_original(original: nn.Module, plan: Plan, kept_like: KeptLike | None = None) -> nn.Module:
    """The reference: a float64 copy with every dropped slice zeroed, and statistics over what is kept."""
    masked = to_double(original)
    tensors = {name: getattr(masked.get_submodule(path), leaf) for name, path, leaf in _tensor_names(masked)}
    for cut in plan.cuts:
        with torch.no_grad():
            tensors[cut.parameter].index_fill_(cut.dim, torch.tensor(cut.dropped, dtype=torch.long), 0.0)
    for path, module in list(masked.named_modules()):
        replacement = _kept_version(path, module, plan, kept_like or {})
        if replacement is not None:
            masked.set_submodule(path, replacement)
    return masked


def _tensor_names(model: nn.Module) -> list[tuple[str, str, str]]:
    found = []
    for path, module in model.named_modules(remove_duplicate=False):
        for store in (module._parameters, module._buffers, vars(module)):
            for leaf, value in store.items():
                if isinstance(value, Tensor):
                    found.append((f"{path}.{leaf}" if path else leaf, path, leaf))
    return found


def _kept_version(path: str, module: nn.Module, plan: Plan, kept_like: KeptLike) -> nn.Module | None:
    if not isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm | OverKept | HandRmsNorm):
        return None
    parameter, dim = kept_like.get(path, (f"{path}.weight", 0))
    cut = next((cut for cut in plan.cuts if (cut.parameter, cut.dim) == (parameter, dim)), None)
    if cut is None:
        return None
    kept = torch.ones(cut.size)
    kept[list(cut.dropped)] = 0
    if isinstance(module, OverKept):
        return _KeptOnly(module, kept)
    if isinstance(module, nn.GroupNorm):
        return _KeptNorm(module, kept, 1, module.num_groups, center=True)
    if isinstance(module, HandRmsNorm):
        return _KeptNorm(_HandEps(module), kept, -1, 1, center=False)
    return _KeptNorm(module, kept, -1, 1, center=isinstance(module, nn.LayerNorm))


def difference_from_masked(
    original: nn.Module, pruned: nn.Module, plan: Plan, inputs: Any, kept_like: KeptLike | None = None
) -> float:
    """The largest difference between the pruned model and the masked original, relative to the largest output."""
    reference = run(mask_original(original, plan, kept_like), doubled(inputs))
    result = run(to_double(pruned), doubled(inputs))
    assert [tuple(t.shape) for t in result] == [tuple(t.shape) for t in reference], "the outputs changed shape"
    worst = 0.0
    for ours, theirs in zip(result, reference, strict=True):
        assert bool(ours.isfinite().all()), "the pruned model returns NaN or infinity"
        if theirs.is_floating_point():
            difference = (ours - theirs).detach().abs().max()
            worst = max(worst, float(difference / theirs.detach().abs().max().clamp(min=1e-12)))
    return worst


def assert_equals_masked(
    original: nn.Module, pruned: nn.Module, plan: Plan, inputs: Any, kept_like: KeptLike | None = None
) -> None:
    """The pruned model is the original with the dropped channels masked, to rounding in float64."""
    error = difference_from_masked(original, pruned, plan, inputs, kept_like)
    assert error <= 1e-9, f"the pruned model differs from the masked original by {error:.1e}"


def assert_runs(model: nn.Module, inputs: Any) -> None:
    """Forward and backward work and reach every parameter that asks for gradients and is used."""
    model.zero_grad()
    outputs = [tensor for tensor in run(model, inputs) if tensor.is_floating_point() and tensor.requires_grad]
    if outputs:
        torch.stack([tensor.double().sum() for tensor in outputs]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.shape == parameter.shape, name
    model.zero_grad()


def assert_removed(original: nn.Module, pruned: nn.Module, plan: Plan) -> None:
    """The pruned model's tensors are exactly the kept parts of the original's, and nothing else was changed."""
    before = dict(original.state_dict())
    cuts: dict[str, list[Any]] = {}
    for cut in plan.cuts:
        cuts.setdefault(cut.parameter, []).append(cut)
    names = {id(t): name for name, t in reversed(list(original.state_dict(keep_vars=True).items()))}
    for name, tensor in original.state_dict(keep_vars=True).items():
        expected = before[name]
        for cut in cuts.get(name, cuts.get(names[id(tensor)], [])):
            expected = expected.index_select(cut.dim, torch.tensor(cut.kept))
        ours = pruned.state_dict()[name]
        assert torch.equal(ours, expected), f"{name} is not the kept part of the original"
