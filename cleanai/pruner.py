"""The front door: `StructuredPruner` runs the pipeline from a trained model to a smaller, proven one and its report."""

from __future__ import annotations

import contextlib
import copy
import platform
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai.analysis import Analysis, analyze_model
from cleanai.calibration import ActivationStatistics, collect_statistics
from cleanai.checks import check_choice, check_flag, check_iterable, check_plain, check_ratio, check_type, suggest_names
from cleanai.cost import CostModel
from cleanai.coupling import Coupling, Frozen, Group
from cleanai.depth import Block, choose_blocks, renumber_groups, score_blocks
from cleanai.distributed import merge_over_processes
from cleanai.errors import CleanAIError, InputError, TraceError, VerificationError
from cleanai.evaluate import ModelMetrics, measure_model
from cleanai.fields import IntArray
from cleanai.fitting import make_plan
from cleanai.gradients import GradientStatistics, LossFunction, collect_gradients
from cleanai.history import merge_steps, own_history
from cleanai.importance import Importance, ScoredGroup, find_importance
from cleanai.importance.group import score_group, thresholds_of
from cleanai.isolation import copy_model, evaluation_mode, list_state, preserve_model, take_back, transaction
from cleanai.latency import LatencyRatio, compare_latency
from cleanai.optimizers import list_parameters, note_heirs
from cleanai.plan import BlockCut, GroupCut, Plan
from cleanai.prediction import alive_classes
from cleanai.prices import Prices
from cleanai.records import make_budget_record, make_group_record, make_proof_record
from cleanai.recover import Recovery, check_method, recover_model
from cleanai.report import BlockRecord, FrozenRecord, Report
from cleanai.schedules import Schedule, list_shares
from cleanai.select import (
    TARGETS,
    Budget,
    LayerSpec,
    Limits,
    build_ladder,
    check_reach,
    choose_units,
    describe_structure,
    find_layers,
    find_made,
    is_within,
    resolve_ratios,
)
from cleanai.slicing import slice_model
from cleanai.stages import list_stages
from cleanai.steps import PruningStep, all_or_nothing, call_back, check_tensors, join_proofs
from cleanai.trace import ForwardFunction, trace_model
from cleanai.verify import Verification, compare_with_reference, compute_reference, try_plan

Choice = dict[int, IntArray]


@dataclass
class _Walk:
    """Where pruning in steps stands: the model as it is now, and what has gone from the original."""

    model: nn.Module
    analysis: Analysis
    statistics: ActivationStatistics | None
    gradients: GradientStatistics | None
    reference: nn.Module | None = None  # the original, to compare latencies with and to repair towards
    full_cost: float = 0.0  # the target of the original
    depth: Plan = field(default_factory=Plan)
    width: Plan = field(default_factory=Plan)
    scores_before: dict[int, Tensor | None] = field(default_factory=dict)  # of the whole model's groups
    reached: float = 0.0


@dataclass(frozen=True)
class _Selection:
    """What is chosen from some groups: their scores, the shares that were asked of them, and the units that go."""

    groups: tuple[Group, ...]
    scores: dict[int, Tensor | None]
    asked: dict[int, float]
    chosen: Choice


class StructuredPruner:
    """Prunes a trained model by real slicing, proves the result, and reports what went and why.

    Args:
        model: the trained model; left untouched unless ``inplace``.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments that the model accepts.
        importance: a scorer, or its name ("magnitude", "wanda", "weight_activation", …); higher = keep.
        pruning_ratio: the share to remove, in [0, 1): of the channels of each prunable group, or of ``target``.
        target: "channels", or "params" / "macs" / "latency" for that share of the whole model. Latency is measured:
            about ten candidates are built and timed against the original on the example inputs.
        global_pruning: rank the units of all groups together (scores normalised as the criterion says).
        isomorphic: rank the units of groups of the same structure together; every such set gives its share (Fang et
            al., "Isomorphic Pruning for Vision Models", 2024).
        cost_aware: where units of several groups are ranked together, rank by score per saving of the target; None
            leaves that to the criterion.
        iterative_steps: reach the ratio in so many steps, scored anew in each.
        schedule: how much of the ratio each step reaches: "linear", "geometric", "cubic", "one_shot", or a function
            from the step (1, 2, …) to the share (see `cleanai.schedules`).
        layer_pruning_ratios: {module, name or type: ratio} for the groups whose channels those layers make; a name may
            also be that of a group.
        ignored_layers: modules, names or types whose tensors must not be touched, neither inputs nor outputs.
        depth_pruning_ratio: the share of the residual blocks to drop whole, in [0, 1), before anything is made
            narrower; at least one stays.
        drop_layers: residual blocks to drop in any case: modules, names or types.
        max_pruning_ratio: no group loses more than this share.
        min_channels: no group keeps fewer channels.
        round_to: kept channels are a multiple of this.
        inplace: prune the model itself rather than a copy.
        recover: repair what a cut broke without training, on the data given to `collect_activations`: "none",
            "batchnorm", "bias" or "least_squares" (see `cleanai.recover_model`); done after the proof.
        verify: prove the result (see `cleanai.verify_pruning`); a failed proof leaves the model as it was and raises.
        keep_removed: keep what is removed with the pruned model, so that `cleanai.rollback` can put it back.
        forward_fn: ``forward_fn(model, inputs)`` in place of ``model(inputs)``.
        output_transform: picks the differentiable part of the model's output.

    Attributes:
        plan: after `prune`, what went, as a `cleanai.Plan`; None before.
        pruned: after `prune`, the smaller model; None before.
        verification: after `prune`, the proof, as a `cleanai.Verification`; None before and with ``verify=False``.
        recovery: after `prune`, what the repair did, as a `cleanai.Recovery`; None where there was none.
        statistics: what `collect_activations` collected; None before.
        gradients: what `collect_gradients` collected; None before.
        analysis: what is known of the model's structure (see `cleanai.analyze_model`).
        warnings: what the user should know, as sentences.

    Raises:
        InputError: an argument that cannot be used; it says which and what to do. Nothing has been changed.
        TraceError: no output of the model depends on its parameters.

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
        isomorphic: bool = False,
        cost_aware: bool | None = None,
        iterative_steps: int = 1,
        schedule: Schedule = "linear",
        layer_pruning_ratios: Mapping[LayerSpec, float] | None = None,
        ignored_layers: Sequence[LayerSpec] = (),
        depth_pruning_ratio: float = 0.0,
        drop_layers: Sequence[LayerSpec] = (),
        max_pruning_ratio: float = 1.0,
        min_channels: int = 1,
        round_to: int | None = None,
        inplace: bool = False,
        recover: str = "none",
        verify: bool = True,
        keep_removed: bool = False,
        forward_fn: ForwardFunction | None = None,
        output_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        check_plain(model)
        for name, value in (("inplace", inplace), ("verify", verify), ("keep_removed", keep_removed)):
            check_flag(value, name)
        for name, function in (("forward_fn", forward_fn), ("output_transform", output_transform)):
            if function is not None and not callable(function):
                raise InputError(f"{name} is {function!r}; give a function, or leave it out")
        if layer_pruning_ratios is not None:
            check_type(layer_pruning_ratios, Mapping, "layer_pruning_ratios", "a dict {layer: ratio}")
        self.model = model
        self.example_inputs = example_inputs
        self.iterative_steps = iterative_steps
        self.schedule = schedule
        self._take_settings(
            importance=importance,
            pruning_ratio=pruning_ratio,
            target=target,
            global_pruning=global_pruning,
            isomorphic=isomorphic,
            cost_aware=cost_aware,
            recover=recover,
        )
        self.layer_pruning_ratios = dict(layer_pruning_ratios or {})
        self.limits = Limits(min_channels, 1 if round_to is None else round_to, max_pruning_ratio)
        self.inplace = inplace
        self.verify = verify
        self.keep_removed = keep_removed
        self._options: dict[str, Any] = {"forward_fn": forward_fn, "output_transform": output_transform}
        check_tensors(model)
        self._ignored = _find_all(model, ignored_layers, "ignored_layers")
        self.depth_pruning_ratio = check_ratio(depth_pruning_ratio, "depth_pruning_ratio")
        self._dropped = _find_all(model, drop_layers, "drop_layers")
        self.analysis = self._analyze(model)
        self._ratio_paths = {
            spec: find_made(model, self.analysis.coupling, spec, "layer_pruning_ratios")
            for spec in self.layer_pruning_ratios
        }
        resolve_ratios(model, self.analysis.coupling, self.layer_pruning_ratios)
        check_reach(self.groups, self.limits)
        self._check_blocks()
        self.statistics: ActivationStatistics | None = None
        self.gradients: GradientStatistics | None = None
        self._loader: tuple[Iterable[Any], int | None, bool | None, bool] | None = None
        self._forget()

    def _take_settings(self, **settings: Any) -> None:
        """Checks and keeps the settings that `vary` can change; those that are not given stay as they are."""
        given = self._given = {**getattr(self, "_given", {}), **settings}
        check_choice(given["target"], TARGETS, "target")
        for name in ("global_pruning", "isomorphic"):
            check_flag(given[name], name)
        if given["cost_aware"] is not None:
            check_flag(given["cost_aware"], "cost_aware")
        importance, cost_aware = given["importance"], given["cost_aware"]
        self.importance: Importance = find_importance(importance)
        self.importance_name = importance if isinstance(importance, str) else repr(self.importance)
        self.pruning_ratio = check_ratio(given["pruning_ratio"], "pruning_ratio")
        self.target: str = given["target"]
        self.global_pruning: bool = given["global_pruning"]
        self.isomorphic: bool = given["isomorphic"]
        self.cost_aware = bool(getattr(self.importance, "cost_aware", False)) if cost_aware is None else cost_aware
        if cost_aware and not self._ranks_together:
            raise InputError(
                "cost_aware=True ranks units of several groups: use it with global_pruning=True or isomorphic=True"
            )
        self._shares = list_shares(self.schedule, self.iterative_steps, self.pruning_ratio)
        self.recover = check_method(given["recover"])

    def _forget(self) -> None:
        """Nothing has been planned or pruned yet."""
        self.recovery: Recovery | None = None
        self.plan: Plan | None = None
        self.pruned: nn.Module | None = None
        self.verification: Verification | None = None
        self.warnings: list[str] = list(self.analysis.warnings)
        self._before: ModelMetrics | None = None
        self._planned: Analysis = self.analysis
        self._latency: LatencyRatio | None = None
        self._reported: tuple[tuple[Group, ...], tuple[Frozen, ...]] = ((), ())
        self._block_costs: dict[str, tuple[int, int]] = {}

    def vary(self, **settings: Any) -> StructuredPruner:
        """A pruner of the same model with other settings, which has all that was collected for this one.

        It knows nothing of what this one has pruned, prunes a copy even if this one works in place, and neither of the
        two changes the other. What the model's structure allows is shared, so it is made in no time.

        Args:
            settings: any of importance, pruning_ratio, target, global_pruning, isomorphic, cost_aware and recover.

        Raises:
            InputError: a setting that cannot be used.

        Example:
            >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> pruner = StructuredPruner(net, torch.randn(1, 3), pruning_ratio=0.5)
            >>> pruner.vary(pruning_ratio=0.25).prune()[0]
            Linear(in_features=3, out_features=6, bias=True)
        """
        unknown = [name for name in settings if name not in self._given]
        if unknown:
            hint = suggest_names(unknown[0], self._given)
            raise InputError(
                f"vary: {unknown[0]!r} is no setting that can be varied; use {', '.join(self._given)}{hint}"
            )
        other = copy.copy(self)
        other._take_settings(**settings)
        other.inplace = False
        other.analysis = self.analysis.fork()
        other._forget()
        return other

    # ----------------------------------------------------------------------------------------------------- looking

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of channels that can be pruned, each with its ``name``, ``kind`` and ``size`` in units.

        Example:
            >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> [(group.name, group.kind, group.size) for group in StructuredPruner(net, torch.randn(1, 3)).groups]
            [('0', 'channels', 8)]
        """
        return self.analysis.groups

    @property
    def frozen(self) -> tuple[Frozen, ...]:
        """What cannot be pruned: records of ``layers``, how many ``channels`` they have, and the ``reason``."""
        return self.analysis.frozen

    @property
    def call_options(self) -> dict[str, Any]:
        """How the model is called: {"forward_fn": …, "output_transform": …}."""
        return dict(self._options)

    @property
    def _ranks_together(self) -> bool:
        return self.global_pruning or self.isomorphic

    def __repr__(self) -> str:
        state = "pruned" if self.pruned is not None else "not pruned yet"
        units = sum(group.size for group in self.groups)
        return f"StructuredPruner({type(self.model).__name__}, {len(self.groups)} groups, {units} units, {state})"

    def _analyze(self, model: nn.Module) -> Analysis:
        return analyze_model(model, self.example_inputs, ignored=self._ignored, **self._options)

    # ------------------------------------------------------------------------------------------------- calibrating

    def collect_activations(
        self,
        loader: Iterable[Any],
        num_batches: int | None = None,
        *,
        progress: bool | None = None,
        distributed: bool = False,
    ) -> ActivationStatistics:
        """Activation statistics from calibration data, kept for the scores and returned.

        Args:
            loader: yields tensors, (x, y) pairs, tuples or dicts; labels are left out. A criterion that wants
                statistics of the model as it is before each step (``recollect = True`` on it) and a repair go through
                it again.
            num_batches: at most so many batches; None for all.
            progress: True or False for a progress bar; None shows one on terminals.
            distributed: every process of a `torch.distributed` group calls this with batches of its own, and all of
                them get the statistics of all batches.

        Raises:
            InputError: the loader is empty, a batch does not fit the model, or an activation is NaN or infinite.

        Example:
            >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> pruner = StructuredPruner(net, torch.randn(1, 3), importance="wanda")
            >>> batches = [(torch.randn(16, 3), torch.zeros(16, dtype=torch.long)) for _ in range(4)]
            >>> pruner.collect_activations(batches, num_batches=2, progress=False)
            ActivationStatistics(2 layers, 2 batches, 32 samples)
            >>> pruner.prune()[0].out_features
            4
        """
        self.statistics = self._collect(
            self.model,
            loader,
            num_batches,
            progress,
            distributed,
            blocks={block.path: block.dim for block in self._list_blocks()},
        )
        self._loader = loader, num_batches, progress, distributed
        return self.statistics

    def _collect(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        num_batches: int | None,
        progress: bool | None,
        distributed: bool,
        blocks: Mapping[str, int | None],
    ) -> ActivationStatistics:
        statistics = collect_statistics(
            model,
            loader,
            example_inputs=self.example_inputs,
            num_batches=num_batches,
            forward_fn=self._options["forward_fn"],
            progress=progress,
            blocks=blocks,
            thresholds=thresholds_of(self.importance),
            stages=self._list_stages(model) if getattr(self.importance, "needs_moments", False) else None,
        )
        return merge_over_processes(statistics) if distributed else statistics

    def _list_stages(self, model: nn.Module) -> dict[str, int]:
        coupling = self.analysis.coupling
        axes = {site.module: site.axis for site in coupling.context.sites if site.side == "result"}
        here = {path for path, _ in model.named_modules()}  # a dropped block has no parts
        return {path: axes.get(path, 0) for path in list_stages(model, coupling.traces[0].trace) if path in here}

    def collect_gradients(
        self,
        loader: Iterable[Any],
        loss_fn: LossFunction | None = None,
        num_batches: int | None = None,
        *,
        probes: int = 1,
        curvature: bool | None = None,
        seed: int = 0,
        progress: bool | None = None,
        distributed: bool = False,
    ) -> GradientStatistics:
        """Gradient statistics from labelled batches, kept for the scores and returned.

        Args:
            loader: yields (inputs, labels) pairs, or whatever ``loss_fn`` understands.
            loss_fn: ``loss_fn(model, batch)``, a scalar; None for the cross-entropy of the first output.
            num_batches: at most so many batches; None for all.
            probes: how often the curvature of each batch is estimated (see `cleanai.collect_gradients`).
            curvature: look at curvature too; None for where the criterion needs it.
            seed: of the random signs that this takes.
            progress: True or False for a progress bar; None shows one on terminals.
            distributed: as in `collect_activations`.

        Raises:
            InputError: the loader is empty, a batch has no labels or does not fit the model, or the loss is not a
                finite scalar that depends on the parameters.

        Example:
            >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> pruner = StructuredPruner(net, torch.randn(1, 3), importance="taylor")
            >>> batches = [(torch.randn(16, 3), torch.zeros(16, dtype=torch.long))]
            >>> pruner.collect_gradients(batches, progress=False)
            GradientStatistics(4 parameters, 1 batches, 16 samples)
            >>> pruner.prune()[0].out_features
            4
        """
        gradients = collect_gradients(
            self.model,
            loader,
            loss_fn,
            num_batches,
            curvature=bool(getattr(self.importance, "needs_curvature", False)) if curvature is None else curvature,
            probes=probes,
            seed=seed,
            example_inputs=self.example_inputs,
            forward_fn=self._options["forward_fn"],
            progress=progress,
        )
        self.gradients = merge_over_processes(gradients) if distributed else gradients
        return self.gradients

    def _check_loader(self) -> None:
        """Before anything is cut: whether later steps can go through the calibration data again."""
        recollects = self.iterative_steps > 1 and getattr(self.importance, "recollect", False)
        if not recollects and self.recover == "none":
            return
        who = f"{self.importance_name} collects activations before every step"
        who = who if recollects else f"recover={self.recover!r} works on calibration data"
        if self._loader is None:
            raise InputError(f"{who}: call collect_activations(loader) first")
        if self._loader[-1] and self.recover != "none":
            raise InputError(
                f"recover={self.recover!r} goes through all calibration data on every process: call "
                "collect_activations(loader) with all of it, without distributed=True"
            )
        if iter(self._loader[0]) is self._loader[0]:
            raise InputError(
                f"{who}, but the loader given to collect_activations can be gone through only once; give a DataLoader "
                "or a list of batches"
            )

    def _statistics_for(self, walk: _Walk) -> ActivationStatistics | None:
        """The statistics of the model as it is now: collected afresh where the criterion asks for it."""
        if not getattr(self.importance, "recollect", False) or self._loader is None:
            return walk.statistics
        return self._collect(walk.model, *self._loader, blocks={})

    # ------------------------------------------------------------------------------------------------------ choosing

    def describe_groups(self) -> list[ScoredGroup]:
        """The groups with the model's tensors and what was collected of them: what a scorer is given.

        Example:
            >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> (group,) = StructuredPruner(net, torch.randn(1, 3)).describe_groups()
            >>> [(member.parameter, tuple(weight.shape)) for member, weight in group.weights()]
            [('0.weight', (8, 3)), ('2.weight', (2, 8))]
        """
        return _describe(self.model, self.groups, self.statistics, self.gradients)

    def score_groups(self, described: Sequence[ScoredGroup] | None = None) -> dict[str, Tensor | None]:
        """The score of every unit of every group, higher = keep: {group: float64, shape [size]}, None if not scored.

        ``described`` are the groups of `describe_groups`, where they are at hand already.

        Raises:
            InputError: activations or gradients are missing, or a scorer returned something unusable.

        Example:
            >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> scores = StructuredPruner(net, torch.randn(1, 3), importance="l1").score_groups()
            >>> scores["0"].shape, scores["0"].dtype
            (torch.Size([8]), torch.float64)
        """
        scores = self._score_all(self.model, self.describe_groups() if described is None else described)
        return {group.name: values for group, values in zip(self.groups, scores, strict=True)}

    def _score(
        self,
        model: nn.Module,
        analysis: Analysis,
        statistics: ActivationStatistics | None,
        gradients: GradientStatistics | None,
    ) -> dict[int, Tensor | None]:
        scores = self._score_all(model, _describe(model, analysis.groups, statistics, gradients))
        return {group.index: values for group, values in zip(analysis.groups, scores, strict=True)}

    def _score_all(self, model: nn.Module, described: Sequence[ScoredGroup]) -> list[Tensor | None]:
        if getattr(self.importance, "needs_activations", False) and any(g.statistics is None for g in described):
            raise InputError(
                f"{self.importance_name} needs activations: call collect_activations(loader) before prune()"
            )
        if getattr(self.importance, "needs_gradients", False) and any(g.gradients is None for g in described):
            raise InputError(f"{self.importance_name} needs gradients: call collect_gradients(loader) before prune()")
        with evaluation_mode(model):  # in training mode, reading a spectrally normalised weight moves its vectors
            return [score_group(self.importance, group) for group in described]

    def make_plan(self) -> Plan:
        """Chooses what goes; nothing is changed. The plan prints, saves as JSON, and can be applied with `slice_model`.

        Several steps are walked through on the model as it is: what a callback would train in between is not known.

        Raises:
            InputError: the scores need activations or gradients that were not collected, or a scorer returned something
                unusable.

        Example:
            >>> net = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2))
            >>> with torch.no_grad():
            ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [4.0], [2.0], [3.0]])), net[2].weight.fill_(1.0)
            >>> print(StructuredPruner(net, torch.randn(1, 1), pruning_ratio=0.5).make_plan())
            Plan(2 of 4 channels in 1 of 1 groups)
              0  4 -> 2 channels  0, 2
        """
        with self._all_or_nothing(), preserve_model(self.model):
            walk = self._begin()
            for number in range(1, self.iterative_steps + 1):
                plan = self._plan_step(walk, number)
                if number < self.iterative_steps:
                    slice_model(self.model, plan)
        return self._total(walk)

    def select_units(self, scores: Mapping[str, Tensor | None] | None = None) -> Plan:
        """What `make_plan` chooses, without trying the cut: the same selection, quick enough for a slider.

        `make_plan` also runs the cut on a stand-in, and keeps what the forward turns out not to do without; that has
        been tried on a small cut before, so the two differ only where a forward follows small cuts and not large ones.

        Args:
            scores: those of `score_groups`, where they are known already.

        Raises:
            InputError: the choice depends on more than scores (several steps, dropped blocks, latency), the scores are
                not those of the groups, or they need activations that were not collected.

        Example:
            >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
            >>> pruner = StructuredPruner(net, torch.randn(1, 3), pruning_ratio=0.25)
            >>> pruner.select_units({"0": torch.tensor([0.4, 0.1, 0.3, 0.2])}).kept("0.weight", 0)
            (0, 2, 3)
        """
        reasons = {
            "iterative_steps is above 1": self.iterative_steps > 1,
            "blocks are dropped": bool(self._list_blocks()),
            "latency is measured": self.target == "latency",
        }
        for reason, holds in reasons.items():
            if holds:
                raise InputError(f"select_units chooses by scores alone, but {reason}: use make_plan()")
        scores = self.score_groups() if scores is None else scores
        unknown = {group.name for group in self.groups} ^ set(scores)
        if unknown:
            raise InputError(f"select_units: the scores are not those of the groups, see {min(unknown)}")
        for group in self.groups:
            values = scores[group.name]
            if values is not None and tuple(values.shape) != (group.size,):
                raise InputError(
                    f"select_units: the scores of {group.name} have the shape {tuple(values.shape)}; give one for each "
                    f"of its {group.size} {group.kind}"
                )
            if values is not None and not bool(torch.isfinite(values).all()):
                raise InputError(
                    f"select_units: the scores of {group.name} hold NaN or infinite values; give finite ones"
                )
        walk = self._begin()
        known = {group.index: scores[group.name] for group in self.groups}
        selection = self._select(walk, self._prices(walk), self._shares[0], known)
        self._note_unscored(self.analysis.coupling, selection.scores)
        return self._write_plan(walk, selection)

    # ----------------------------------------------------------------------------------------------- walking in steps

    def _begin(self) -> _Walk:
        """Before the first step: nothing is known of an earlier run, and what could stop a later step is checked."""
        self.warnings = list(self.analysis.warnings)
        self._latency = None
        self._check_loader()
        walk = _Walk(self.model, self.analysis, self.statistics, self.gradients)
        if self.target == "latency" or self.recover != "none":
            walk.reference = copy_model(self.model) if self.inplace else self.model
        if self.target == "latency":
            walk.full_cost = 1.0
        elif self.target != "channels":
            walk.full_cost = self._prices(walk).cost({})
        return walk

    def _plan_step(self, walk: _Walk, number: int) -> Plan:
        """What goes in one step from the model as it is now; the caller slices it before the next."""
        share = self._shares[number - 1]
        if number == 1:
            walk.depth = self._plan_depth()
            walk.width = self._plan_first(walk, share)
            return walk.depth.then(walk.width)
        if share <= self._shares[number - 2]:
            return Plan(settings=self._settings())
        walk.analysis = self._analyze(walk.model)
        walk.statistics = self._statistics_for(walk)
        plan = self._plan_round(walk, share)
        walk.width = walk.width.then(plan)
        return plan

    def _plan_first(self, walk: _Walk, share: float) -> Plan:
        """What goes from the groups in the first step, after the blocks that are dropped."""
        self._planned = self.analysis
        if not walk.depth.dropped_blocks:
            return self._plan_round(walk, share)
        # The scorer sees the whole model once more, for the channels that go with the blocks.
        walk.scores_before = self._score(self.model, self.analysis, self.statistics, self.gradients)
        with preserve_model(self.model):
            slice_model(self.model, walk.depth)
            walk.analysis = self._planned = self._analyze(self.model)
            found = [each for each in self.warnings if each not in self.analysis.warnings]
            self.warnings = [*self._planned.warnings, *found]
            return self._plan_round(walk, share)

    def _total(self, walk: _Walk) -> Plan:
        """Everything that has gone so far, in the numbering of the original model."""
        gone = walk.depth.dropped_blocks
        if not gone:
            return walk.depth.then(walk.width)
        groups = renumber_groups(walk.width.groups, self._planned.groups, self.groups, gone, walk.scores_before)
        return walk.depth.then(replace(walk.width, groups=groups))

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

        Example:
            >>> class Block(nn.Module):
            ...     def __init__(self, scale):
            ...         super().__init__()
            ...         self.inside = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
            ...         _ = nn.init.constant_(self.inside[2].weight, scale), nn.init.zeros_(self.inside[2].bias)
            ...
            ...     def forward(self, x):
            ...         return x + self.inside(x)
            >>> net = nn.Sequential(nn.Linear(3, 8), Block(0.01), Block(1.0), nn.Linear(8, 2))
            >>> scores = StructuredPruner(net, torch.randn(1, 3)).score_blocks()
            >>> scores["1"] < scores["2"]
            True
        """
        blocks = self._list_blocks() or list(self.analysis.blocks)
        if getattr(self.importance, "needs_activations", False) and self.statistics is not None:
            seen = self.statistics.blocks
            if all(block.path in seen for block in blocks):
                return {block.path: seen[block.path].influence for block in blocks}
        scores = self._score(self.model, self.analysis, self.statistics, self.gradients)
        tensors = {state.name: state.tensor for state in list_state(self.model)}

        def judge(group: Group) -> Tensor | None:
            return self._score_all(self.model, _describe(self.model, [group], self.statistics, self.gradients))[0]

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

    def _plan_round(self, walk: _Walk, share: float) -> Plan:
        """What goes from the groups of the model as it is now, when ``share`` of the whole ratio shall be reached.

        What is left of the statistics, and what is reached of the target, is noted in ``walk``.
        """
        analysis, coupling, prices = walk.analysis, walk.analysis.coupling, self._prices(walk)
        made: list[_Selection] = []

        def choose(current: Coupling) -> Choice:
            if not made or made[0].groups is not current.groups:  # else it is asked again for the same groups
                made[:] = [self._select(walk, prices, share)]
            return dict(made[0].chosen)

        analysis.fitting.fit(choose)
        chosen = made[0].chosen
        self._note_unscored(coupling, made[0].scores)
        plan = self._write_plan(walk, made[0])
        alive = alive_classes(coupling, chosen)
        if walk.statistics is not None:
            kept = {
                (site.module, site.side): torch.from_numpy(np.flatnonzero(alive[coupling.class_of[site.labels]]))
                for site in coupling.context.sites
            }
            walk.statistics = walk.statistics.after(kept)
        if walk.gradients is not None:
            walk.gradients = walk.gradients.after({(c.parameter, c.dim): torch.tensor(c.kept) for c in plan.cuts})
        if self.target == "channels":
            total = walk.width.then(plan)
            walk.reached = total.dropped_units / total.units if total.units else 0.0
        elif walk.full_cost:
            walk.reached = 1 - prices.cost(chosen) / walk.full_cost
        return plan

    def _select(
        self, walk: _Walk, prices: Prices, share: float, scores: dict[int, Tensor | None] | None = None
    ) -> _Selection:
        """Which units of the groups as they are now go by their scores and the budget."""
        groups = walk.analysis.groups
        if scores is None:
            scores = self._score(walk.model, walk.analysis, walk.statistics, walk.gradients)
        before = {group.name: group for group in reversed(walk.width.groups)}  # of one name, as the first round cut it
        first = not walk.width.groups  # later, a group may have shrunk to a single unit, which is no group
        ratios = resolve_ratios(walk.model, walk.analysis.coupling, self._ratios_in(walk.model), strict=first)
        ratios = {index: value * share for index, value in ratios.items()}
        ratio = self.pruning_ratio * share
        ladders = [
            build_ladder(group, values, self.limits, _original_size(group, before))
            for group in groups
            # A group that an earlier round cut in other units (its heads, not its channels) has given its share.
            if (values := scores[group.index]) is not None
            and (group.name not in before or _same_units(before[group.name], group))
        ]
        asked = {ladder.group.index: ratios.get(ladder.group.index, ratio) for ladder in ladders}
        return _Selection(groups, scores, asked, choose_units(ladders, self._budget(walk, prices, ratio, ratios)))

    def _write_plan(self, walk: _Walk, selection: _Selection) -> Plan:
        """The plan of a selection, with the scores and why a group was spared."""
        per_group = self.target == "channels" and not self._ranks_together
        records = {}
        for group in selection.groups:
            values = selection.scores[group.index]
            records[group.index] = {
                "scores": None if values is None else tuple(values.tolist()),
                "asked_ratio": selection.asked.get(group.index) if per_group else None,
                "note": "" if values is not None else "kept: not scored, the criterion does not see it",
            }
        analysis = walk.analysis
        return make_plan(analysis.coupling, selection.chosen, analysis.rules, records, self._settings())

    def _prices(self, walk: _Walk) -> Prices:
        reference = walk.reference
        if reference is None or self.target != "latency":
            return Prices(walk.model, walk.analysis, self.target)
        return Prices(
            walk.model, walk.analysis, self.target, lambda model: self._compare_latency(model, reference).ratio
        )

    def _budget(self, walk: _Walk, prices: Prices, ratio: float, ratios: Mapping[int, float]) -> Budget:
        structures = None
        if self.isomorphic:
            structures = {group.index: describe_structure(walk.model, group) for group in walk.analysis.groups}
        return Budget(
            ratio,
            self.target,  # ty: ignore[invalid-argument-type]  (one of TARGETS, checked)
            self._ranks_together,
            ratios,
            prices.cost,
            walk.full_cost,
            sets=structures,
            normalizer=getattr(self.importance, "normalizer", "mean"),
            savings=prices.save if self.cost_aware else None,
        )

    def _compare_latency(self, model: nn.Module, reference: nn.Module, pairs: int = 5) -> LatencyRatio:
        return compare_latency(
            model, reference, self.example_inputs, forward_fn=self._options["forward_fn"], pairs=pairs
        )

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
            "importance": self.importance_name,
            "pruning_ratio": self.pruning_ratio,
            "target": self.target,
            "global_pruning": self.global_pruning,
            **({"isomorphic": True} if self.isomorphic else {}),
            **({"cost_aware": True} if self.cost_aware and self._ranks_together else {}),
            "iterative_steps": self.iterative_steps,
            **({"schedule": self._schedule_name} if self.iterative_steps > 1 else {}),
            "layer_pruning_ratios": {_spec_name(self.model, k): v for k, v in self.layer_pruning_ratios.items()},
            "ignored_layers": list(self._ignored),
            **({"depth_pruning_ratio": self.depth_pruning_ratio} if self.depth_pruning_ratio else {}),
            **({"drop_layers": list(self._dropped)} if self._dropped else {}),
            "max_pruning_ratio": self.limits.max_pruning_ratio,
            "min_channels": self.limits.min_channels,
            "round_to": self.limits.round_to,
            **({"recover": self.recover} if self.recover != "none" else {}),
            "calibration_samples": self.statistics.samples if self.statistics is not None else 0,
        }

    @property
    def _schedule_name(self) -> str:
        return self.schedule if isinstance(self.schedule, str) else getattr(self.schedule, "__name__", "function")

    # ------------------------------------------------------------------------------------------------------ cutting

    def prune(self, callback: Callable[[PruningStep], object] | None = None) -> nn.Module:
        """The smaller model: planned, sliced and, unless ``verify=False``, proven, step by step.

        Returns a new model, or with ``inplace`` the model itself. Make the optimizer afterwards (or see
        `cleanai.migrate_optimizer`): parameters are new.

        Whatever is raised until this returns (by a scorer, by the callback, by Ctrl-C, for want of memory), the
        caller's model and the pruner are as they were: this commits by returning. What a callback changed elsewhere
        stays changed, and with ``inplace=False`` the caller's model is never written to.

        Threads may prune several models at once, each its own: what draws random numbers or changes settings of the
        whole process (tracing, calibration, the proof, recovery, measurement) is done by one thread at a time, so all
        get what they would get alone. Callbacks run freely; one that runs in threads should draw from a generator of
        its own. A loader or a forward must not wait for another thread that uses CleanAI.

        Args:
            callback: called after each step with the `cleanai.PruningStep`; it may train the model in place (with an
                optimizer made in the callback), and the next step scores what it left.

        Raises:
            InputError: activations or gradients are missing, a scorer returned something unusable, or the callback
                changed the shape of the model.
            VerificationError: the pruned model does not equal the masked original; the group at fault is named.

        Example:
            >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> pruner = StructuredPruner(net, torch.randn(1, 3), pruning_ratio=0.5)
            >>> pruned = pruner.prune()
            >>> pruned is net, tuple(net[0].weight.shape), tuple(pruned[0].weight.shape)
            (False, (8, 3), (4, 3))
            >>> pruner.plan
            Plan(4 of 8 channels in 1 of 1 groups)
        """
        if callback is not None and not callable(callback):
            raise InputError(f"callback is {callback!r}; give a function of a PruningStep")
        with self._all_or_nothing():
            walk = self._begin()
            history, parameters = own_history(self.model), list_parameters(self.model)
            before = self._measure(self.model) if self.inplace else None
            with self._guard(callback):
                proofs = self._take_steps(walk, callback)
                plan = self._total(walk)
                merge_steps(walk.model, history, plan)
                note_heirs(parameters, walk.model, plan)
                self.plan, self.pruned, self.verification = plan, walk.model, join_proofs(proofs)
                self._before = before if self.inplace else self._before
                self._reported = (
                    tuple({group.name: group for group in (*self._planned.groups, *self.groups)}.values()),
                    self._planned.frozen,
                )
                if walk.reference is not None and self.target == "latency":
                    self._latency = self._compare_latency(walk.model, walk.reference, pairs=9)
                if self.inplace:
                    self.analysis = self._analyze(self.model)
                    self.statistics, self.gradients = walk.statistics, walk.gradients
        return walk.model

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Generator[None]:
        """What the pruner knows is as before when anything is raised: also what was learnt of the model half-way."""
        now, before = self.analysis, self.analysis.fork()
        held = {name: before if value is now else value for name, value in self.__dict__.items()}
        try:
            yield
        except BaseException:
            self.__dict__ = held
            raise

    def _guard(self, callback: object) -> AbstractContextManager[object]:
        """Takes back what is done to the caller's model when anything is raised; slicing only replaces tensors."""
        if not self.inplace:
            return contextlib.nullcontext()
        trains = callback is not None or self.recover != "none"  # these change values of tensors that stay
        several = trains or self.iterative_steps > 1
        return all_or_nothing(self.model, trains) if several else transaction(self.model)

    def _take_steps(self, walk: _Walk, callback: Callable[[PruningStep], object] | None) -> list[Verification]:
        """Plans, cuts and proves step after step on the model that is handed out in the end."""
        proofs = []
        for number in range(1, self.iterative_steps + 1):
            plan = self._plan_step(walk, number)
            if number == 1:
                self._block_costs = self._count_blocks(plan)
            later = number > 1 and callback is not None and self.recover != "none"
            trained = copy_model(walk.model) if later else None
            parameters = list_parameters(walk.model)
            proof = self._cut(walk, plan, number)
            note_heirs(parameters, walk.model, plan)
            proofs += [] if proof is None else [proof]
            self._repair(walk, trained, plan)
            if callback is not None:
                asked = self.pruning_ratio * self._shares[number - 1]
                total, steps = self._total(walk), self.iterative_steps
                step = PruningStep(number, steps, walk.model, total, plan, self.target, asked, walk.reached, proof)
                call_back(callback, step)
        return proofs

    def _repair(self, walk: _Walk, trained: nn.Module | None, plan: Plan) -> None:
        """Repairs the model after a step's proof: towards the original, or what a callback has made of it since."""
        if self.recover == "none":
            return
        assert self._loader is not None and walk.reference is not None
        loader, num_batches, progress, _ = self._loader
        self.recovery = recover_model(
            walk.reference if trained is None else trained,
            walk.model,
            self._total(walk) if trained is None else plan,
            (self.analysis if trained is None else walk.analysis).coupling,
            loader,
            self.example_inputs,
            method=self.recover,
            num_batches=num_batches,
            forward_fn=self._options["forward_fn"],
            progress=progress,
        )

    def _cut(self, walk: _Walk, plan: Plan, number: int) -> Verification | None:
        """Slices one step's plan and proves it against the model before that step."""
        if number > 1 and plan.is_empty:
            return None
        model = walk.model
        reference = compute_reference(model, plan, self.example_inputs, **self._options) if self.verify else None
        if number == 1 and not self.inplace:
            walk.model = copy_model(model)
        try:
            return _slice_and_prove(walk.model, plan, reference, self._options, self.keep_removed)
        except VerificationError as error:
            take_back(walk.model)  # in place, the cut is part of a transaction that is still open
            analysis = self._planned if number == 1 else walk.analysis
            fault = self._find_fault(model, analysis, plan)
            kind = "block" if fault in plan.dropped_blocks else "group"
            where = f"; the {kind} at fault is {fault}" if fault else ""
            raise VerificationError(f"{error}{where}. The model has not been changed.") from error

    def _count_blocks(self, plan: Plan) -> dict[str, tuple[int, int]]:
        """The parameters and MACs of the plan's blocks in the original model."""
        coupling = self.analysis.coupling
        costs, alive = CostModel(coupling, []), alive_classes(coupling, {})
        blocks = {block.path: block for block in self._list_blocks()}
        return {cut.module: (blocks[cut.module].parameters, costs.count_macs(alive, cut.module)) for cut in plan.blocks}

    def find_fault(self, plan: Plan) -> str | None:
        """The name of the first block or group whose part of a ``plan`` alone fails the proof, or None.

        Example:
            >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> pruner = StructuredPruner(net, torch.randn(1, 3))
            >>> print(pruner.find_fault(pruner.make_plan()))
            None
        """
        return self._find_fault(self.model, self._planned, plan)

    def _find_fault(self, model: nn.Module, analysis: Analysis, plan: Plan) -> str | None:
        blocks = tuple(block for block in plan.blocks if block.dropped)
        for block in blocks:
            if not try_plan(model, Plan(blocks=(block,)), self.example_inputs, **self._options).passed:
                return block.module
        cuts = {cut.name: cut for cut in plan.groups}
        for group in analysis.groups:
            cut = cuts.get(group.name)
            if cut is None or not cut.dropped or cut.size != group.size:
                continue
            alone = make_plan(analysis.coupling, {group.index: list(cut.dropped)}, analysis.rules)
            alone = Plan(blocks=blocks).then(alone)
            if not try_plan(model, alone, self.example_inputs, **self._options).passed:
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
            model_name: what the report calls the model; its class if left out.
            metrics: measurements by stage, the original first and the pruned model second (`cleanai.measure_model`);
                measured without accuracy if left out.
            history: one dict per epoch of a fine-tuning.
            language: "en" or "tr".

        Raises:
            InputError: nothing has been pruned yet, or an unknown language.

        Example:
            >>> from cleanai import measure_model
            >>> net, x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 3)
            >>> pruner = StructuredPruner(net, x, pruning_ratio=0.25)
            >>> pruned = pruner.prune()
            >>> report = pruner.report(metrics={"original": measure_model(net, x), "pruned": measure_model(pruned, x)})
            >>> report.budget.asked, report.budget.reached, report.metrics["pruned"].parameters
            (0.25, 0.25, 38)
        """
        if self.plan is None or self.pruned is None:
            raise InputError("there is nothing to report yet: call prune() first")
        if metrics is not None and not metrics:
            raise InputError("metrics holds no stage: give measurements of one or more, or leave it out")
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
            groups=tuple(make_group_record(cut, groups, self.plan) for cut in self.plan.groups),
            frozen=tuple(FrozenRecord(f.layers, f.channels, f.reason) for f in frozen),
            proof=make_proof_record(self.verification),
            budget=make_budget_record(self.plan, list(metrics.values()), self._latency),
            history=[dict(record) for record in history] if history is not None else None,
            warnings=list(self.warnings),
            language=language,
            recovery=self.recovery,
            blocks=tuple(
                BlockRecord(b.module, b.kind, *self._block_costs[b.module], b.dropped, b.score, b.note)
                for b in self.plan.blocks
            ),
        )

    def summary(self, language: str = "en") -> None:
        """Shows the report: as HTML in a notebook, as text in a terminal. ``language`` is "en" or "tr".

        It measures what `report` measures, latencies among it, which takes about a second. ``print(pruner.report(…))``
        shows the same in any case.

        Raises:
            InputError: nothing has been pruned yet, or an unknown language.
        """
        report = self.report(language=language)
        if _in_notebook():
            from IPython.display import display

            display(report)
        else:
            sys.stdout.write(f"{report}\n")


# ------------------------------------------------------------------------------------------------------------ helpers


def _describe(
    model: nn.Module,
    groups: Sequence[Group],
    statistics: ActivationStatistics | None,
    gradients: GradientStatistics | None,
) -> list[ScoredGroup]:
    """Groups as a scorer sees them."""
    tensors = {state.name: state.tensor for state in list_state(model)}
    modules = dict(model.named_modules())
    return [ScoredGroup(group, tensors, modules, statistics, gradients) for group in groups]


def _slice_and_prove(
    model: nn.Module, plan: Plan, reference: Any, options: Mapping[str, Any], keep_removed: bool
) -> Verification | None:
    with transaction(model):
        slice_model(model, plan, keep_removed=keep_removed)
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


def _find_all(model: nn.Module, specs: LayerSpec | Sequence[LayerSpec], argument: str) -> list[str]:
    """The paths of the modules that one or several modules, names or types stand for."""
    single = isinstance(specs, (str, type, nn.Module))
    if not single:
        check_iterable(specs, argument, "a list of modules, names or module types")
    several: list[Any] = [specs] if single else [*specs]
    return [path for spec in several for path in find_layers(model, spec, argument)]


def _same_units(cut: GroupCut, group: Group) -> bool:
    return cut.kind == group.kind and cut.kept_size == group.size


def _original_size(group: Group, before: Mapping[str, GroupCut]) -> int:
    earlier = before.get(group.name)
    return earlier.size if earlier is not None and earlier.kept_size == group.size else group.size


def _spec_name(model: nn.Module, spec: LayerSpec) -> str:
    if isinstance(spec, str):
        return spec
    return spec.__name__ if isinstance(spec, type) else find_layers(model, spec, "layer_pruning_ratios")[0]


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return type(get_ipython()).__name__ == "ZMQInteractiveShell"
