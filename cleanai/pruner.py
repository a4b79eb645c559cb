"""The front door: `StructuredPruner` runs the pipeline from a trained model to a smaller, proven one and its report."""

from __future__ import annotations

import contextlib
import copy
import functools
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai.calibration import ActivationStatistics, collect_statistics
from cleanai.cost import CostModel
from cleanai.coupling import Coupling, Frozen, Group, couple_channels, solve_coupling
from cleanai.depth import Block, ResidualBlocks, choose_blocks, renumber_groups, score_blocks
from cleanai.errors import CleanAIError, InputError, TraceError, VerificationError
from cleanai.evaluate import ModelMetrics, measure_model
from cleanai.fields import IntArray
from cleanai.fitting import AttributeRule, Fitting, make_plan, probe_choice
from cleanai.importance import Importance, ScoredGroup, find_importance, score_group
from cleanai.inputs import map_tensors
from cleanai.isolation import evaluation_mode, list_state, preserve_model, transaction
from cleanai.plan import BlockCut, GroupCut, Plan
from cleanai.prediction import alive_classes
from cleanai.report import BlockRecord, BudgetRecord, FrozenRecord, GroupRecord, LayerRecord, ProofRecord, Report
from cleanai.rules import needs_values
from cleanai.select import (
    TARGETS,
    Budget,
    LayerSpec,
    Limits,
    build_ladder,
    check_ratio,
    choose_units,
    find_layers,
    is_within,
    resolve_ratios,
)
from cleanai.slicing import slice_model
from cleanai.trace import ForwardFailed, ForwardFunction, Trace, trace_model
from cleanai.verify import Verification, compare_with_reference, compute_reference, try_plan

Choice = dict[int, IntArray]


@dataclass
class Analysis:
    """What is known of a model before anything is chosen: its groups, what is frozen, and how its sizes follow."""

    coupling: Coupling
    fitting: Fitting
    warnings: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @functools.cached_property
    def residuals(self) -> ResidualBlocks:
        """Which modules can be dropped whole, and why any other cannot."""
        return ResidualBlocks(self.fitting.model, self.coupling, self.ignored)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The residual blocks that can be dropped whole."""
        return self.residuals.listed

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that can be pruned."""
        return self.coupling.groups

    @property
    def frozen(self) -> tuple[Frozen, ...]:
        """What cannot, and why."""
        return self.coupling.frozen

    @property
    def rules(self) -> tuple[AttributeRule, ...]:
        """The attributes that follow a cut."""
        return self.fitting.rules


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
    ``ignored`` are module paths that must not be touched.

    Raises:
        InputError: the example inputs do not fit the model.
        TraceError: no output depends on the parameters.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [(group.name, group.size) for group in analyze_model(net, torch.randn(1, 3)).groups]
        [('0', 8)]
    """
    options: dict[str, Any] = {"forward_fn": forward_fn, "output_transform": output_transform}
    try:
        traces = [trace_model(model, example_inputs, **options)]
    except TraceError as error:
        if "no output" in str(error):
            raise
        raise InputError(f"example_inputs do not fit the model: {error}") from error
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
    fitting.fit(probe_choice)
    _refuse_unproven(fitting, options)
    _freeze_single_units(coupling)
    return Analysis(coupling, fitting, tuple(warnings), tuple(ignored))


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


class StructuredPruner:
    """Prunes a trained model by real slicing, proves the result, and reports what went and why.

    Args:
        model: the trained model; left untouched unless ``inplace``.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments that the model accepts.
        importance: a scorer, or its name ("magnitude", "wanda", "weight_activation", …); higher = keep.
        pruning_ratio: the share to remove, in [0, 1): of the channels of each prunable group, or of ``target``.
        target: "channels", or "params" / "macs" for that share of the whole model.
        global_pruning: rank the units of all groups together (scores in shares of their group's mean).
        iterative_steps: reach the ratio in so many rounds, scored anew in each.
        layer_pruning_ratios: {module, name or type: ratio} for the groups whose channels those layers make.
        ignored_layers: modules, names or types whose tensors must not be touched, neither inputs nor outputs.
        depth_pruning_ratio: the share of the residual blocks to drop whole, in [0, 1), before anything is made
            narrower; at least one stays.
        drop_layers: residual blocks to drop in any case: modules, names or types.
        max_pruning_ratio: no group loses more than this share.
        min_channels: no group keeps fewer channels.
        round_to: kept channels are a multiple of this.
        inplace: prune the model itself rather than a copy.
        verify: prove the result (see `cleanai.verify`); a failed proof leaves the model as it was and raises.
        forward_fn: ``forward_fn(model, inputs)`` in place of ``model(inputs)``.
        output_transform: picks the differentiable part of the model's output.

    Raises:
        InputError: an argument that cannot be used; it says which and what to do. Nothing has been changed.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner = StructuredPruner(net, torch.randn(1, 3), importance="magnitude", pruning_ratio=0.5)
        >>> pruner.prune()[0]
        Linear(in_features=3, out_features=4, bias=True)
        >>> pruner.verification.passed
        True
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        importance: Importance | str = "magnitude",
        pruning_ratio: float = 0.5,
        *,
        target: str = "channels",
        global_pruning: bool = False,
        iterative_steps: int = 1,
        layer_pruning_ratios: Mapping[LayerSpec, float] | None = None,
        ignored_layers: Sequence[LayerSpec] = (),
        depth_pruning_ratio: float = 0.0,
        drop_layers: Sequence[LayerSpec] = (),
        max_pruning_ratio: float = 1.0,
        min_channels: int = 1,
        round_to: int | None = None,
        inplace: bool = False,
        verify: bool = True,
        forward_fn: ForwardFunction | None = None,
        output_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model is a {type(model).__name__}; give a torch.nn.Module")
        if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
            raise InputError(
                "model is a torch.jit.ScriptModule, which cannot be followed; give the eager model it was made from"
            )
        if target not in TARGETS:
            raise InputError(f"target is {target!r}; use {' or '.join(map(repr, TARGETS))}")
        if not isinstance(iterative_steps, int) or iterative_steps < 1:
            raise InputError(f"iterative_steps is {iterative_steps!r}; it must be a whole number of at least 1")
        self.model = model
        self.example_inputs = example_inputs
        self.importance = find_importance(importance)
        self.pruning_ratio = check_ratio(pruning_ratio, "pruning_ratio")
        self.target = target
        self.global_pruning = global_pruning
        self.iterative_steps = iterative_steps
        self.layer_pruning_ratios = dict(layer_pruning_ratios or {})
        self._ratio_paths = {
            spec: find_layers(model, spec, "layer_pruning_ratios") for spec in self.layer_pruning_ratios
        }
        self.limits = Limits(min_channels, 1 if round_to is None else round_to, max_pruning_ratio)
        self.inplace = inplace
        self.verify = verify
        self._options: dict[str, Any] = {"forward_fn": forward_fn, "output_transform": output_transform}
        self._importance_name = importance if isinstance(importance, str) else repr(self.importance)
        _check_tensors(model)
        self._ignored = _find_all(model, ignored_layers, "ignored_layers")
        self.depth_pruning_ratio = check_ratio(depth_pruning_ratio, "depth_pruning_ratio")
        self._dropped = _find_all(model, drop_layers, "drop_layers")
        self.analysis = self._analyze(model)
        resolve_ratios(model, self.analysis.coupling, self.layer_pruning_ratios)
        self._check_blocks()
        self.statistics: ActivationStatistics | None = None
        self.plan: Plan | None = None
        self.pruned: nn.Module | None = None
        self.verification: Verification | None = None
        self.warnings: list[str] = list(self.analysis.warnings)
        self._before: ModelMetrics | None = None
        self._full_cost: float | None = None
        self._statistics_left: ActivationStatistics | None = None
        self._planned: Analysis = self.analysis
        self._width = Plan()
        self._reported: tuple[tuple[Group, ...], tuple[Frozen, ...]] = ((), ())
        self._block_costs: dict[str, tuple[int, int]] = {}

    # ----------------------------------------------------------------------------------------------------- looking

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of channels that can be pruned."""
        return self.analysis.groups

    @property
    def frozen(self) -> tuple[Frozen, ...]:
        """What cannot be pruned, and why."""
        return self.analysis.frozen

    def __repr__(self) -> str:
        state = "pruned" if self.pruned is not None else "not pruned yet"
        units = sum(group.size for group in self.groups)
        return f"StructuredPruner({type(self.model).__name__}, {len(self.groups)} groups, {units} units, {state})"

    def _analyze(self, model: nn.Module) -> Analysis:
        return analyze_model(model, self.example_inputs, ignored=self._ignored, **self._options)

    # ------------------------------------------------------------------------------------------------- calibrating

    def collect_activations(
        self, loader: Iterable[Any], num_batches: int | None = None, *, progress: bool | None = None
    ) -> ActivationStatistics:
        """Activation statistics from calibration data, kept for the scores and returned.

        ``loader`` yields tensors, (x, y) pairs, tuples or dicts; at most ``num_batches`` batches are used.

        Raises:
            InputError: the loader is empty, a batch does not fit the model, or an activation is NaN or infinite.
        """
        self.statistics = collect_statistics(
            self.model,
            loader,
            example_inputs=self.example_inputs,
            num_batches=num_batches,
            forward_fn=self._options["forward_fn"],
            progress=progress,
            blocks={block.path: block.dim for block in self._list_blocks()},
        )
        return self.statistics

    # ------------------------------------------------------------------------------------------------------ choosing

    def score_groups(self) -> dict[str, Tensor | None]:
        """The score of every unit of every group, higher = keep: {group name: shape [size]}, None where not scored."""
        scores = self._score(self.model, self.analysis, self.statistics)
        return {group.name: scores[group.index] for group in self.groups}

    def _score(
        self, model: nn.Module, analysis: Analysis, statistics: ActivationStatistics | None
    ) -> dict[int, Tensor | None]:
        scores = self._score_all(model, analysis.groups, statistics)
        return {group.index: values for group, values in zip(analysis.groups, scores, strict=True)}

    def _score_all(
        self, model: nn.Module, groups: Sequence[Group], statistics: ActivationStatistics | None
    ) -> list[Tensor | None]:
        if getattr(self.importance, "needs_activations", False) and statistics is None:
            raise InputError(
                f"{self._importance_name} needs activations: call collect_activations(loader) before prune()"
            )
        tensors = {state.name: state.tensor for state in list_state(model)}
        modules = dict(model.named_modules())
        with evaluation_mode(model):  # in training mode, reading a spectrally normalised weight moves its vectors
            return [score_group(self.importance, ScoredGroup(group, tensors, modules, statistics)) for group in groups]

    def make_plan(self) -> Plan:
        """Chooses what goes; nothing is changed. The plan prints, saves as JSON, and can be applied with `slice_model`.

        Raises:
            InputError: the scores need activations that were not collected, or a scorer returned something unusable.
        """
        self.warnings = list(self.analysis.warnings)
        self._full_cost = None
        depth = self._plan_depth()
        if not depth.dropped_blocks:
            self._planned = self.analysis
            self._width = self._plan_width(self.analysis)
            return depth.then(self._width)
        if self.target != "channels":
            self._budget(self.model, self.analysis.coupling, 0.0, {})  # notes the full cost
        with preserve_model(self.model):
            slice_model(self.model, depth)
            self._planned = self._analyze(self.model)
            found = [each for each in self.warnings if each not in self.analysis.warnings]
            self.warnings = [*self._planned.warnings, *found]
            self._width = width = self._plan_width(self._planned)
        # The scorer sees the whole model once more, for the channels that go with the blocks.
        before = self._score(self.model, self.analysis, self.statistics)
        groups = renumber_groups(width.groups, self._planned.groups, self.groups, depth.dropped_blocks, before)
        return depth.then(replace(width, groups=groups))

    # ------------------------------------------------------------------------------------------------ choosing blocks

    def _check_blocks(self) -> None:
        examined = {path: self.analysis.residuals.examine(path) for path in self._dropped}
        blocks = self.analysis.blocks if self.depth_pruning_ratio or self._dropped else ()
        names = ", ".join(block.path for block in blocks[:5]) + (f", … ({len(blocks)})" if len(blocks) > 5 else "")
        for path, block in examined.items():
            if isinstance(block, str):
                known = f"the residual blocks are {names}" if names else "the model has no residual blocks"
                raise InputError(f"drop_layers: {path} cannot be dropped whole: {block} ({known})")
        if self.depth_pruning_ratio and not blocks:
            raise InputError(
                f"depth_pruning_ratio is {self.depth_pruning_ratio:g}, but the model has no residual block that could "
                "be dropped"
            )

    def _list_blocks(self) -> list[Block]:
        """The blocks that are judged: all candidates, and those that were named; none where none was asked for."""
        if not self.depth_pruning_ratio and not self._dropped:
            return []
        found = {block.path: block for block in self.analysis.blocks}
        for path in self._dropped:
            block = self.analysis.residuals.examine(path)
            if isinstance(block, Block):  # in place, an earlier call may have dropped it
                found.setdefault(path, block)
        return list(found.values())

    def score_blocks(self) -> dict[str, float | None]:
        """The score of every residual block, higher = keep: {path: score}, None where not scored.

        A criterion that looks at activations goes by the block's influence on what flows through it, 1 - cos(input,
        output) (Men et al., "ShortGPT", 2024); any other by the mean of its scores for the channels inside the block,
        in shares of what the same channels of other blocks have.

        Raises:
            InputError: the scores need activations that were not collected.
        """
        blocks = self._list_blocks() or list(self.analysis.blocks)
        if getattr(self.importance, "needs_activations", False) and self.statistics is not None:
            seen = self.statistics.blocks
            if all(block.path in seen for block in blocks):
                return {block.path: seen[block.path].influence for block in blocks}
        scores = self._score(self.model, self.analysis, self.statistics)
        tensors = {state.name: state.tensor for state in list_state(self.model)}

        def judge(group: Group) -> Tensor | None:
            return self._score_all(self.model, [group], self.statistics)[0]

        return score_blocks(blocks, self.groups, scores, tensors, judge)

    def _plan_depth(self) -> Plan:
        """Which blocks go, as a plan of its own; empty where none was asked for."""
        blocks = self._list_blocks()
        if not blocks:
            return Plan()
        scores = self.score_blocks()
        listed = [block.path for block in self.analysis.blocks]
        named = {path for path in self._dropped if path in scores}
        named |= {path for path in listed if any(is_within(path, outer) for outer in named)}
        refused: dict[str, str] = {}
        while True:
            ranked = {path: None if path in refused else scores[path] for path in listed}
            chosen = choose_blocks(ranked, self.depth_pruning_ratio, named)
            problem = self._try_without(chosen)
            if not problem:
                break
            alone = {path: self._try_without({path}) for path in sorted(chosen)}
            guilty = {path: reason for path, reason in alone.items() if reason} or dict.fromkeys(
                chosen - named, problem
            )
            if not guilty or named & set(guilty):
                names = ", ".join(sorted(named & set(guilty) or named))
                raise InputError(f"drop_layers: the model does not run without {names}: {problem}")
            refused.update(guilty)
        unscored = [path for path in listed if scores[path] is None and path not in chosen]
        if unscored and self.depth_pruning_ratio:
            self.warnings.append(f"kept whole, the criterion does not see them: {', '.join(unscored)}")
        cuts = []
        for block in blocks:
            if any(block.path != other and is_within(block.path, other) for other in chosen):
                continue  # gone with the block around it
            note = f"kept: the model does not run without it: {refused[block.path]}" if block.path in refused else ""
            cuts.append(BlockCut(block.path, block.kind, block.path in chosen, block.places, scores[block.path], note))
        return Plan(blocks=tuple(cuts))

    def _try_without(self, paths: Iterable[str]) -> str:
        """Why the model does not run without some blocks; nothing if it does."""
        cuts = [self.analysis.residuals.examine(path) for path in paths]
        outer = [cut for cut in cuts if isinstance(cut, Block)]
        outer = [cut for cut in outer if not any(cut is not o and is_within(cut.path, o.path) for o in outer)]
        plan = Plan(blocks=tuple(BlockCut(cut.path, cut.kind, places=cut.places) for cut in outer))
        try:
            trace = trace_model(
                self.model,
                self.example_inputs,
                change=lambda stand_in: slice_model(stand_in, plan),
                method=self.analysis.coupling.traces[0].trace.method,
                **self._options,
            )
        except TraceError as error:
            return str(error)
        passed_by = [cut.path for cut in outer if cut.path not in trace.calls]
        return f"{passed_by[0]} is not called through its place in the model" if passed_by else ""

    # ------------------------------------------------------------------------------------------------ choosing channels

    def _plan_width(self, analysis: Analysis) -> Plan:
        """What goes from the groups of the model as it is now."""
        if self.iterative_steps == 1:
            plan, self._statistics_left = self._plan_round(
                self.model, analysis, self.statistics, self.pruning_ratio, None
            )
            return plan
        working = copy_model(self.model)
        total: Plan | None = None
        statistics = self.statistics
        for step in range(1, self.iterative_steps + 1):
            if step > 1:
                analysis = self._analyze(working)
            ratio = self.pruning_ratio * step / self.iterative_steps
            plan, statistics = self._plan_round(working, analysis, statistics, ratio, total)
            slice_model(working, plan)
            total = plan if total is None else total.then(plan)
        assert total is not None
        self._statistics_left = statistics
        return total

    def _plan_round(
        self,
        model: nn.Module,
        analysis: Analysis,
        statistics: ActivationStatistics | None,
        ratio: float,
        earlier: Plan | None,
    ) -> tuple[Plan, ActivationStatistics | None]:
        """The plan of one round, and the statistics of what it leaves."""
        coupling = analysis.coupling
        before = {group.name: group for group in earlier.groups} if earlier is not None else {}
        scores: dict[int, Tensor | None] = {}
        asked: dict[int, float] = {}

        def choose(current: Coupling) -> Choice:
            scores.clear()
            asked.clear()
            scores.update(self._score(model, analysis, statistics))
            ratios = resolve_ratios(model, current, self._ratios_in(model))
            scale = ratio / self.pruning_ratio if self.pruning_ratio else 1.0
            ratios = {index: value * scale for index, value in ratios.items()}
            ladders = [
                build_ladder(group, values, self.limits, _original_size(group, before))
                for group in current.groups
                # A group that an earlier round cut in other units (its heads, not its channels) has given its share.
                if (values := scores[group.index]) is not None
                and (group.name not in before or _same_units(before[group.name], group))
            ]
            asked.update({la.group.index: ratios.get(la.group.index, ratio) for la in ladders})
            return choose_units(ladders, self._budget(model, current, ratio, ratios))

        chosen: Choice = {}

        def remember(current: Coupling) -> Choice:
            chosen.clear()
            chosen.update(choose(current))
            return chosen

        analysis.fitting.fit(remember)
        self._note_unscored(coupling, scores)
        records = {}
        for group in coupling.groups:
            values = scores[group.index]
            per_group = self.target == "channels" and not self.global_pruning
            records[group.index] = {
                "scores": None if values is None else tuple(values.tolist()),
                "asked_ratio": asked.get(group.index) if per_group else None,
                "note": "" if values is not None else "kept: not scored, the criterion does not see it",
            }
        plan = make_plan(coupling, chosen, analysis.rules, records, self._settings())
        if statistics is not None:
            alive = alive_classes(coupling, chosen)
            kept = {
                (site.module, site.side): torch.from_numpy(np.flatnonzero(alive[coupling.class_of[site.labels]]))
                for site in coupling.context.sites
            }
            statistics = statistics.after(kept)
        return plan, statistics

    def _budget(self, model: nn.Module, coupling: Coupling, ratio: float, ratios: Mapping[int, float]) -> Budget:
        target: Any = self.target
        if target == "channels":
            return Budget(ratio, target, self.global_pruning, ratios)
        costs = CostModel(coupling, [state for state in list_state(model) if isinstance(state.tensor, nn.Parameter)])
        count = costs.count_parameters if target == "params" else costs.count_macs
        if self._full_cost is None:  # the first round: nothing is gone yet
            self._full_cost = float(count(alive_classes(coupling, {})))

        def cost(choice: Mapping[int, IntArray]) -> float:
            return float(count(alive_classes(coupling, choice)))

        return Budget(ratio, target, self.global_pruning, ratios, cost, self._full_cost)

    def _ratios_in(self, model: nn.Module) -> dict[LayerSpec, float]:
        """The layer ratios, without those for layers that are gone with a dropped block."""
        if self._planned is self.analysis:
            return self.layer_pruning_ratios
        left = [name for name, _ in model.named_parameters()]
        return {
            spec: ratio
            for spec, ratio in self.layer_pruning_ratios.items()
            if any(is_within(name, path) for path in self._ratio_paths[spec] for name in left)
        }

    def _note_unscored(self, coupling: Coupling, scores: Mapping[int, Tensor | None]) -> None:
        names = [group.name for group in coupling.groups if scores[group.index] is None]
        message = f"kept whole, the criterion does not see them: {', '.join(names)}"
        if names and message not in self.warnings:
            self.warnings.append(message)

    def _settings(self) -> dict[str, Any]:
        return {
            "importance": self._importance_name,
            "pruning_ratio": self.pruning_ratio,
            "target": self.target,
            "global_pruning": self.global_pruning,
            "iterative_steps": self.iterative_steps,
            "layer_pruning_ratios": {_spec_name(self.model, k): v for k, v in self.layer_pruning_ratios.items()},
            "ignored_layers": list(self._ignored),
            **({"depth_pruning_ratio": self.depth_pruning_ratio} if self.depth_pruning_ratio else {}),
            **({"drop_layers": list(self._dropped)} if self._dropped else {}),
            "max_pruning_ratio": self.limits.max_pruning_ratio,
            "min_channels": self.limits.min_channels,
            "round_to": self.limits.round_to,
            "calibration_samples": self.statistics.samples if self.statistics is not None else 0,
        }

    # ------------------------------------------------------------------------------------------------------ cutting

    def prune(self) -> nn.Module:
        """The smaller model: planned, sliced and, unless ``verify=False``, proven.

        Returns a new model, or with ``inplace`` the model itself. Make the optimizer afterwards: parameters are new.

        Raises:
            InputError: activations are missing, or a scorer returned something unusable.
            VerificationError: the pruned model does not equal the masked original; the group at fault is named and the
                model is as it was.
        """
        plan = self.make_plan()
        if self.inplace:
            self._before = self._measure(self.model)
        reference = compute_reference(self.model, plan, self.example_inputs, **self._options) if self.verify else None
        groups = tuple({group.name: group for group in (*self._planned.groups, *self.groups)}.values())
        frozen = self._planned.frozen
        self._block_costs = self._count_blocks(plan)
        target = self.model if self.inplace else copy_model(self.model)
        try:
            verification = _slice_and_prove(target, plan, reference, self._options)
        except VerificationError as error:
            fault = self.find_fault(plan)
            kind = "block" if fault in plan.dropped_blocks else "group"
            where = f"; the {kind} at fault is {fault}" if fault else ""
            raise VerificationError(f"{error}{where}. The model has not been changed.") from error
        self.plan, self.pruned, self.verification = plan, target, verification
        self._reported = (groups, frozen)
        if self.inplace:
            self.analysis = self._analyze(self.model)
            self.statistics = self._statistics_left
        return target

    def _count_blocks(self, plan: Plan) -> dict[str, tuple[int, int]]:
        """The parameters and MACs of the plan's blocks in the original model."""
        coupling = self.analysis.coupling
        costs, alive = CostModel(coupling, []), alive_classes(coupling, {})
        blocks = {block.path: block for block in self._list_blocks()}
        return {cut.module: (blocks[cut.module].parameters, costs.count_macs(alive, cut.module)) for cut in plan.blocks}

    def find_fault(self, plan: Plan) -> str | None:
        """The first block or group whose part of a plan alone fails the proof, or None."""
        blocks = tuple(block for block in plan.blocks if block.dropped)
        for block in blocks:
            if not try_plan(self.model, Plan(blocks=(block,)), self.example_inputs, **self._options).passed:
                return block.module
        coupling = self._planned.coupling
        for group in coupling.groups:
            cut = next((g for g in self._width.groups if g.name == group.name), None)
            if cut is None or not cut.dropped or cut.size != group.size:
                continue
            alone = make_plan(coupling, {group.index: list(cut.dropped)}, self._planned.rules)
            alone = Plan(blocks=blocks).then(alone)
            if not try_plan(self.model, alone, self.example_inputs, **self._options).passed:
                return group.name
        return None

    # ---------------------------------------------------------------------------------------------------- reporting

    def _measure(self, model: nn.Module, latency: bool = True) -> ModelMetrics:
        return measure_model(
            model,
            self.example_inputs,
            latency=latency,
            forward_fn=self._options["forward_fn"],
            min_run_time=0.5,
        )

    def report(
        self,
        *,
        model_name: str | None = None,
        metrics: Mapping[str, ModelMetrics] | None = None,
        history: Sequence[Mapping[str, Any]] | None = None,
        language: str = "en",
    ) -> Report:
        """What was asked, what went and why, what was frozen, the proof, and the measurements.

        Args:
            metrics: measurements by stage, the original first and the pruned model second
                (`cleanai.evaluate.measure_model`); measured without accuracy if left out.
            history: one dict per epoch of a fine-tuning.
            language: "en" or "tr".

        Raises:
            InputError: nothing has been pruned yet.
        """
        if self.plan is None or self.pruned is None:
            raise InputError("there is nothing to report yet: call prune() first")
        import cleanai

        groups, frozen = self._reported
        if metrics is None:
            original = self._before if self._before is not None else self._measure(self.model)
            metrics = {"original": original, "pruned": self._measure(self.pruned)}
        return Report(
            model_name=model_name or type(self.model).__name__,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions={
                "cleanai": cleanai.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            settings=dict(self.plan.settings),
            metrics=dict(metrics),
            groups=tuple(_group_record(cut, groups, self.plan) for cut in self.plan.groups),
            frozen=tuple(FrozenRecord(f.layers, f.channels, f.reason) for f in frozen),
            proof=_proof_record(self.verification),
            budget=_budget_record(self.plan, list(metrics.values())),
            history=[dict(record) for record in history] if history is not None else None,
            warnings=list(self.warnings),
            language=language,
            blocks=tuple(
                BlockRecord(b.module, b.kind, *self._block_costs[b.module], b.dropped, b.score, b.note)
                for b in self.plan.blocks
            ),
        )

    def summary(self, language: str = "en") -> None:
        """Shows the report: as HTML in a notebook, as text in a terminal.

        Raises:
            InputError: nothing has been pruned yet.
        """
        report = self.report(language=language)
        if _in_notebook():
            from IPython.display import display

            display(report)
        else:
            sys.stdout.write(f"{report}\n")


# ------------------------------------------------------------------------------------------------------------ helpers


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy of a model.

    Raises:
        InputError: it holds something that cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise InputError(
            f"the model cannot be copied ({type(error).__name__}: {error}); prune it with inplace=True instead"
        ) from error


def _slice_and_prove(model: nn.Module, plan: Plan, reference: Any, options: Mapping[str, Any]) -> Verification | None:
    with transaction(model):
        slice_model(model, plan)
        if reference is None:
            return None
        try:
            verification = compare_with_reference(model, reference, **options)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, CleanAIError):
                raise
            raise VerificationError(f"the pruned model does not run: {type(error).__name__}: {error}") from error
        if not verification.passed:
            raise VerificationError(f"the pruned model is {verification}")
        return verification


def _check_tensors(model: nn.Module) -> None:
    for state in list_state(model):
        tensor = state.tensor
        if tensor.is_inference() and state.is_parameter:
            raise InputError(f"{state.name} was made under torch.inference_mode; make the model outside of it")
        judged = state.is_statistic or isinstance(tensor, nn.Parameter)  # other buffers may be masks of -inf
        if judged and tensor.is_floating_point() and tensor.device.type != "meta" and not bool(tensor.isfinite().all()):
            raise InputError(
                f"{state.name} holds NaN or infinite values: repair or retrain the model before pruning it"
            )


def _find_all(model: nn.Module, specs: LayerSpec | Sequence[LayerSpec], argument: str) -> list[str]:
    """The paths of the modules that one or several modules, names or types stand for."""
    single = isinstance(specs, (str, type, nn.Module))
    several: list[Any] = [specs] if single else [*specs]
    return [path for spec in several for path in find_layers(model, spec, argument)]


def _same_units(cut: GroupCut, group: Group) -> bool:
    return cut.kind == group.kind and (cut.kept_size == group.size or cut.width == group.width)


def _original_size(group: Group, before: Mapping[str, GroupCut]) -> int:
    earlier = before.get(group.name)
    return earlier.size if earlier is not None and earlier.kept_size == group.size else group.size


def _spec_name(model: nn.Module, spec: LayerSpec) -> str:
    if isinstance(spec, str):
        return spec
    return spec.__name__ if isinstance(spec, type) else find_layers(model, spec, "layer_pruning_ratios")[0]


def _group_record(cut: GroupCut, groups: Sequence[Group], plan: Plan) -> GroupRecord:
    sizes = {(c.parameter, c.dim): c for c in plan.cuts}
    layers = []
    for group in groups:
        if group.name == cut.name:
            for member in group.members:
                change = sizes.get((member.parameter, member.dim))
                gone = any(is_within(member.layer, path) for path in plan.dropped_blocks)
                after = 0 if gone else change.kept_size if change is not None else member.size
                layers.append(LayerRecord(member.layer, member.parameter, member.dim, member.role, member.size, after))
    return GroupRecord(
        name=cut.name,
        kind=cut.kind,
        layers=tuple(layers),
        units_before=cut.size,
        units_after=cut.kept_size,
        removed=cut.dropped,
        scores=cut.scores,
        asked_ratio=cut.asked_ratio,
        note=cut.note,
    )


def _proof_record(verification: Verification | None) -> ProofRecord:
    if verification is None:
        return ProofRecord(None, None, None, "", 0, 0.0, "verification was switched off")
    return ProofRecord(
        verification.passed,
        verification.max_relative_error,
        verification.tolerance,
        verification.dtype,
        verification.runs,
        verification.seconds,
    )


def _budget_record(plan: Plan, metrics: Sequence[ModelMetrics]) -> BudgetRecord:
    original, pruned = metrics[0], metrics[min(1, len(metrics) - 1)]
    latency = None
    if original.latency is not None and pruned.latency is not None:
        latency = 1 - pruned.latency.median_ms / original.latency.median_ms
    reached = {
        "channels": plan.dropped_units / plan.units if plan.units else 0.0,
        "params": 1 - pruned.parameters / original.parameters if original.parameters else 0.0,
        "macs": 1 - pruned.macs / original.macs if original.macs else 0.0,
    }
    target, asked = str(plan.settings["target"]), float(plan.settings["pruning_ratio"])
    note = ""
    if abs(reached[target] - asked) > 0.01:
        causes = ["groups shrink by whole units only"]
        causes += ["layer_pruning_ratios ask for other shares"] if plan.settings["layer_pruning_ratios"] else []
        causes += ["max_pruning_ratio holds groups back"] if plan.settings["max_pruning_ratio"] < 1 else []
        causes += ["min_channels holds groups back"] if plan.settings["min_channels"] > 1 else []
        causes += ["round_to keeps multiples"] if plan.settings["round_to"] > 1 else []
        causes += ["residual blocks were dropped whole"] if plan.dropped_blocks else []
        causes += ["some groups were not scored"] if any(group.scores is None for group in plan.groups) else []
        note = "; ".join(causes)
    return BudgetRecord(target, asked, reached[target], **reached, latency=latency, note=note)


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return type(get_ipython()).__name__ == "ZMQInteractiveShell"
