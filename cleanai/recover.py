"""Recovery without training: what a cut broke is repaired in closed form, from unlabelled calibration data.

Block after block, from front to back: each layer's weights are solved anew by least squares, so that from what it reads
in the *pruned* network it makes what it made in the *original* one (He et al., "Channel Pruning for Accelerating Very
Deep Neural Networks", 2017, with the asymmetric target of Zhang et al., 2016); then a few Gauss-Newton steps bring the
output of the whole block closer to the original block's. Since the block's input is the pruned network's, the
residual stream's earlier losses are made up for on the way.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from cleanai.calibration import (
    ChannelStatistics,
    count_samples,
    device_of,
    draw_batches,
    move_tensors,
    select_inputs,
)
from cleanai.checks import check_count, suggest_names
from cleanai.coupling import Coupling
from cleanai.errors import InputError
from cleanai.gauss_newton import NoDerivativeError, Sample, measure_error, refine_block
from cleanai.inputs import call_model, first_tensor, map_tensors
from cleanai.isolation import evaluation_mode, list_state, preserve_model, preserve_random_state, share_tensors
from cleanai.layers import channel_dim, prepare_layers
from cleanai.lockstep import Lockstep, explain_errors
from cleanai.matrices import LayerMatrix, Moments, sum_products
from cleanai.plan import Plan
from cleanai.stages import Call, find_norms, list_stages, run_block
from cleanai.steps import all_or_nothing
from cleanai.trace import ForwardFunction

METHODS: tuple[str, ...] = ("none", "batchnorm", "bias", "least_squares")


@dataclass(frozen=True)
class RepairedBlock:
    """One block's repair.

    Attributes:
        path: of the block.
        layers: the paths of the layers in it that were solved anew.
        before, after: the squared errors of its output against the original network's, on batches that the repair did
            not see, in shares of the output's variance.
        steps: how many Gauss-Newton steps were taken.
        note: what was special.
    """

    path: str
    layers: tuple[str, ...]
    before: float
    after: float
    steps: int = 0
    note: str = ""


@dataclass(frozen=True)
class Recovery:
    """What a repair did: the method, how many samples it saw, each block, and the layers it left as they were (why).

    Attributes:
        method: "none", "batchnorm", "bias" or "least_squares".
        samples: how many rows of calibration data it saw.
        seconds: how long it took.
        blocks: one record per repaired block: ``path``, ``layers``, the errors ``before`` and ``after`` in shares of
            the output's variance, and the Gauss-Newton ``steps``.
        skipped: {layer: why it was left as it was sliced}.

    Example:
        >>> from cleanai import StructuredPruner
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> pruner = StructuredPruner(net, torch.randn(1, 8), pruning_ratio=0.25, recover="least_squares")
        >>> _ = pruner.collect_activations(torch.randn(256, 8).split(32), progress=False)
        >>> _ = pruner.prune()
        >>> pruner.recovery.method, pruner.recovery.samples, pruner.recovery.skipped
        ('least_squares', 256, {})
        >>> all(block.after < block.before for block in pruner.recovery.blocks)
        True
    """

    method: str
    samples: int
    seconds: float
    blocks: tuple[RepairedBlock, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __repr__(self) -> str:
        return (
            f"Recovery({self.method}, {len(self.blocks)} repaired, {len(self.skipped)} skipped, {self.samples} samples)"
        )


def check_method(method: str) -> str:
    """The name of a way of recovery, or a clear error."""
    if method not in METHODS:
        hint = suggest_names(method, METHODS)
        raise InputError(f"recover is {method!r}; use {', '.join(map(repr, METHODS[:-1]))} or {METHODS[-1]!r}{hint}")
    return method


def recover_model(
    original: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    coupling: Coupling,
    loader: Iterable[Any],
    example_inputs: Any,
    *,
    method: str = "least_squares",
    num_batches: int | None = None,
    forward_fn: ForwardFunction | None = None,
    refine_steps: int = 2,
    progress: bool | None = None,
) -> Recovery:
    """Repairs a pruned model in place from unlabelled data, without training.

    ``StructuredPruner(…, recover="least_squares")`` does it after the proof. With "least_squares" each layer's weights
    W, which the cut left as W₀, become ``argmin_W ‖W [x; 1] - y‖² + λ ‖W - W₀‖²``, where x is what the layer reads in
    the pruned network and y what it made in the original one (He et al., "Channel Pruning for Accelerating Very Deep
    Neural Networks", 2017); then a few Gauss-Newton steps bring each block's output closer to the original's.

    Args:
        original: the model before the cut; left as it was.
        pruned: the model after the cut, which is repaired.
        plan: what was cut, in the original model's numbering.
        coupling: the original model's groups: ``pruner.analysis.coupling``.
        loader: calibration data; labels are left out. It is held in memory, with what is alive between two blocks.
        example_inputs: tells how many of a batch's tensors are inputs.
        method: "batchnorm" (the running statistics anew, Cai et al. 2020), "bias" (each layer's mean output as in the
            original; for layers too large for moments), "least_squares", or "none".
        num_batches: at most so many batches; None for all.
        forward_fn: ``forward_fn(model, inputs)`` in place of ``model(inputs)``.
        refine_steps: at most so many Gauss-Newton steps for each block; 0 leaves the layers' own least squares.
        progress: True or False for a progress bar; None shows one on terminals.

    Returns:
        What was repaired, and how far each block's output is from the original's.

    Raises:
        InputError: an unknown method, an empty loader, or a model that cannot run on it; the model is as it was.

    Example:
        >>> import copy
        >>> from cleanai import StructuredPruner, slice_model
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> x = torch.randn(256, 8)
        >>> pruner = StructuredPruner(net, x[:1], pruning_ratio=0.25)
        >>> plan = pruner.make_plan()
        >>> small = slice_model(copy.deepcopy(net), plan)
        >>> broken = (small(x) - net(x)).square().mean()
        >>> recovery = recover_model(net, small, plan, pruner.analysis.coupling, x.split(32), x[:1], progress=False)
        >>> bool((small(x) - net(x)).square().mean() < broken)
        True
    """
    start = time.perf_counter()
    check_count(refine_steps, "refine_steps", least=0)
    if check_method(method) == "none":
        return Recovery(method, 0, 0.0)
    with preserve_random_state():  # a shuffling loader draws from it
        batches, samples = _hold_batches(loader, example_inputs, num_batches, device_of(pruned))
    if plan.is_empty:
        return Recovery(method, samples, time.perf_counter() - start)
    with contextlib.ExitStack() as stack:
        for model in (original, pruned):
            stack.enter_context(preserve_model(model))
            stack.enter_context(_preserve_buffers(model, norms=model is original))
        stack.enter_context(all_or_nothing(pruned, values=True))
        stack.enter_context(evaluation_mode(pruned))
        repair = _Repair(original, pruned, plan, coupling, batches, forward_fn, progress)
        if method == "batchnorm":
            repair.recalibrate_norms()
        elif method == "bias":
            repair.correct_biases()
        else:
            repair.reconstruct(refine_steps)
    return Recovery(method, samples, time.perf_counter() - start, tuple(repair.blocks), repair.skipped)


@contextlib.contextmanager
def _preserve_buffers(model: nn.Module, norms: bool) -> Generator[None]:
    """Puts back what forward passes write into buffers; those of BatchNorm only with ``norms``."""
    states = [state for state in list_state(model) if not state.is_parameter]
    tensors = [state.tensor for state in states if norms or not isinstance(state.places[0].module, _BatchNorm)]
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, old in kept:
                if not torch.equal(tensor, old):
                    tensor.copy_(old)


def _hold_batches(
    loader: Iterable[Any], example_inputs: Any, num_batches: int | None, device: torch.device | None
) -> tuple[list[Any], int]:
    batches = [
        move_tensors(select_inputs(batch, example_inputs), device)
        for _, batch in draw_batches(loader, num_batches, "calibration", progress=False)
    ]
    return batches, sum(map(count_samples, batches))


class Survivors:
    """Which channels of what a module returns are left after a plan."""

    def __init__(self, coupling: Coupling, plan: Plan) -> None:
        self._coupling = coupling
        self._alive = np.ones(int(coupling.class_of.max(initial=0)) + 1, bool)
        for cut in plan.cuts:
            state = coupling.context.states.get(cut.parameter)
            labels = None if state is None else state.fields.get(cut.dim)
            if labels is not None and cut.dropped:
                row = np.moveaxis(labels, cut.dim, -1).reshape(-1, labels.shape[cut.dim])
                self._alive[coupling.class_of[row[:, list(cut.dropped)]].ravel()] = False

    def pick(self, path: str, output: Tensor) -> Tensor | None:
        """The part of a module's original output that the pruned one still makes; None where that is not known."""
        labelled = self._coupling.traces[0]
        call = labelled.trace.calls.get(path)
        if call is None or call.count != 1 or call.result is None:
            return None
        value = labelled.values[call.result.operation][call.result.output]
        if len(value.shape) != output.dim():
            return None
        for axis, labels in value.fields.items():
            rows = self._alive[self._coupling.class_of[np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])]]
            if rows.all():
                continue
            if rows.shape[1] != output.shape[axis] or (rows != rows[0]).any():
                return None
            output = output.index_select(axis, torch.from_numpy(np.flatnonzero(rows[0])).to(output.device))
        return output


class _LayerReachedError(Exception):
    """Ends a block's forward once the layer in question has read its input."""


class _Repair:
    """A pruned model next to the original, with the calibration data of both."""

    def __init__(
        self,
        original: nn.Module,
        pruned: nn.Module,
        plan: Plan,
        coupling: Coupling,
        batches: list[Any],
        forward_fn: ForwardFunction | None,
        progress: bool | None,
    ) -> None:
        self.original = share_tensors(original)
        prepare_layers(self.original)
        for module in self.original.modules():
            module.training = False
        self.pruned = pruned
        self.blocks: list[RepairedBlock] = []
        self.skipped: dict[str, str] = {}
        self._trace = coupling.traces[0].trace
        self._survivors = Survivors(coupling, plan)
        self._batches, self._forward, self._progress = batches, forward_fn, progress
        self._norms = find_norms(self._trace, self.original)
        self._gone = plan.dropped_blocks
        self._cut = {cut.parameter for cut in plan.cuts if cut.dropped}
        self._shared = _list_shared(pruned)
        held = max(1, len(batches) // 8) if len(batches) > 2 else 0
        self._held_from = len(batches) - held
        self._refined: list[str] = []

    # ---------------------------------------------------------------------------------------------------- walking

    def _list_stages(self, most: int) -> list[str]:
        stages = list_stages(self.original, self._trace, most)
        covered = tuple(stages)
        for path, module in self.original.named_modules():
            if LayerMatrix.fits(module) and not any(_is_in(path, stage) for stage in covered):
                self.skipped[path] = "not called exactly once in a forward"
        here = [path for path in stages if not any(_is_in(path, block) for block in self._gone)]
        modules = dict(self.pruned.named_modules())
        return [path for path in here if path in modules]

    @contextlib.contextmanager
    def _side_by_side(self, stages: Sequence[str]) -> Generator[Callable[[str], tuple[list[Call], list[Call]]]]:
        """A function that moves both networks to a stage and returns how each batch calls it in either."""
        with (
            Lockstep(self.original, self._batches, stages, self._forward) as before,
            Lockstep(self.pruned, self._batches, stages, self._forward) as after,
        ):
            yield lambda path: (before.reach(path), after.reach(path))

    def _show(self, stages: Sequence[str]) -> Iterable[str]:
        disable = None if self._progress is None else not self._progress
        return tqdm(stages, desc="recovery", unit="block", disable=disable)

    def _run_pruned(self) -> None:
        for number, inputs in enumerate(self._batches):
            with explain_errors(number):
                call_model(self.pruned, inputs, self._forward)

    def _note_others(self) -> None:
        """Names what was cut and mixes channels, is no layer of a known kind, and no Gauss-Newton step could reach."""
        modules = dict(self.pruned.named_modules())
        for name, value in self.pruned.named_parameters():
            path = own = name.rpartition(".")[0]
            known = LayerMatrix.fits(modules[own]) or isinstance(modules[own], (nn.Embedding, nn.EmbeddingBag))
            if name not in self._cut or value.dim() < 2 or known or any(_is_in(own, each) for each in self._refined):
                continue
            while path and not channel_dim(modules[path]):  # a parametrisation stands for the layer around it
                path = path.rpartition(".")[0]
            self.skipped[path or own or name] = "its weights are not those of a plain convolution or linear layer"

    # --------------------------------------------------------------------------------------------------- BatchNorm

    @torch.no_grad()
    def recalibrate_norms(self) -> None:
        """The running statistics of every BatchNorm anew, as averages over the calibration batches."""
        norms = {
            path: module
            for path, module in self.pruned.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        }
        if not norms:
            self.skipped[""] = "the model has no BatchNorm with running statistics"
            return
        momenta = {path: norm.momentum for path, norm in norms.items()}
        try:
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum, norm.training = None, True
            self._run_pruned()
        finally:
            for path, norm in norms.items():
                norm.momentum, norm.training = momenta[path], False
        for path, norm in norms.items():
            _check_finite(norm.running_var, path)

    @torch.no_grad()
    def anchor_norms(self) -> None:
        """Running statistics of what really comes in, with scale and shift such that the function stays the same.

        Without it a network that goes on training would first lose what the repair has put into its weights, because
        BatchNorm then uses the batch's statistics.
        """
        seen: dict[str, ChannelStatistics] = {}
        hooks = []
        for path, norm in self.pruned.named_modules():
            if (
                isinstance(norm, _BatchNorm)
                and norm.running_mean is not None
                and norm.affine
                and self._is_own(norm.weight)
            ):

                def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
                    given = first_tensor(args, kwargs)
                    if given is not None:
                        statistics = ChannelStatistics.of(given, 1)
                        seen[path] = seen[path].merge(statistics) if path in seen else statistics

                hooks.append(norm.register_forward_pre_hook(note, with_kwargs=True))
        try:
            self._run_pruned()
        finally:
            for hook in hooks:
                hook.remove()
        for path, statistics in seen.items():
            norm: Any = self.pruned.get_submodule(path)
            mean, variance = statistics.mean.to(norm.running_mean), statistics.deviation.square().to(norm.running_var)
            old = (norm.running_var + norm.eps).rsqrt()
            norm.bias += norm.weight * (mean - norm.running_mean) * old
            norm.weight *= (variance + norm.eps).sqrt() * old
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)

    # -------------------------------------------------------------------------------------------------------- biases

    @torch.no_grad()
    def correct_biases(self) -> None:
        """Moves every layer's mean output to where it was in the original network."""
        stages = self._list_stages(most=1)
        with self._side_by_side(stages) as reach:
            for path in self._show(stages):
                before, after = reach(path)
                layer = self.pruned.get_submodule(path)
                target = self._mean_output(self.original.get_submodule(path), path, before, self._survivors)
                made = self._mean_output(layer, path, after, None)
                if target is None or made is None or target.shape != made.shape:
                    self.skipped[path] = "its kept channels are not known"
                elif not self._shift(path, layer, _check_finite(target - made, path)):
                    self.skipped[path] = "it has no bias, and no BatchNorm follows"
                else:
                    self.blocks.append(RepairedBlock(path, (path,), *_share_of(target - made, target)))
        self._note_others()

    @staticmethod
    def _mean_output(layer: nn.Module, path: str, calls: Sequence[Call], survivors: Survivors | None) -> Tensor | None:
        matrix = LayerMatrix(layer) if LayerMatrix.fits(layer) else None
        total, count = None, 0
        for number, call in enumerate(calls):
            with explain_errors(number):
                output: Tensor | None = run_block(layer, call)
            output = survivors.pick(path, output) if survivors is not None and output is not None else output
            if output is None:
                return None
            dim = -1 if matrix is None or not matrix.is_convolution else -1 - len(matrix.layer.kernel_size)
            rows = output.movedim(dim, 0).flatten(1).double()
            total = rows.sum(1) if total is None else total + rows.sum(1)
            count += rows.shape[1]
        return None if total is None else total / count

    def _shift(self, path: str, layer: Any, amount: Tensor) -> bool:
        """Adds to a layer's outputs: in its bias, else in the mean that the BatchNorm behind it takes off."""
        bias = getattr(layer, "bias", None)
        if isinstance(bias, nn.Parameter):
            bias += amount.to(bias)
            return True
        norm: Any = self.pruned.get_submodule(self._norms[path]) if path in self._norms else None
        if norm is None or norm.running_mean is None or len(norm.running_mean) != len(amount):
            return False
        norm.running_mean -= amount.to(norm.running_mean)
        return True

    # ------------------------------------------------------------------------------------------------- least squares

    def reconstruct(self, refine_steps: int) -> None:
        """Least squares for every layer, Gauss-Newton steps for every block, from front to back."""
        stages = self._list_stages(most=8)
        with self._side_by_side(stages) as reach:
            for path in self._show(stages):
                self._repair_stage(path, *reach(path), refine_steps)
        self._note_others()
        self.anchor_norms()

    def _repair_stage(self, path: str, before: list[Call], after: list[Call], refine_steps: int) -> None:
        block = self.pruned.get_submodule(path)
        touched = any(_is_in(name, path) for name in self._cut)
        if not touched and all(_same_call(old, new) for old, new in zip(before, after, strict=True)):
            return
        layers = [name for name, part in block.named_modules() if LayerMatrix.fits(part)]
        targets, made = self._run_original(path, before, layers)
        with torch.no_grad():
            shape = run_block(block, after[0]).shape
        if targets is None or targets[0].shape != shape:
            self.skipped.update({_join(path, name): "its block's kept channels are not known" for name in layers})
            return
        if any(bool(target.isinf().any()) for target in targets):
            self.skipped.update({_join(path, name): "what its block returns is infinite in places" for name in layers})
            return
        for target in targets:
            _check_finite(target, path)
        samples = [Sample(call, target) for call, target in zip(after, targets, strict=True)]
        held = samples[self._held_from :] or samples
        training = samples[: self._held_from]
        variance = _variance(each.target for each in held)
        first = measure_error(block, held)
        if first <= (10 * torch.finfo(targets[0].dtype).eps) ** 2 * variance:
            return  # rounding: nothing that it reads, and that is left of what it makes, has changed
        saved = _copy_values(block)
        norms = {
            name: self.pruned.get_submodule(self._norms[_join(path, name)])
            for name in layers
            if _join(path, name) in self._norms
        }
        outside = {name: _copy_values(norm) for name, norm in norms.items()}
        for name in layers:
            self._solve_layer(path, block, name, training, made.get(name))
        moved_held, moved_training = (self._move_targets(path, norms, outside, each) for each in (held, training))
        error = measure_error(block, moved_held)
        note = ""
        if error < first:
            held, training = moved_held, moved_training
        else:
            _put_values(block, saved)
            for name, values in outside.items():
                _put_values(norms[name], values)
            error, note = first, "least squares did not help: left as it was sliced"
        steps = 0
        if refine_steps and layers != [""]:
            names = [
                name for name, value in block.named_parameters() if self._is_own(value) and value.is_floating_point()
            ]
            try:
                few = _choose_samples(training, sum(block.get_parameter(name).numel() for name in names))
                _, error, steps = refine_block(block, names, few, held, steps=refine_steps)
                self._refined.append(path)
            except NoDerivativeError as problem:
                note = f"no Gauss-Newton steps: {problem}"
        paths = tuple(_join(path, name) for name in layers)
        if steps:
            for each in paths:
                self.skipped.pop(each, None)
        self.blocks.append(RepairedBlock(path, paths, first / variance, error / variance, steps, note))

    def _move_targets(
        self, path: str, norms: Mapping[str, Any], before: Mapping[str, Sequence[Tensor]], samples: Sequence[Sample]
    ) -> list[Sample]:
        """What a block should return, less what a BatchNorm behind it no longer takes off."""
        calls = self._trace.calls
        for name, norm in norms.items():
            full = _join(path, name)
            if calls[full].result == calls[path].result and not _is_in(self._norms[full], path):
                old = dict(zip(map(id, (*norm.parameters(), *norm.buffers())), before[name], strict=True))
                shift = old[id(norm.running_mean)] - norm.running_mean
                samples = [
                    Sample(each.call, each.target - shift.view(-1, *[1] * (each.target.dim() - 2))) for each in samples
                ]
        return list(samples)

    def _is_own(self, parameter: Tensor) -> bool:
        return id(parameter) not in self._shared

    @torch.no_grad()
    def _run_original(
        self, path: str, calls: list[Call], layers: Sequence[str]
    ) -> tuple[list[Tensor] | None, dict[str, list[Tensor]]]:
        """What the original block returns (kept channels), and each layer's outputs at sampled positions."""
        block = self.original.get_submodule(path)
        made: dict[str, list[Tensor]] = {}
        counts: dict[str, int] = {}

        def note(_: nn.Module, __: Any, output: Tensor, name: str) -> None:
            counts[name] = counts.get(name, 0) + 1
            kept = self._survivors.pick(_join(path, name), output)
            if kept is not None:
                matrix = LayerMatrix(self.pruned.get_submodule(_join(path, name)))
                where = matrix.sample(kept, self._rows_each(matrix), name)
                made.setdefault(name, []).append(matrix.pick(kept, where))

        hooks = [
            block.get_submodule(name).register_forward_hook(functools.partial(note, name=name))
            for name in layers
            if LayerMatrix.fits(block.get_submodule(name))
        ]
        try:
            targets = []
            for number, call in enumerate(calls):
                with explain_errors(number):
                    targets.append(self._survivors.pick(path, run_block(block, call)))
        finally:
            for hook in hooks:
                hook.remove()
        once = {name: rows for name, rows in made.items() if counts[name] == len(calls) == len(rows)}
        found = [target for target in targets if target is not None]
        return (found if len(found) == len(targets) else None), once

    def _rows_each(self, matrix: LayerMatrix) -> int:
        """How many output positions of each sample (each batch, for a linear layer) go into the moments."""
        rows = max(128 * matrix.inputs, 2**16)
        parts = len(self._batches)
        if matrix.is_convolution:
            parts *= max(1, count_samples(self._batches[0]))
        return max(1, -(-rows // parts))

    @torch.no_grad()
    def _solve_layer(
        self, path: str, block: nn.Module, name: str, training: Sequence[Sample], made: list[Tensor] | None
    ) -> None:
        layer: Any = block.get_submodule(name)
        full = _join(path, name)
        if made is None:
            self.skipped[full] = "its kept outputs are not known, or it is not called once"
            return
        if not self._is_own(layer.weight):
            self.skipped[full] = "its weight is shared with another layer"
            return
        matrix = LayerMatrix(layer)
        reads = self._read_layer(block, layer, matrix, name, training)
        if reads is None or any(
            rows.shape[:2] != out.shape[:2] or out.shape[2] != matrix.outputs
            for rows, out in zip(reads, made, strict=False)
        ):
            self.skipped[full] = "it reads another shape than in the original network"
            return
        weight, shift = solve_least_squares(reads, made[: len(reads)], matrix.weight, self._has_shift(full, layer))
        old = layer.bias if isinstance(layer.bias, nn.Parameter) else None
        layer.weight.copy_(matrix.unfold(weight.to(layer.weight)))
        if shift is not None:
            shift = shift.flatten()
            self._shift(full, layer, shift - (old if old is not None else 0))

    def _has_shift(self, path: str, layer: Any) -> bool:
        return isinstance(layer.bias, nn.Parameter) or path in self._norms

    def _read_layer(
        self, block: nn.Module, layer: nn.Module, matrix: LayerMatrix, name: str, training: Sequence[Sample]
    ) -> list[Tensor] | None:
        found: list[Tensor] = []

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            given = args[0] if args else next(iter(kwargs.values()))
            found.append(matrix.read(given, matrix.sample(output, self._rows_each(matrix), name)))
            raise _LayerReachedError

        hook = layer.register_forward_hook(note, with_kwargs=True)
        try:
            for each in training:
                with contextlib.suppress(_LayerReachedError):
                    run_block(block, each.call)
        finally:
            hook.remove()
        return found if len(found) == len(training) else None


def solve_least_squares(
    reads: Sequence[Tensor], targets: Sequence[Tensor], weight: Tensor, shifted: bool, ridge: float = 1e-3
) -> tuple[Tensor, Tensor | None]:
    """``argmin_W ‖W [x; 1] - y‖² + λ ‖W - weight‖²`` for each group, from rows x and targets y in batches.

    λ is ``ridge`` (more where there are few rows for the columns) times the mean variance of x. Shapes: x [groups,
    rows, inputs], y [groups, rows, outputs], weight [groups, outputs, inputs]. The second result is the bias
    ([groups, outputs]), None unless ``shifted``.
    """
    moments = functools.reduce(Moments.merge, map(Moments.of, reads))
    cross = functools.reduce(torch.add, (sum_products(y, x) for x, y in zip(reads, targets, strict=True)))
    cross = cross / moments.count
    square = moments.square / moments.count
    middle = torch.cat([y.double() for y in targets], 1).mean(1)  # [groups, outputs]
    if shifted:
        square = moments.covariance
        cross = cross - middle[:, :, None] * moments.mean[:, None, :]
    size = square.shape[-1]
    mean = square.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    amount = (ridge * (1 + 100 * size / moments.count) * mean)[:, None, None]
    identity = torch.eye(size, dtype=square.dtype, device=square.device)
    start = weight.double()
    solved = torch.linalg.solve(square + amount * identity, (cross + amount * start).mT).mT
    if not shifted:
        return solved, None
    return solved, middle - (solved @ moments.mean[:, :, None])[..., 0]


# ------------------------------------------------------------------------------------------------------------ helpers


def _join(path: str, name: str) -> str:
    return ".".join(part for part in (path, name) if part)


def _is_in(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")


def _list_shared(model: nn.Module) -> set[int]:
    """The parameters that stand in several places."""
    return {id(state.tensor) for state in list_state(model) if state.is_parameter and len(state.places) > 1}


def _same_call(first: Call, second: Call) -> bool:
    tensors: list[list[Tensor]] = [[], []]
    for side, call in zip(tensors, (first, second), strict=True):
        map_tensors(side.append, call)
    return len(tensors[0]) == len(tensors[1]) and all(map(torch.equal, *tensors))


def _check_finite(values: Tensor, path: str) -> Tensor:
    if not bool(values.isfinite().all()):
        raise InputError(
            f"what {path or 'the model'} makes of the calibration data is NaN or infinite: look at the data"
        )
    return values


def _copy_values(module: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in (*module.parameters(), *module.buffers())]


@torch.no_grad()
def _put_values(module: nn.Module, values: Sequence[Tensor]) -> None:
    for tensor, value in zip((*module.parameters(), *module.buffers()), values, strict=True):
        tensor.copy_(value)


def _choose_samples(training: Sequence[Sample], parameters: int) -> list[Sample]:
    """Batches enough for the number of parameters: 64 numbers to match for each."""
    chosen: list[Sample] = []
    for each in training:
        chosen.append(each)
        if sum(sample.target.numel() for sample in chosen) >= 64 * parameters and len(chosen) >= len(training) / 8:
            break
    return chosen


def _variance(targets: Iterable[Tensor]) -> float:
    values = [target.double() for target in targets]
    count = sum(value.numel() for value in values)
    mean = sum(float(value.sum()) for value in values) / count
    return max(sum(float((value - mean).square().sum()) for value in values) / count, 1e-30)


def _share_of(difference: Tensor, target: Tensor) -> tuple[float, float]:
    scale = max(float(target.square().mean()), 1e-30)
    return float(difference.square().mean()) / scale, 0.0
