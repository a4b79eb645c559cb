"""What is known of a model before anything is chosen: traced, grouped, and a small cut tried in each group."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai.coupling import Coupling, Frozen, Group, couple_channels, solve_coupling
from cleanai.depth import Block, ResidualBlocks
from cleanai.errors import InputError, TraceError
from cleanai.fitting import AttributeRule, Fitting, make_plan, probe_choice
from cleanai.inputs import map_tensors
from cleanai.isolation import list_state
from cleanai.rules import needs_values
from cleanai.select import is_within
from cleanai.texts import count_things
from cleanai.trace import ForwardFailed, ForwardFunction, Trace, trace_model
from cleanai.verify import try_plan

__all__ = ["Analysis", "analyze_model"]


@dataclass(repr=False)
class Analysis:
    """What is known of a model before anything is chosen: its groups, what is frozen, and how its sizes follow.

    `cleanai.analyze_model` makes it.

    Attributes:
        coupling: the labels of the trace, resolved into groups; the engine's own record.
        fitting: which attributes follow a cut, found by cuts that were tried on a stand-in; the engine's own record.
        warnings: what the user should know, as sentences: layers that the example inputs do not reach.
        ignored: the paths of the modules that must not be touched.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = analyze_model(net, torch.randn(1, 3))
        >>> found
        Analysis(1 group, 8 units, 2 frozen)
        >>> found.groups[0].layers, found.frozen[-1].layers, found.blocks, found.warnings
        (('0', '2'), ('2',), (), ())
    """

    coupling: Coupling
    fitting: Fitting
    warnings: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @functools.cached_property
    def residuals(self) -> ResidualBlocks:
        """The engine's own record of which modules can be dropped whole, and why any other cannot."""
        return ResidualBlocks(self.fitting.model, self.coupling, self.ignored)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The residual blocks that can be dropped whole: each has its ``path`` and its class as ``kind``."""
        return self.residuals.listed

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that can be pruned (`cleanai.coupling.Group`)."""
        return self.coupling.groups

    @property
    def frozen(self) -> tuple[Frozen, ...]:
        """What cannot, and why (`cleanai.coupling.Frozen`)."""
        return self.coupling.frozen

    @property
    def rules(self) -> tuple[AttributeRule, ...]:
        """The attributes that follow a cut: each has its ``module``, ``attribute``, ``index`` in a tuple, ``old``."""
        return self.fitting.rules

    def fork(self) -> Analysis:
        """The same knowledge once more: what trying a cut teaches one of the two does not reach the other."""
        fitting = self.fitting.fork()
        return Analysis(fitting.coupling, fitting, self.warnings, self.ignored)

    def __repr__(self) -> str:
        groups, units = count_things(len(self.groups), "group"), count_things(sum(g.size for g in self.groups), "unit")
        return f"Analysis({groups}, {units}, {len(self.frozen)} frozen)"


def analyze_model(
    model: nn.Module,
    example_inputs: Any,
    *,
    forward_fn: ForwardFunction | None = None,
    output_transform: Callable[[Any], Any] | None = None,
    ignored: Sequence[str] = (),
) -> Analysis:
    """Traces a model, finds its groups, and tries a small cut in each on a stand-in; the model is left as it was.

    Parameters that the evaluation forward does not reach are looked for in the training forward (auxiliary heads).
    `StructuredPruner` does all this; on its own it answers what could be pruned at all.

    Args:
        model: any module whose forward autograd can record.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        forward_fn: ``forward_fn(model, example_inputs)`` in place of ``model(example_inputs)``.
        output_transform: picks the differentiable part of the model's output.
        ignored: the paths of modules whose tensors must not be touched.

    Returns:
        A record with ``groups`` (each with its ``name``, ``kind`` and ``size`` in units), ``frozen`` (layers that stay
        whole, each with its ``reason``), ``blocks`` (residual blocks that can be dropped) and ``warnings``.

    Raises:
        InputError: the example inputs do not fit the model.
        TraceError: no output depends on the parameters.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = analyze_model(net, torch.randn(1, 3))
        >>> [(group.name, group.kind, group.size) for group in found.groups]
        [('0', 'channels', 8)]
        >>> for frozen in found.frozen:
        ...     print(frozen.layers, frozen.reason)
        ('0',) Addmm in 0 combines it with the input of the model
        ('2',) the output of the model
    """
    options: dict[str, Any] = {"forward_fn": forward_fn, "output_transform": output_transform}
    try:
        traces = [trace_model(model, example_inputs, **options)]
    except ForwardFailed as error:
        hint = _hint_at_kind(example_inputs) if isinstance(error.__cause__, TypeError) else ""
        raise InputError(f"example_inputs do not fit the model: {error}{hint}") from error
    if traces[0].method == "meta" and needs_values(traces[0]) and not _is_on_meta(model):
        with contextlib.suppress(TraceError):  # what needs values stays frozen
            traces = [trace_model(model, example_inputs, method="real", **options)]
    warnings = []
    if traces[0].unused and traces[0].method == "real":
        traces += _trace_other_paths(model, example_inputs, traces[0], options)
    if traces[-1].unused:
        training = _trace_training(model, example_inputs, traces[0].method, options)
        traces += (
            [training]
            if training.outputs and (training.failure or len(training.unused) < len(traces[-1].unused))
            else []
        )
        warnings = _warn_of_unused(traces[-1], training.failure)
    coupling = couple_channels(*traces)
    if traces[-1].unused and traces[-1].method == "real":  # what was never reached may be what a cut breaks
        coupling.context.unproven += [
            (np.flatnonzero(np.isin(coupling.class_of, group.classes)), "what the example inputs do not reach")
            for group in coupling.groups
        ]
    if ignored:
        _freeze_ignored(coupling, ignored)
    _prefer_more_units(coupling)
    _freeze_single_units(coupling)
    fitting = Fitting(model, example_inputs, coupling, forward_fn, output_transform)
    fitting.fit_pieces()  # before any cut that says less
    fitting.fit(probe_choice)
    _refuse_unproven(fitting, options)
    _freeze_single_units(coupling)
    return Analysis(coupling, fitting, tuple(warnings), tuple(ignored))


def _hint_at_kind(example_inputs: Any) -> str:
    """What to add where a forward did not take its arguments: how they are handed to it."""
    if isinstance(example_inputs, Tensor):
        return ""
    if type(example_inputs) is tuple:
        return "; a tuple holds the positional arguments of the forward, without labels"
    if isinstance(example_inputs, Mapping):
        return "; a dict holds the keyword arguments of the forward"
    return "; give a tensor, a tuple of positional arguments or a dict of keyword arguments"


def _is_on_meta(model: nn.Module) -> bool:
    return any(state.tensor.device.type == "meta" for state in list_state(model))


_MOST_OTHER_PATHS = 8


def _trace_other_paths(model: nn.Module, example_inputs: Any, first: Trace, options: Mapping[str, Any]) -> list[Trace]:
    """Where values decide what runs (a router of experts), other inputs and weights reach what the example does not."""
    found: list[Trace] = []
    missing = {state.name for state in first.unused}
    for seed in range(_MOST_OTHER_PATHS):
        if not missing:
            break
        inputs = _other_inputs(example_inputs, seed)
        change = _scramble(seed) if seed % 2 else None
        try:
            trace = trace_model(model, inputs, method="real", change=change, **options)
        except TraceError:
            continue
        unused = {state.name for state in trace.unused}
        if missing - unused:
            missing &= unused
            left = tuple(state for state in trace.unused if state.name in missing)
            found.append(replace(trace, inputs=inputs, change=change, unused=left))
    return found


def _scramble(seed: int) -> Callable[[nn.Module], None]:
    """Random weights for a stand-in: what is connected does not depend on them, what runs may."""

    def change(stand_in: nn.Module) -> None:
        generator = torch.Generator().manual_seed(seed)
        for state in list_state(stand_in):
            if state.is_parameter and state.tensor.is_floating_point():
                old = state.tensor
                values = torch.randn(old.shape, generator=generator) * max(1, old[:1].numel()) ** -0.5
                new = nn.Parameter(values.to(old), requires_grad=old.requires_grad)
                for place in state.places:
                    place.put(new)

    return change


def _other_inputs(example_inputs: Any, seed: int) -> Any:
    """Inputs like the example's with other numbers: normally distributed ones, integers from the same range."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)
        if tensor.dtype not in (torch.int32, torch.int64) or tensor.numel() < 2:
            return tensor
        low, high = int(tensor.min()), int(tensor.max())
        return torch.randint(low, high + 1, tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)

    return map_tensors(draw, example_inputs)


def _trace_training(model: nn.Module, example_inputs: Any, method: str, options: Mapping[str, Any]) -> Trace:
    """The training-mode forward; where it breaks off, as far as it came."""
    try:
        return trace_model(model, example_inputs, training=True, method=method, **options)
    except ForwardFailed as error:
        return error.trace
    except TraceError as error:
        return Trace([], (), (), method, True, str(error))


def _warn_of_unused(trace: Trace, failure: str) -> list[str]:
    """What no forward of the example reached: nothing is known of it, so nothing of it is cut."""
    layers = list(dict.fromkeys(state.name.rpartition(".")[0] or state.name for state in trace.unused))
    if not layers:
        return []
    shown = ", ".join(layers[:5]) + (f", … ({len(layers)})" if len(layers) > 5 else "")
    return [
        f"example_inputs do not reach {shown}, neither in evaluation nor in training"
        f"{f' ({failure})' if failure else ''}: these layers are left "
        "whole, and break if what they read elsewhere is cut; give example inputs that reach them"
    ]


def _refuse_unproven(fitting: Fitting, options: Mapping[str, Any]) -> None:
    """Groups of which the graph does not tell all are cut on a stand-in, and refused where that is no equal."""
    coupling = fitting.coupling
    choice = probe_choice(coupling)
    refused = False
    for labels, where in coupling.context.unproven:
        classes = np.unique(coupling.class_of[labels])
        for group in coupling.groups:
            units = choice.get(group.index)
            if units is None or not np.isin(group.classes, classes).any():
                continue
            plan = make_plan(coupling, {group.index: units}, fitting.rules)
            if not try_plan(fitting.model, plan, fitting.example_inputs, **options).passed:
                coupling.freeze_group(group, f"a cut of it changes what follows {where}")
                refused = True
    if refused:
        solve_coupling(coupling)


def _freeze_ignored(coupling: Coupling, ignored: Sequence[str]) -> None:
    """A layer that is ignored keeps its inputs and its outputs: every group that touches it is frozen."""
    for group in coupling.groups:
        touched = [path for path in ignored if any(is_within(layer, path) for layer in group.layers)]
        if touched:
            coupling.freeze_group(group, f"it reaches the ignored layer {touched[0] or 'model'}")
    for labelled in coupling.traces:
        for op in labelled.trace.operations:
            path = next((path for path in ignored if op.state is None and is_within(op.module, path)), None)
            if path is None:
                continue
            values = [*labelled.values[op.index]]
            values += [labelled.values[v.operation][v.output] for v in op.inputs if v is not None]
            for value in values:
                for labels in value.fields.values():
                    coupling.manual.append((labels.ravel(), f"it reaches the ignored layer {path or 'model'}"))
    solve_coupling(coupling)


def _prefer_more_units(coupling: Coupling) -> None:
    """Where removing whole rows leaves no choice, removes the same share of every row instead."""
    labels = coupling.context.labels
    changed = False
    for number, relation in enumerate(labels.relations):
        structure = coupling.structure_of.get(number)
        classes = np.unique(coupling.class_of[relation.flat.ravel()])
        stuck = [g for g in coupling.groups if g.bundles < 2 and np.isin(g.classes, classes).any()]
        if structure is not None and stuck and coupling.modes.get(structure) != "inner":
            coupling.modes[structure] = "inner"
            changed = True
    if changed:
        solve_coupling(coupling)


def _freeze_single_units(coupling: Coupling) -> None:
    """Groups that cannot shrink at all are no groups."""
    single = [group for group in coupling.groups if group.bundles < 2]
    for group in single:
        reason = "there is only one of it" if group.size == 1 else "its parts must shrink alike and have no common step"
        coupling.freeze_group(group, reason)
    if single:
        solve_coupling(coupling)
