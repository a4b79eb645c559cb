"""The judge of `benchmarks.peers`: is a pruned network the original without exactly what was removed?

It sees no tool's plan and no tool's slicing, only three things: the original network, the tensors of the pruned one,
and the outputs of the pruned one in double precision. No two values of a vector are equal, so every remaining slice
tells by what it holds which slice of the original it was (`find_kept`). Of these indices a `Plan` is made, and the
original runs once more with everything else treated as missing (`cleanai.verify.compute_reference`, in double
precision). The pruned network must give the same outputs. What is judged is the whole: a layer that was cut unlike its
partner, a norm whose channels are in another order, a tensor in which anything else stands.

That reference is CleanAI's own arithmetic, which was tested against an independent one in the project's tests; it
knows nothing of where a set of indices came from.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai.errors import CleanAIError
from cleanai.plan import Plan, TensorCut
from cleanai.verify import compute_reference

TOLERANCE = 1e-6


class UnlikeError(Exception):
    """A tensor holds something else than slices of the original one."""


@dataclass(frozen=True)
class Verdict:
    """``status`` is "equal", "wrong" or "left alone"; ``error`` the largest difference over the largest value."""

    status: str
    error: float | None = None
    note: str = ""


def find_kept(original: Tensor, pruned: Tensor) -> tuple[tuple[int, ...], ...]:
    """For each dimension, which indices of the original a pruned tensor holds, in its order.

    Raises:
        UnlikeError: if it holds anything else.

    Example:
        >>> weight = torch.randn(4, 3)
        >>> find_kept(weight, weight[[0, 3]][:, 1:])
        ((0, 3), (1, 2))
    """
    if original.dim() != pruned.dim():
        raise UnlikeError(f"{original.dim()} dimensions became {pruned.dim()}")
    if original.shape == pruned.shape and torch.equal(original, pruned):
        return tuple(tuple(range(size)) for size in original.shape)
    whole, rest = original.numpy(), pruned.numpy()
    places = _find_places(whole.ravel(), rest.ravel())
    known = (places >= 0).reshape(rest.shape)
    coordinates = _unravel(places.reshape(rest.shape).clip(min=0), whole.shape)
    kept = []
    for dim, size in enumerate(rest.shape):
        moved, seen = (np.moveaxis(array, dim, 0).reshape(size, -1) for array in (coordinates[dim], known))
        kept.append(tuple(_agree(row[found]) for row, found in zip(moved, seen, strict=True)))
    if not np.array_equal(whole[np.ix_(*kept)], rest):
        raise UnlikeError("holds other values than slices of the original")
    return tuple(kept)


def _find_places(whole: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Where each value stood, -1 where it stood nowhere or in several places."""
    order = np.argsort(whole, kind="stable")
    ordered = whole[order]
    alone = np.ones(len(ordered), bool)
    equal = ordered[1:] == ordered[:-1]
    alone[1:] &= ~equal
    alone[:-1] &= ~equal
    found = np.searchsorted(ordered, rest).clip(max=len(ordered) - 1)
    return np.where((ordered[found] == rest) & alone[found], order[found], -1)


def _unravel(places: np.ndarray, shape: Sequence[int]) -> list[np.ndarray]:
    """By hand: ``np.unravel_index`` of NumPy 2.4.6 is wrong from its 8,192nd element on where sizes of 1 come last."""
    coordinates = []
    for size in reversed(shape):
        places, index = np.divmod(places, size)
        coordinates.append(index)
    return coordinates[::-1]


def _agree(indices: np.ndarray) -> int:
    if not len(indices):
        raise UnlikeError("holds other values than slices of the original")
    first = int(indices[0])
    if (indices != first).any():
        raise UnlikeError("mixes slices of the original")
    return first


def find_kept_by_row(original: Tensor, pruned: Tensor) -> tuple[tuple[int, ...], Tensor]:
    """For weights of grouped convolutions, where each group may keep other columns: the rows, and what is missing.

    The second value is True for the elements of the original, in the rows that stay, that the pruned tensor has not.
    """
    whole, rest = original.numpy(), pruned.numpy()
    places = _find_places(whole.ravel(), rest.ravel())
    row_of, column_of, *_ = _unravel(places.reshape(rest.shape).clip(min=0), whole.shape)
    known = (places >= 0).reshape(rest.shape)
    rows = tuple(_agree(row_of[number][known[number]]) for number in range(len(rest)))
    missing = torch.zeros(original.shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        columns = [_agree(column_of[number, c][known[number, c]]) for c in range(rest.shape[1])]
        if not np.array_equal(whole[row][columns], rest[number]):
            raise UnlikeError("holds other values than slices of the original")
        missing[row] = True
        missing[row, columns] = False
    return rows, missing


def make_plan(
    original: Mapping[str, Tensor], pruned: Mapping[str, Tensor], grouped: Mapping[str, Tensor] | None = None
) -> tuple[Plan, list[str]]:
    """The plan that a pruned network's tensors tell, and the names of the tensors whose slices changed their order.

    Args:
        original: Parameters and buffers by name.
        pruned: The same of the pruned network.
        grouped: Those weights of grouped convolutions; where groups kept different columns, which no plan can say, the
            missing elements are set to NaN ("does not exist") in place.

    Raises:
        UnlikeError: if a tensor is missing or holds something else than slices of the original.
    """
    cuts, reordered = [], []
    for name, whole in original.items():
        if name not in pruned:
            raise UnlikeError(f"{name} is missing")
        try:
            kept = find_kept(whole, pruned[name])
        except UnlikeError as error:
            try:
                if name not in (grouped or {}) or whole.dim() != pruned[name].dim():
                    raise error
                rows, missing = find_kept_by_row(whole, pruned[name])
            except UnlikeError as last:
                raise UnlikeError(f"{name}: {last}") from None
            kept = (rows, *(tuple(range(size)) for size in whole.shape[1:]))
            whole[missing] = torch.nan
        for dim, indices in enumerate(kept):
            if len(set(indices)) < len(indices):
                raise UnlikeError(f"{name}: a slice stands twice along dimension {dim}")
            if list(indices) != sorted(indices):
                reordered.append(name)
            dropped = tuple(sorted(set(range(whole.shape[dim])) - set(indices)))
            if dropped:
                cuts.append(TensorCut(name, dim, whole.shape[dim], dropped))
    return Plan(cuts=tuple(cuts)), reordered


def untie(model: nn.Module) -> nn.Module:
    """A copy in which every name has a parameter of its own: a tool may have cut what was shared in two ways."""
    twin = copy.deepcopy(model)
    seen: set[int] = set()
    for name, parameter in list(twin.named_parameters(remove_duplicate=False)):
        if id(parameter) in seen:
            path, _, attribute = name.rpartition(".")
            parameter = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            setattr(twin.get_submodule(path), attribute, parameter)
        seen.add(id(parameter))
    return twin


def judge(
    model: nn.Module, inputs: Any, pruned: Mapping[str, Tensor], outputs: Sequence[Tensor], tolerance: float = TOLERANCE
) -> Verdict:
    """Compares a pruned network with the original without what was removed.

    Args:
        model: The original network.
        inputs: Its example inputs; the reference and the pruned network run on ``random_inputs(inputs, 0, float64)``.
        pruned: The pruned network's parameters and buffers by name.
        outputs: What it gave, in double precision.
        tolerance: The largest difference that is taken for rounding, relative to the largest value.
    """
    twin = untie(model)
    names = [*twin.named_parameters(remove_duplicate=False), *twin.named_buffers(remove_duplicate=False)]
    original = {name: tensor.detach() for name, tensor in names}
    try:
        plan, reordered = make_plan(original, pruned, _grouped_weights(twin))
    except UnlikeError as error:
        return Verdict("wrong", None, str(error))
    note = f"{reordered[0]} is in another order" if reordered else ""
    if all(torch.equal(original[name], pruned[name]) for name in original):
        return Verdict("left alone")
    try:
        reference = compute_reference(twin, plan, inputs).runs[0][2]
    except CleanAIError as error:
        return Verdict("wrong", None, f"no network is left by this cut: {error}"[:300])
    difference = measure_difference(outputs, reference)
    if difference > tolerance and _follow_scales(twin, pruned):
        followed = measure_difference(outputs, compute_reference(twin, plan, inputs).runs[0][2])
        if followed <= tolerance:
            note = "; ".join(filter(None, (note, "the scale of the attention follows its smaller heads")))
            return Verdict("equal", followed, note)
    return Verdict("equal" if difference <= tolerance else "wrong", difference, note)


def _follow_scales(model: nn.Module, pruned: Mapping[str, Tensor]) -> bool:
    """Gives every `nn.MultiheadAttention` whose heads got narrower the scale of its new width; False if there is none.

    The module divides by the root of its heads' width as it is. A cut that keeps all heads and takes dimensions from
    each thus changes the scale as well: not what removing them from the original gives, and yet no mistake of slicing.
    """
    changed = False
    for path, module in model.named_modules():
        weight = pruned.get(f"{path}.in_proj_weight")
        if not isinstance(module, nn.MultiheadAttention) or weight is None:
            continue
        width = module.in_proj_weight.shape[0] // 3
        ratio = (width / (weight.shape[0] / 3)) ** 0.5
        if ratio != 1:
            changed = True
            with torch.no_grad():
                module.in_proj_weight[:width] *= ratio
                module.in_proj_bias[:width] *= ratio
    return changed


def _grouped_weights(model: nn.Module) -> dict[str, Tensor]:
    modules = ((path, module) for path, module in model.named_modules() if getattr(module, "groups", 1) != 1)
    return {f"{path}.weight": module.weight for path, module in modules if isinstance(module, nn.modules.conv._ConvNd)}


def measure_difference(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest difference relative to the largest value; infinite where shapes differ or something is missing.

    Example:
        >>> measure_difference([torch.ones(2)], [torch.ones(3)])
        inf
    """
    if len(outputs) != len(reference):
        return float("inf")
    worst = 0.0
    for ours, theirs in zip(outputs, reference, strict=True):
        if ours.shape != theirs.shape or not bool(theirs.isfinite().all()):
            return float("inf")
        scale = float(theirs.abs().max()) if theirs.numel() else 1.0
        error = float((ours - theirs).abs().max()) / (scale or 1.0) if theirs.numel() else 0.0
        worst = max(worst, error if error == error else float("inf"))
    return worst
