"""The proof: a pruned model equals the original with the dropped channels taken out of its arithmetic.

The reference knows nothing of tracing, coupling or slicing. It runs the *original* model with every dropped slice of
every parameter set to "does not exist" (NaN) under arithmetic that skips what does not exist: sums and products leave
it out, statistics (LayerNorm, GroupNorm, mean, norm) are computed over what is left, everything else carries it along.
This equals zeroing the dropped slices wherever a zero contributes nothing, and is what slicing means where it does not.
A cut that takes an index from one place and not from its partner lets NaN into a kept value, or leaves a term in:
either way the two outputs differ. The proof runs on the model's own weights and once more on random ones.
"""

from __future__ import annotations

import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cleanai.errors import PlanError, VerificationError
from cleanai.inputs import call_model, map_tensors, output_tensors
from cleanai.isolation import StateTensor, list_state, preserve_model, seed_random_state, store_tensor
from cleanai.plan import Plan, TensorCut
from cleanai.slicing import slice_model
from cleanai.trace import ForwardFunction, leaves_of, set_training_of_containers

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
aten = torch.ops.aten


@dataclass(frozen=True)
class Verification:
    """The result of a proof: the largest difference between two outputs, relative to the largest reference value."""

    passed: bool
    max_relative_error: float
    tolerance: float
    dtype: str
    runs: int
    seconds: float
    note: str = ""

    def __str__(self) -> str:
        verdict = "equal" if self.passed else "NOT equal"
        return (
            f"{verdict} to the masked original: largest relative difference {self.max_relative_error:.1e} "
            f"(tolerance {self.tolerance:.0e}, {self.dtype}, {self.runs} random input(s))"
            f"{'; ' + self.note if self.note else ''}"
        )


# ------------------------------------------------------------------------------- arithmetic that skips the missing


def _missing(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Where everything along some dimensions is NaN (dimensions kept)."""
    gone = tensor.isnan()
    for dim in dims:
        gone = gone.all(dim=dim, keepdim=True)
    return gone


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` for matrices or batches of them, over the indices that exist in both."""
    rows, inner_a = _missing(a, [-1]), _missing(a, [-2])
    inner_b, columns = _missing(b, [-1]), _missing(b, [-2])
    result = torch.matmul(a.masked_fill(rows | inner_a, 0.0), b.masked_fill(inner_b | columns, 0.0))
    nothing = (inner_a | inner_b.transpose(-1, -2)).all(dim=-1, keepdim=True)
    return result.masked_fill(rows | columns | nothing, float("nan"))


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *rest: Any,
) -> Tensor:
    output_padding, groups = rest
    spatial = list(range(2, x.dim()))
    gone = _missing(x, [0, *spatial])
    present = (~_missing(weight, spatial)).to(x.dtype)
    if transposed:
        rows, columns = _missing(weight, [1, *spatial]), _missing(weight, [0, *spatial])
    else:
        rows, columns = _missing(weight, [1, *spatial]), _missing(weight, [0, *spatial])
    clean = weight.masked_fill(rows | columns | _missing(weight, spatial), 0.0)
    result = aten.convolution(
        x.masked_fill(gone, 0.0), clean, bias, stride, padding, dilation, transposed, output_padding, groups
    )
    # An output channel exists if any of its terms does: the same convolution on points instead of planes.
    exists = torch.ones_like(gone, dtype=x.dtype).masked_fill(gone, 0.0)
    ones = [1] * len(spatial)
    zeros = [0] * len(spatial)
    terms = aten.convolution(exists, present, None, ones, zeros, ones, transposed, zeros, groups)
    return result.masked_fill(terms == 0, float("nan"))


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    product = _matmul(a, b) * alpha
    return product if beta == 0 else product + bias * beta


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    if key.shape[:-2] != query.shape[:-2]:  # fewer key than query heads
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    scores = _matmul(query, key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    if attn_mask is not None:
        scores = scores + attn_mask
    return _matmul(torch.softmax(scores, dim=-1), value)


def _flash_attention_for_cpu(
    query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    output = _attention(query, key, value, *args, **kwargs)
    return output, output.new_zeros(query.shape[:-1])


def _dims(tensor: Tensor, dim: Any) -> list[int]:
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(tensor.dim()))
    return [d % tensor.dim() for d in ([dim] if isinstance(dim, int) else dim)]


def _sum(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    dims = _dims(x, dim)
    total = torch.where(x.isnan(), 0.0, x).sum(dim=dims, keepdim=True)
    total = total.masked_fill(_missing(x, dims), float("nan"))
    total = total if keepdim else total.squeeze(dims)
    return total if dtype is None else total.to(dtype)


def _count(x: Tensor, dims: Sequence[int]) -> Tensor:
    return (~x.isnan()).to(x.dtype).sum(list(dims), keepdim=True)


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    dims = _dims(x, dim)
    mean = _sum(x, dims, True) / _count(x, dims)
    mean = mean if keepdim else mean.squeeze(dims)
    return mean if dtype is None else mean.to(dtype)


def _variance(x: Tensor, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Tensor:
    dims = _dims(x, dim)
    squares = _sum((x - _mean(x, dims, True)) ** 2, dims, True)
    variance = squares / (_count(x, dims) - (1 if correction is None else correction))
    return variance if keepdim else variance.squeeze(dims)


def _deviation(x: Tensor, dim: Any = None, **kwargs: Any) -> Tensor:
    return _variance(x, dim, **kwargs).sqrt()


def _variance_and_mean(x: Tensor, dim: Any = None, *, keepdim: bool = False, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return _variance(x, dim, keepdim=keepdim, **kwargs), _mean(x, dim, keepdim)


def _vector_norm(x: Tensor, order: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    dims = _dims(x, dim)
    clean = torch.where(x.isnan(), 0.0, x)
    norm = torch.linalg.vector_norm(clean, order, dims, True).masked_fill(_missing(x, dims), float("nan"))
    return norm if keepdim else norm.squeeze(dims)


def _extreme(fill: float) -> Callable[..., Tensor]:
    def extreme(x: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
        dims = _dims(x, dim)
        clean = torch.where(x.isnan(), fill, x)
        best = clean.amax(dims, True) if fill < 0 else clean.amin(dims, True)
        best = best.masked_fill(_missing(x, dims), float("nan"))
        return best if keepdim else best.squeeze(dims)

    return extreme


def _logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    dims = _dims(x, dim)
    total = torch.logsumexp(torch.where(x.isnan(), float("-inf"), x), dims, True)
    total = total.masked_fill(_missing(x, dims), float("nan"))
    return total if keepdim else total.squeeze(dims)


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dims = list(range(x.dim() - len(shape), x.dim()))
    mean = _mean(x, dims, True)
    scale = torch.rsqrt(_variance(x, dims, correction=0, keepdim=True) + eps)
    output = (x - mean) * scale
    output = output if weight is None else output * weight
    return (output if bias is None else output + bias), mean, scale


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None) -> tuple[Tensor, Tensor]:
    dims = list(range(x.dim() - len(shape), x.dim()))
    scale = torch.rsqrt(_mean(x * x, dims, True) + (torch.finfo(x.dtype).eps if eps is None else eps))
    output = x * scale
    return (output if weight is None else output * weight), scale


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, hxw: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    split = x.reshape(n, groups, -1)
    mean = _mean(split, -1, True)
    scale = torch.rsqrt(_variance(split, -1, correction=0, keepdim=True) + eps)
    output = ((split - mean) * scale).reshape(x.shape)
    per_channel = (1, c) + (1,) * (x.dim() - 2)
    output = output if weight is None else output * weight.reshape(per_channel)
    output = output if bias is None else output + bias.reshape(per_channel)
    return output, mean.squeeze(-1), scale.squeeze(-1)


_RULES: dict[Any, Callable[..., Any]] = {
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.mv.default: lambda a, b: _matmul(a, b[:, None])[:, 0],
    aten.dot.default: lambda a, b: _matmul(a[None], b[:, None])[0, 0],
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
    aten.convolution.default: _convolution,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _flash_attention_for_cpu,
    aten.sum.dim_IntList: _sum,
    aten.sum.default: _sum,
    aten.mean.dim: _mean,
    aten.mean.default: _mean,
    aten.var.correction: _variance,
    aten.std.correction: _deviation,
    aten.var_mean.correction: _variance_and_mean,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.norm.ScalarOpt_dim: _vector_norm,
    aten.norm.Scalar: _vector_norm,
    aten.amax.default: _extreme(float("-inf")),
    aten.amin.default: _extreme(float("inf")),
    aten.logsumexp.default: _logsumexp,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
}
if hasattr(aten, "_fused_rms_norm"):
    _RULES[aten._fused_rms_norm.default] = _rms_norm


def _leaky(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.where(x > 0, x, 0.3 * x)


def _in_place(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, *args, **kwargs: x.copy_(function(x, *args, **kwargs))


# Activations that are flat somewhere: a unit that is dead there on the proof's few inputs would hide a wrong cut of it.
_FLAT = (aten.relu, aten.threshold, aten.hardtanh, aten.hardswish, aten.hardsigmoid, aten.relu6)
_NEVER_FLAT: dict[Any, Callable[..., Any]] = {
    **{packet.default: _leaky for packet in _FLAT if hasattr(packet, "default")},
    **{
        packet.default: _in_place(_leaky)
        for packet in (aten.relu_, aten.threshold_, aten.hardtanh_, aten.hardswish_, aten.hardsigmoid_, aten.relu6_)
        if hasattr(packet, "default")
    },
}

# Dropout that a forward insists on would draw other numbers for the smaller tensors.
_NO_DROPOUT: dict[Any, Callable[..., Any]] = {
    aten.bernoulli_.float: lambda x, p=0.5, **_: x.fill_(p),
    aten.native_dropout.default: lambda x, *_: (x.clone(), torch.ones_like(x, dtype=torch.bool)),
}


class _ProofArithmetic(TorchDispatchMode):
    """The arithmetic of a proof: without dropout, on request skipping what does not exist, or never flat."""

    def __init__(self, masked: bool, perturbed: bool) -> None:
        super().__init__()
        self._rules = {**_NO_DROPOUT, **(_RULES if masked else {}), **(_NEVER_FLAT if perturbed else {})}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = self._rules.get(func)
        first = next((value for value in args if isinstance(value, Tensor)), None)
        if rule is not None and first is not None and first.is_floating_point():
            return rule(*args, **kwargs)
        return func(*args, **kwargs)


# ------------------------------------------------------------------------------------------------------- the proof


def random_inputs(example_inputs: Any, seed: int, dtype: torch.dtype) -> Any:
    """Inputs like the example's: floating-point tensors drawn from a normal distribution, everything else as it is."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator, dtype=dtype).to(tensor.device)

    return map_tensors(draw, example_inputs)


@dataclass(frozen=True)
class _Pass:
    """One way of running the model for the proof: random weights or its own, training-mode branches or not."""

    perturbed: bool
    training: bool = False


def _run(
    model: nn.Module,
    inputs: Any,
    dtype: torch.dtype,
    plan: Plan,
    how: _Pass,
    *,
    masked: bool,
    forward_fn: ForwardFunction | None = None,
    output_transform: Callable[[Any], Any] | None = None,
    change: Callable[[nn.Module], Any] | None = None,
    seed: int = 0,
) -> tuple[list[Tensor], set[str]]:
    """The outputs of a model in another precision, and the names of the parameters they depend on.

    ``masked``: it is the original, and runs without the plan's slices; otherwise it is (or ``change`` makes it) the
    pruned model.
    """
    cuts: dict[str, list[TensorCut]] = {}
    for cut in plan.cuts:
        cuts.setdefault(cut.parameter, []).append(cut)
    already_cut = not masked and change is None
    names: dict[int, str] = {}
    with preserve_model(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in model.modules():
            module.training = False
        if how.training:
            set_training_of_containers(model)
        for state in list_state(model):
            tensor = state.tensor.detach().clone()
            if tensor.is_floating_point():
                tensor = tensor.to(dtype)
                own = cuts.get(state.name, [])
                if how.perturbed:
                    tensor = _perturb(state, tensor, own if already_cut else [])
                for cut in own if masked else ():
                    tensor.index_fill_(cut.dim, torch.tensor(cut.dropped, device=tensor.device), float("nan"))
            kind = state.places[0][2]
            # Differentiable parameters keep torch from switching to fused kernels that hide their arithmetic.
            tensor = nn.Parameter(tensor, tensor.is_floating_point()) if kind == "parameter" else tensor
            names[id(tensor)] = state.name
            for module, attribute, place in state.places:
                store_tensor(module, attribute, place, tensor)
        if change is not None:
            change(model)
        seed_random_state(seed)
        with torch.enable_grad(), _ProofArithmetic(masked, how.perturbed):
            own_inputs = map_tensors(torch.Tensor.clone, inputs)  # a forward may write to them
            output = call_model(model, own_inputs, forward_fn)
            output = output_transform(output) if output_transform is not None else output
        tensors = output_tensors(output)
        used = {names[leaf] for leaf in leaves_of(tensors) if leaf in names}
        return [tensor.detach() for tensor in tensors], used


def _perturb(state: StateTensor, tensor: Tensor, cuts: Sequence[TensorCut]) -> Tensor:
    """Random values for a parameter or a running statistic; a tensor that was cut gets those of its kept indices.

    A trained model may hide a wrong cut behind weights that are zero or all equal (a head initialised to zero, a norm
    that was never trained). Random weights hide nothing.
    """
    if state.places[0][2] != "parameter" and not state.is_statistic:
        return tensor
    shape = list(tensor.shape)
    for cut in cuts:
        shape[cut.dim] = cut.size
    generator = torch.Generator().manual_seed(zlib.crc32(state.name.encode()))
    fan = max(1, prod(shape[1:]))
    if state.name.endswith("running_var"):
        values = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
    elif len(shape) < 2:  # scales and biases
        values = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.25
    else:
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * fan**-0.5
    for cut in cuts:
        values = values.index_select(cut.dim, torch.tensor(cut.kept))
    return values.to(tensor)


@dataclass
class Reference:
    """What a pruned model must return: the inputs, how it is run, and the outputs of the original without the dropped.

    Every input is used with the model's own weights and with random ones, and once more in the training-mode branches
    where the plan cuts parameters that only those use. ``values`` are checksums of what each tensor must hold: weights
    that are zero or equal would hide a tensor that was sliced unlike the plan.
    """

    plan: Plan
    values: dict[str, int]
    runs: list[tuple[Any, _Pass, list[Tensor]]]
    dtype: torch.dtype
    inputs: int
    seconds: float


def compute_reference(
    model: nn.Module,
    plan: Plan,
    example_inputs: Any,
    *,
    forward_fn: ForwardFunction | None = None,
    output_transform: Callable[[Any], Any] | None = None,
    runs: int = 1,
    seed: int = 0,
) -> Reference:
    """The outputs of the original model without the dropped slices, on random inputs, in float64 where it can."""
    start = time.perf_counter()
    options: dict[str, Any] = {"forward_fn": forward_fn, "output_transform": output_transform, "seed": seed}
    failure: Exception | None = None
    for dtype in TOLERANCES:
        inputs = [random_inputs(example_inputs, seed + run, dtype) for run in range(runs)]
        try:
            results = _run_original(model, plan, inputs, dtype, options)
        except (RuntimeError, ValueError, TypeError) as error:  # a forward that insists on its own precision
            failure = error
            continue
        values = _checksums(model, plan)
        return Reference(plan, values, results, dtype, runs, time.perf_counter() - start)
    raise VerificationError(f"the original model could not be run for the proof: {failure}") from failure


def _run_original(
    model: nn.Module, plan: Plan, inputs: Sequence[Any], dtype: torch.dtype, options: dict[str, Any]
) -> list[tuple[Any, _Pass, list[Tensor]]]:
    results = []
    used: set[str] = set()
    for each in inputs:
        for how in (_Pass(perturbed=False), _Pass(perturbed=True)):
            outputs, names = _run(model, each, dtype, plan, how, masked=True, **options)
            results.append((each, how, outputs))
            used |= names
    parameters = {name for name, _ in model.named_parameters()}
    if any(cut.parameter in parameters and cut.parameter not in used for cut in plan.cuts):
        how = _Pass(perturbed=True, training=True)
        outputs, _ = _run(model, inputs[0], dtype, plan, how, masked=True, **options)
        results.append((inputs[0], how, outputs))
    return results


def _checksums(model: nn.Module, plan: Plan | None = None) -> dict[str, int]:
    """A checksum of each parameter and buffer, of the indices that a plan keeps if there is one."""
    cuts: dict[str, list[TensorCut]] = {}
    for cut in plan.cuts if plan is not None else ():
        cuts.setdefault(cut.parameter, []).append(cut)
    sums = {}
    for state in list_state(model):
        if state.places[0][2] == "attribute":
            continue
        tensor = state.tensor.detach().cpu()
        for cut in cuts.get(state.name, ()):
            tensor = tensor.index_select(cut.dim, torch.tensor(cut.kept))
        sums[state.name] = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sums


def _relative_difference(result: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    if len(result) != len(reference):
        return float("inf")
    worst = 0.0
    for ours, theirs in zip(result, reference, strict=True):
        if ours.shape != theirs.shape:
            return float("inf")
        if not theirs.is_floating_point() or not theirs.numel():
            continue
        same = ours == theirs  # infinities of the original (masks) must be the same infinities
        difference = torch.where(same, 0.0, (ours - theirs).abs().double())
        finite = theirs[theirs.isfinite()]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        error = float(difference.max())
        if error != error or error == float("inf"):
            return float("inf")
        worst = max(worst, error / scale if scale else error)
    return worst


def compare_with_reference(
    pruned: nn.Module,
    reference: Reference,
    *,
    forward_fn: ForwardFunction | None = None,
    output_transform: Callable[[Any], Any] | None = None,
    change: Callable[[nn.Module], Any] | None = None,
    seed: int = 0,
) -> Verification:
    """How far a pruned model is from its reference; never raises for a difference."""
    start = time.perf_counter()
    options: dict[str, Any] = {"forward_fn": forward_fn, "output_transform": output_transform, "seed": seed}
    with preserve_model(pruned):
        if change is not None:
            change(pruned)
        sums = _checksums(pruned)
    unlike = [name for name, value in reference.values.items() if sums.get(name) != value]
    note = f"{unlike[0]} does not hold the values that the plan keeps" if unlike else ""
    worst = float("inf") if unlike else 0.0
    for inputs, how, outputs in [] if unlike else reference.runs:
        result, _ = _run(pruned, inputs, reference.dtype, reference.plan, how, masked=False, change=change, **options)
        worst = max(worst, _relative_difference(result, outputs))
    tolerance = TOLERANCES[reference.dtype]
    seconds = reference.seconds + time.perf_counter() - start
    name = str(reference.dtype).removeprefix("torch.")
    return Verification(worst <= tolerance, worst, tolerance, name, reference.inputs, seconds, note)


def verify_pruning(
    original: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    example_inputs: Any,
    *,
    forward_fn: ForwardFunction | None = None,
    output_transform: Callable[[Any], Any] | None = None,
    runs: int = 1,
    seed: int = 0,
) -> Verification:
    """Proves that a pruned model equals the original without what the plan drops; both models are left as they are.

    Returns a `Verification`; its ``passed`` is False where they differ by more than the tolerance (1e-9 relative in
    float64; 1e-4 in float32 where the forward cannot run in float64), or where a tensor of the pruned model holds other
    values than the plan keeps. It speaks of the cut: a model that was trained since is another model.

    Example:
        >>> from cleanai.plan import TensorCut
        >>> import copy
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> places = (("0.weight", 0), ("0.bias", 0), ("2.weight", 1))
        >>> plan = Plan(cuts=tuple(TensorCut(name, dim, 4, (1,)) for name, dim in places))
        >>> pruned = slice_model(copy.deepcopy(net), plan)
        >>> verify_pruning(net, pruned, plan, torch.randn(1, 3)).passed
        True
    """
    options: dict[str, Any] = {"forward_fn": forward_fn, "output_transform": output_transform, "seed": seed}
    reference = compute_reference(original, plan, example_inputs, runs=runs, **options)
    return compare_with_reference(pruned, reference, **options)


def try_plan(model: nn.Module, plan: Plan, example_inputs: Any, **options: Any) -> Verification:
    """The proof of a plan on a stand-in for the model, which is not changed."""
    reference = compute_reference(model, plan, example_inputs, **options)
    try:
        return compare_with_reference(model, reference, change=lambda stand_in: slice_model(stand_in, plan), **options)
    except (RuntimeError, PlanError):
        name = str(reference.dtype).removeprefix("torch.")
        return Verification(False, float("inf"), TOLERANCES[reference.dtype], name, 0, reference.seconds)
