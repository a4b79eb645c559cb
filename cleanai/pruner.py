"""The front door: `StructuredPruner` runs the pipeline from a trained model to a smaller, proven one and its report."""

from __future__ import annotations

import copy
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai.calibration import ActivationStatistics, collect_statistics
from cleanai.cost import CostModel
from cleanai.coupling import Coupling, Frozen, Group, couple_channels, solve_coupling
from cleanai.errors import CleanAIError, InputError, TraceError, VerificationError
from cleanai.evaluate import ModelMetrics, measure_model
from cleanai.fields import IntArray
from cleanai.fitting import AttributeRule, Fitting, alive_classes, make_plan, probe_choice
from cleanai.importance import Importance, ScoredGroup, find_importance, score_group
from cleanai.isolation import list_state, transaction
from cleanai.plan import GroupCut, Plan
from cleanai.report import BudgetRecord, FrozenRecord, GroupRecord, LayerRecord, ProofRecord, Report
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
    warnings = []
    if traces[0].unused:
        training = _trace_training(model, example_inputs, traces[0].method, options)
        traces += (
            [training]
            if training.outputs and (training.failure or len(training.unused) < len(traces[0].unused))
            else []
        )
        warnings = _warn_of_unused(traces[-1], training.failure)
    coupling = couple_channels(*traces)
    if ignored:
        _freeze_ignored(coupling, ignored)
    _prefer_more_units(coupling)
    _freeze_single_units(coupling)
    fitting = Fitting(model, example_inputs, coupling, forward_fn, output_transform)
    fitting.fit(probe_choice)
    _freeze_single_units(coupling)
    return Analysis(coupling, fitting, tuple(warnings))


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
        self.limits = Limits(min_channels, 1 if round_to is None else round_to, max_pruning_ratio)
        self.inplace = inplace
        self.verify = verify
        self._options: dict[str, Any] = {"forward_fn": forward_fn, "output_transform": output_transform}
        self._importance_name = importance if isinstance(importance, str) else repr(self.importance)
        _check_tensors(model)
        single = isinstance(ignored_layers, (str, type, nn.Module))
        ignored: list[Any] = [ignored_layers] if single else [*ignored_layers]
        self._ignored = [path for spec in ignored for path in find_layers(model, spec, "ignored_layers")]
        self.analysis = self._analyze(model)
        resolve_ratios(model, self.analysis.coupling, self.layer_pruning_ratios)
        self.statistics: ActivationStatistics | None = None
        self.plan: Plan | None = None
        self.pruned: nn.Module | None = None
        self.verification: Verification | None = None
        self.warnings: list[str] = list(self.analysis.warnings)
        self._before: ModelMetrics | None = None
        self._full_cost: float | None = None
        self._statistics_left: ActivationStatistics | None = None
        self._reported: tuple[tuple[Group, ...], tuple[Frozen, ...]] = ((), ())

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
        if getattr(self.importance, "needs_activations", False) and statistics is None:
            raise InputError(
                f"{self._importance_name} needs activations: call collect_activations(loader) before prune()"
            )
        tensors = {state.name: state.tensor for state in list_state(model)}
        modules = dict(model.named_modules())
        return {
            group.index: score_group(self.importance, ScoredGroup(group, tensors, modules, statistics))
            for group in analysis.groups
        }

    def make_plan(self) -> Plan:
        """Chooses what goes; nothing is changed. The plan prints, saves as JSON, and can be applied with `slice_model`.

        Raises:
            InputError: the scores need activations that were not collected, or a scorer returned something unusable.
        """
        self.warnings = list(self.analysis.warnings)
        self._full_cost = None
        if self.iterative_steps == 1:
            plan, self._statistics_left = self._plan_round(
                self.model, self.analysis, self.statistics, self.pruning_ratio, None
            )
            return plan
        working = copy_model(self.model)
        total: Plan | None = None
        statistics, analysis = self.statistics, self.analysis
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
            ratios = resolve_ratios(model, current, self.layer_pruning_ratios)
            scale = ratio / self.pruning_ratio if self.pruning_ratio else 1.0
            ratios = {index: value * scale for index, value in ratios.items()}
            ladders = [
                build_ladder(group, values, self.limits, _original_size(group, before))
                for group in current.groups
                # A group that an earlier round cut in other units (its heads, not its channels) has given its share.
                if (values := scores[group.index]) is not None
                and (group.name not in before or before[group.name].kind == group.kind)
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
        groups, frozen = self.groups, self.frozen
        target = self.model if self.inplace else copy_model(self.model)
        try:
            verification = _slice_and_prove(target, plan, reference, self._options)
        except VerificationError as error:
            fault = self.find_fault(plan)
            where = f"; the group at fault is {fault}" if fault else ""
            raise VerificationError(f"{error}{where}. The model has not been changed.") from error
        self.plan, self.pruned, self.verification = plan, target, verification
        self._reported = (groups, frozen)
        if self.inplace:
            self.analysis = self._analyze(self.model)
            self.statistics = self._statistics_left
        return target

    def find_fault(self, plan: Plan) -> str | None:
        """The first group whose part of a plan alone fails the proof, or None."""
        coupling = self.analysis.coupling
        for group in coupling.groups:
            cut = next((g for g in plan.groups if g.name == group.name), None)
            if cut is None or not cut.dropped or cut.size != group.size:
                continue
            alone = make_plan(coupling, {group.index: list(cut.dropped)}, self.analysis.rules)
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
        if tensor.is_inference():
            raise InputError(f"{state.name} was made under torch.inference_mode; make the model outside of it")
        judged = state.is_statistic or isinstance(tensor, nn.Parameter)  # other buffers may be masks of -inf
        if judged and tensor.is_floating_point() and tensor.device.type != "meta" and not bool(tensor.isfinite().all()):
            raise InputError(
                f"{state.name} holds NaN or infinite values: repair or retrain the model before pruning it"
            )


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
                after = change.kept_size if change is not None else member.size
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
        causes += ["some groups were not scored"] if any(group.scores is None for group in plan.groups) else []
        note = "; ".join(causes)
    return BudgetRecord(target, asked, reached[target], **reached, latency=latency, note=note)


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return type(get_ipython()).__name__ == "ZMQInteractiveShell"
