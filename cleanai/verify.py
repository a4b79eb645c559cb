"""The proof: a pruned model equals the original with the dropped channels taken out of its arithmetic.

The reference knows nothing of tracing, coupling or slicing. It runs the *original* model with every dropped slice of
every parameter set to "does not exist" (NaN) under arithmetic that skips what does not exist: sums and products leave
it out, statistics (LayerNorm, softmax, mean, norm) are computed over what is left, everything else carries it along.
This equals zeroing the dropped slices wherever a zero contributes nothing, and is what slicing means where it does not.
A dropped block runs as ever, but hands on what it was given in place of its result.
A cut that takes an index from one place and not from its partner lets NaN into a kept value, or leaves a term in:
either way the two outputs differ. The proof runs on the model's own weights and once more on random ones.
"""

from __future__ import annotations

import math
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from cleanai.checks import check_count, check_model
from cleanai.errors import InputError, PlanError, VerificationError
from cleanai.inputs import call_model, map_tensors, output_tensors
from cleanai.isolation import StateTensor, drop_caches, list_state, preserve_model, seed_random_state
from cleanai.masking import ProofArithmetic, is_whole
from cleanai.plan import Plan, TensorCut
from cleanai.slicing import check_plan, slice_model
from cleanai.trace import ForwardFunction, leaves_of, set_training_of_containers

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}


@dataclass(frozen=True)
class Verification:
    """The result of a proof: the largest difference between two outputs, relative to the largest reference value.

    Attributes:
        passed: whether that is within the tolerance, and every kept tensor holds what the plan keeps.
        max_relative_error: max ``|y' - y|`` / max ``|y|``, over all outputs and inputs; infinite where shapes differ.
        tolerance: 1e-9 in float64, 1e-4 in float32.
        dtype: the precision in which it was computed: "float64", or "float32" where the forward insists on it.
        runs: how many random inputs were used; each with the model's own weights and with random ones.
        seconds: how long it took.
        note: what is wrong beyond a difference, if anything.

    Example:
        >>> from cleanai import StructuredPruner
        >>> pruner = StructuredPruner(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 3))
        >>> _ = pruner.prune()
        >>> proof = pruner.verification
        >>> proof.passed, proof.dtype, proof.max_relative_error <= proof.tolerance
        (True, 'float64', True)
    """

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
        drop_caches(model)
        for state in list_state(model):
            tensor = state.tensor.detach().clone()
            if not is_whole(tensor):
                tensor = tensor.to(dtype.to_complex() if tensor.is_complex() else dtype)
                own = cuts.get(state.name, [])
                if how.perturbed:
                    tensor = _perturb(state, tensor, own if already_cut else [])
                tensor = drop_indices(tensor, own) if masked else tensor
            # Differentiable parameters keep torch from switching to fused kernels that hide their arithmetic.
            tensor = nn.Parameter(tensor, not is_whole(tensor)) if state.is_parameter else tensor
            names[id(tensor)] = state.name
            for place in state.places:
                place.put(tensor)
        for path in plan.dropped_blocks if masked else ():
            pass_by(model.get_submodule(path))
        if change is not None:
            change(model)
        seed_random_state(seed)
        with torch.enable_grad(), ProofArithmetic(dtype, masked, how.perturbed):
            own_inputs = map_tensors(torch.Tensor.clone, inputs)  # a forward may write to them
            output = call_model(model, own_inputs, forward_fn)
            output = output_transform(output) if output_transform is not None else output
        tensors = output_tensors(output)
        used = {names[leaf] for leaf in leaves_of(tensors) if leaf in names}
        return [tensor.detach() for tensor in tensors], used


def drop_indices(tensor: Tensor, cuts: Sequence[TensorCut]) -> Tensor:
    """A tensor whose dropped indices do not exist (NaN); the same object where nothing is dropped."""
    for cut in cuts:
        # int64 also where a cut drops nothing
        tensor = tensor.index_fill(
            cut.dim, torch.tensor(cut.dropped, dtype=torch.int64, device=tensor.device), math.nan
        )
    return tensor


def pass_by(block: nn.Module) -> None:
    """Makes a block return, in place of the first floating-point tensor of its output, the first one it was given."""
    given: list[Tensor] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def keep(value: Any) -> Any:
            if given or not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            given.append(value)
            return value.clone()  # the block may write to what it is given

        given.clear()
        return tuple(keep(value) for value in args), {name: keep(value) for name, value in kwargs.items()}

    def leave(_: nn.Module, args: Any, output: Any) -> Any:
        def swap(tensor: Tensor) -> Tensor:
            return given.pop() if given and tensor.is_floating_point() else tensor

        return map_tensors(swap, output)

    block.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
    block.register_forward_hook(leave)


def _perturb(state: StateTensor, tensor: Tensor, cuts: Sequence[TensorCut]) -> Tensor:
    """Random values for a parameter or a running statistic; a tensor that was cut gets those of its kept indices.

    A trained model may hide a wrong cut behind weights that are zero or all equal (a head initialised to zero, a norm
    that was never trained). Random weights hide nothing.
    """
    if not state.is_parameter and not state.is_statistic:
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
    hollow = next((state.name for state in list_state(model) if state.tensor.is_meta), None)
    if hollow is not None:
        raise InputError(
            f"{hollow} is on the meta device and has no values that a proof could compare: load the weights first, or "
            "leave the proof out (verify=False)"
        )
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
    gone = plan.dropped_blocks if plan is not None else ()
    sums = {}
    for state in list_state(model):
        if state.kind in ("attribute", "item") or any(state.name.startswith(f"{path}.") for path in gone):
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
        if is_whole(theirs) or not theirs.numel():
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

    The original runs in arithmetic in which the dropped indices do not exist, on random inputs, with its own weights
    and with random ones; `StructuredPruner.prune` does it after every cut. It speaks of the cut: a model that was
    trained since is another model.

    Args:
        original: the model before the cut.
        pruned: the model after it.
        plan: what was cut, in the original model's numbering.
        example_inputs: what the models are called with; floating-point tensors are replaced by random ones.
        forward_fn: ``forward_fn(model, inputs)`` in place of ``model(inputs)``.
        output_transform: picks the part of the output that counts.
        runs: how many random inputs.
        seed: of those inputs.

    Returns:
        The result; its ``passed`` is False where the outputs differ by more than the tolerance (1e-9 relative in
        float64; 1e-4 in float32 where the forward cannot run in float64), or where a tensor of the pruned model holds
        other values than the plan keeps.

    Raises:
        InputError: an argument that cannot be used.
        PlanError: the plan does not fit the original.
        VerificationError: the original could not be run for the proof.

    Example:
        >>> from cleanai.plan import TensorCut
        >>> import copy
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> places = (("0.weight", 0), ("0.bias", 0), ("2.weight", 1))
        >>> plan = Plan(cuts=tuple(TensorCut(name, dim, 4, (1,)) for name, dim in places))
        >>> pruned = slice_model(copy.deepcopy(net), plan)
        >>> verify_pruning(net, pruned, plan, torch.randn(1, 3)).passed
        True
        >>> wrong = Plan(cuts=tuple(TensorCut(name, dim, 4, (index,)) for (name, dim), index in zip(places, (1, 1, 2))))
        >>> verify_pruning(net, slice_model(copy.deepcopy(net), wrong), wrong, torch.randn(1, 3)).passed
        False
    """
    check_model(pruned)
    check_plan(original, plan)
    check_count(runs, "runs")
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
