"""What a pruner would do with other settings, answered at once; and settings tried for good, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from cleanai.calibration import ActivationStatistics
from cleanai.checks import check_type
from cleanai.cost import CostModel
from cleanai.coupling import Member
from cleanai.evaluate import ModelMetrics, measure_model
from cleanai.gradients import GradientStatistics
from cleanai.importance import (
    CRITERIA,
    Criterion,
    Importance,
    MixedImportance,
    ScoredGroup,
    find_importance,
)
from cleanai.importance.group import thresholds_of
from cleanai.isolation import list_state
from cleanai.plan import Plan
from cleanai.prediction import alive_classes
from cleanai.pruner import StructuredPruner
from cleanai.records import make_group_record
from cleanai.rendering import Table
from cleanai.report import GroupRecord
from cleanai.texts import MISSING, check_language, percent, say, scaled, term, whole_number
from cleanai.verify import Verification

__all__ = [
    "Preview",
    "Previewer",
    "Trial",
    "collect_for",
    "list_criteria",
    "tabulate_trials",
    "try_settings",
]


@dataclass(frozen=True)
class Preview:
    """What some settings would remove and leave; `Previewer.preview` makes one.

    Attributes:
        plan: the units that go, as `StructuredPruner.select_units` chooses them.
        groups: what is left of every group, as in a report (`cleanai.plots.plot_kept_channels` draws them).
        parameters: those of the smaller model, counted and not estimated.
        macs: its multiply-accumulates for one call on the example inputs, counted too.
        parameters_before: those of the model as it is.
        macs_before: those of the model as it is.
        language: of the table, "en" or "tr".

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner = StructuredPruner(net, torch.randn(1, 3))
        >>> preview = Previewer(pruner).preview(pruning_ratio=0.25)
        >>> preview.plan.dropped_units, preview.macs / preview.macs_before
        (2, 0.75)
    """

    plan: Plan = field(repr=False)
    groups: tuple[GroupRecord, ...] = field(repr=False)
    parameters: int
    macs: int
    parameters_before: int
    macs_before: int
    language: str = "en"

    def to_table(self) -> Table:
        """Channels, parameters and MACs before and after, and the share that stays.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> pruner = StructuredPruner(net, torch.randn(1, 3))
            >>> Previewer(pruner).preview(pruning_ratio=0.25).to_table()
            Predicted for this choice
              quantity    before  after    kept
              ---------------------------------
              Channels         8      6  75.0 %
              Parameters      50     38  76.0 %
              MACs            40     30  75.0 %
        """
        language = self.language
        channels = [sum(cut.width * size for cut, size in self._sizes(after)) for after in (False, True)]
        rows = (
            ("Channels", *channels),
            ("Parameters", self.parameters_before, self.parameters),
            ("MACs", self.macs_before, self.macs),
        )
        columns = tuple(say(language, word) for word in ("quantity", "before", "after", "kept"))
        cells = tuple(
            (
                say(language, name),
                whole_number(before, language),
                whole_number(after, language),
                percent(after / before if before else None, language),
            )
            for name, before, after in rows
        )
        return Table(say(language, "Predicted for this choice"), columns, cells, "lrrr")

    def _sizes(self, after: bool) -> list[tuple[Any, int]]:
        return [(cut, cut.kept_size if after else cut.size) for cut in self.plan.groups]


class Previewer:
    """Previews of what a pruner would do with other settings, quick enough for a slider.

    It uses what the pruner has collected and keeps what is computed on the way (scores by criterion, sums of weights);
    where the model's weights or what was collected change, that is computed anew. The choice is the pruner's own
    (`StructuredPruner.select_units`), and nothing is changed.

    Args:
        pruner: a pruner whose `collect_activations` and `collect_gradients` have been called as the criteria need it
            (see `collect_for`).
        language: of the tables, "en" or "tr".

    Raises:
        InputError: something else than a pruner, or an unknown language.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> previewer = Previewer(StructuredPruner(net, torch.randn(1, 3)))
        >>> previewer.preview(pruning_ratio=0.25)
        Preview(parameters=38, macs=30, parameters_before=50, macs_before=40, language='en')
    """

    def __init__(self, pruner: StructuredPruner, language: str = "en") -> None:
        check_type(pruner, StructuredPruner, "pruner", "a StructuredPruner of the trained model")
        self.pruner = pruner
        self.language = check_language(language)
        self._known: tuple[Any, ...] = ()

    def preview(self, **settings: Any) -> Preview:
        """What the pruner would do with some settings changed.

        Args:
            settings: any that `StructuredPruner.vary` takes: importance, pruning_ratio, target, global_pruning, ….

        Raises:
            InputError: a setting cannot be used, what the criterion needs was not collected, or the choice depends on
                more than scores (see `StructuredPruner.select_units`).

        Example:
            >>> import torch
            >>> from torch import nn
            >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> previewer = Previewer(StructuredPruner(net, torch.randn(1, 3)))
            >>> [previewer.preview(pruning_ratio=ratio, target="macs").macs for ratio in (0.25, 0.5, 0.75)]
            [30, 20, 10]
        """
        self._notice_changes()
        # How the model is repaired after the cut changes nothing about the choice.
        pruner = self.pruner.vary(**{**settings, "recover": "none"})
        plan = pruner.select_units(self._score(pruner, settings.get("importance")))
        coupling = self.pruner.analysis.coupling
        dropped = {group.index: cut.dropped for group, cut in zip(coupling.groups, plan.groups, strict=True)}
        alive = alive_classes(coupling, dropped)
        return Preview(
            plan,
            tuple(make_group_record(cut, coupling.groups, plan) for cut in plan.groups),
            self._costs.count_parameters(alive),
            self._costs.count_macs(alive),
            *self._before,
            language=self.language,
        )

    def remember(self, criteria: Iterable[Importance | str]) -> None:
        """Scores with several criteria beforehand, so that the first preview of each is as quick as the next.

        Criteria whose data was not collected are passed over.

        Args:
            criteria: criteria or their names.

        Raises:
            InputError: an unknown name.
        """
        self._notice_changes()
        for importance in criteria:
            if can_score(find_importance(importance), self.pruner.statistics, self.pruner.gradients):
                self._score(self.pruner.vary(importance=importance), importance)

    def _notice_changes(self) -> None:
        """Starts anew where the model or what was collected is not what it was."""
        pruner = self.pruner
        states = list_state(pruner.model)
        known = (
            pruner.analysis,
            pruner.statistics,
            pruner.gradients,
            tuple((id(state.tensor), _version(state.tensor)) for state in states),
        )
        same = len(self._known) == len(known) and all(a is b for a, b in zip(self._known[:-1], known[:-1], strict=True))
        if same and self._known[-1] == known[-1]:
            return
        self._known = known
        self._scores: dict[Importance | str, dict[str, Tensor | None]] = {}
        self._described = [RememberingGroup.of(group) for group in pruner.describe_groups()]
        self._costs = CostModel(
            pruner.analysis.coupling, [state for state in states if isinstance(state.tensor, nn.Parameter)]
        )
        whole = alive_classes(pruner.analysis.coupling, {})
        self._before = self._costs.count_parameters(whole), self._costs.count_macs(whole)

    def _score(self, pruner: StructuredPruner, importance: Importance | str | None) -> dict[str, Tensor | None]:
        """The scores of the pruner's criterion, from the last time where it is one that always scores alike."""
        name = pruner.importance if importance is None else importance
        if not isinstance(pruner.importance, Criterion):
            return pruner.score_groups(self._described)
        if name not in self._scores:
            self._scores[name] = pruner.score_groups(self._described)
        return self._scores[name]


def _version(tensor: Tensor) -> int:
    """How often a tensor has been written to, as far as that is counted."""
    return 0 if tensor.is_inference() else tensor._version


@dataclass(frozen=True)
class RememberingGroup(ScoredGroup):
    """A group that computes the sums of its weights once, for criteria that mix them with different shares."""

    _powers: dict[tuple[str, int, float], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, group: ScoredGroup) -> RememberingGroup:
        """The same group, with a memory."""
        return cls(**{each.name: getattr(group, each.name) for each in dataclasses.fields(group)})

    def powers(self, member: Member, tensor: Tensor, p: float) -> Tensor:
        """Σ|w|^p over everything a member holds for each unit: shape [size]."""
        key = member.parameter, member.dim, p
        if key not in self._powers:
            self._powers[key] = super().powers(member, tensor, p)
        return self._powers[key]


# ----------------------------------------------------------------------------------------------- what criteria need


def collect_for(
    pruner: StructuredPruner,
    criteria: Sequence[Importance | str],
    calibration_loader: Iterable[Any] | None = None,
    labelled_loader: Iterable[Any] | None = None,
    *,
    num_batches: int | None = None,
    progress: bool | None = None,
) -> StructuredPruner:
    """A pruner like the given one that has collected what several criteria need, in one pass over each loader.

    Without a loader it keeps what the given pruner has collected, which is left as it was.

    Args:
        pruner: its settings are those of the pruner that comes back.
        criteria: criteria or their names.
        calibration_loader: for `StructuredPruner.collect_activations`.
        labelled_loader: for `StructuredPruner.collect_gradients`; not used where no criterion needs gradients.
        num_batches: at most so many of each loader; None takes all.
        progress: True shows a bar for each loader, False none, None one where the output is a terminal.

    Raises:
        InputError: an unknown name, or data that does not fit the model.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner = StructuredPruner(net, torch.randn(1, 3), importance="l1")
        >>> ready = collect_for(pruner, ["l1", "wanda"], [torch.randn(16, 3)], progress=False)
        >>> "wanda" in list_criteria(pruner), "wanda" in list_criteria(ready)
        (False, True)
    """
    check_type(pruner, StructuredPruner, "pruner", "a StructuredPruner of the trained model")
    together = MixedImportance([(find_importance(each), 1.0) for each in criteria])
    collecting = pruner.vary(importance=together)
    if calibration_loader is not None:
        collecting.collect_activations(calibration_loader, num_batches, progress=progress)
    if labelled_loader is not None and together.needs_gradients:
        collecting.collect_gradients(labelled_loader, num_batches=num_batches, progress=progress)
    own = pruner.importance_name if pruner.importance_name in CRITERIA else pruner.importance
    return collecting.vary(importance=own)


def list_criteria(pruner: StructuredPruner) -> list[str]:
    """The names of the criteria that can score with what a pruner has collected.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner = StructuredPruner(net, torch.randn(1, 3))
        >>> "magnitude" in list_criteria(pruner), "taylor" in list_criteria(pruner)
        (True, False)
    """
    return [name for name in CRITERIA if can_score(find_importance(name), pruner.statistics, pruner.gradients)]


def can_score(
    importance: Importance, statistics: ActivationStatistics | None, gradients: GradientStatistics | None
) -> bool:
    """Whether what was collected suffices for a criterion."""

    def needs(what: str) -> bool:
        return bool(getattr(importance, f"needs_{what}", False))

    counted = {value for seen in (statistics.sides.values() if statistics else ()) for value in seen.above}
    return not (
        (needs("activations") and (statistics is None or not counted.issuperset(thresholds_of(importance))))
        or (needs("moments") and (statistics is None or not statistics.moments))
        or (needs("gradients") and gradients is None)
        or (needs("curvature") and (gradients is None or not gradients.curvatures))
    )


# ------------------------------------------------------------------------------------------------------- trying out


@dataclass(frozen=True)
class Trial:
    """One set of settings, pruned, proven, repaired and measured; `try_settings` makes one.

    Attributes:
        settings: those of the plan (see `cleanai.Plan`).
        model: the smaller model.
        plan: what went.
        metrics: its measurements.
        before: those of the model as it was.
        verification: the proof; None with ``verify=False``.
        label: the criterion in a word.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner = StructuredPruner(net, torch.randn(1, 3))
        >>> trial = try_settings(pruner, pruning_ratio=0.75, importance="l1")
        >>> trial.label, trial.model[0].out_features, trial.verification.passed
        ('l1', 2, True)
    """

    settings: dict[str, Any]
    model: nn.Module = field(repr=False)
    plan: Plan = field(repr=False)
    metrics: ModelMetrics
    before: ModelMetrics
    verification: Verification | None = field(default=None, repr=False)
    label: str = ""

    @property
    def macs_kept(self) -> float:
        """The share of the MACs that is left, 0 to 1.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> pruner = StructuredPruner(net, torch.randn(1, 3))
            >>> try_settings(pruner, pruning_ratio=0.5).macs_kept
            0.5
        """
        return self.metrics.macs / self.before.macs if self.before.macs else 1.0


def try_settings(
    pruner: StructuredPruner,
    test_loader: Iterable[Any] | None = None,
    *,
    before: ModelMetrics | None = None,
    label: str | None = None,
    **settings: Any,
) -> Trial:
    """Prunes a copy of a pruner's model with other settings, proves it, repairs it, and measures it.

    Args:
        pruner: left as it is, with its model.
        test_loader: for the accuracy; without one, parameters and MACs are measured.
        before: measurements of the model as it is, where there are some already.
        label: what the criterion is called in tables and figures; its name, if left out.
        settings: any that `StructuredPruner.vary` takes.

    Raises:
        InputError: a setting cannot be used, or data that it needs was not collected.
        VerificationError: the pruned model does not equal the masked original.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> trial = try_settings(StructuredPruner(net, torch.randn(1, 3)), pruning_ratio=0.75)
        >>> trial.metrics.parameters, trial.before.parameters, trial.macs_kept
        (14, 50, 0.25)
    """
    varied = pruner.vary(**settings)
    before = _measure(pruner, pruner.model, test_loader) if before is None else before
    model = varied.prune()
    assert varied.plan is not None
    return Trial(
        dict(varied.plan.settings),
        model,
        varied.plan,
        _measure(pruner, model, test_loader),
        before,
        varied.verification,
        varied.importance_name if label is None else label,
    )


def tabulate_trials(trials: Sequence[Trial], language: str = "en") -> Table:
    """One row per trial: what was asked, and what is left of parameters, MACs and accuracy; the untouched model first.

    Args:
        trials: of one model, in the order in which they are numbered.
        language: "en" or "tr".

    Raises:
        InputError: the language is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner = StructuredPruner(net, torch.randn(1, 3))
        >>> table = tabulate_trials([try_settings(pruner, pruning_ratio=ratio) for ratio in (0.25, 0.5)])
        >>> [(row[0], row[2], row[7]) for row in table.rows]
        [('original', '—', '40'), ('1', '25 %', '30 (75.0 %)'), ('2', '50 %', '20 (50.0 %)')]
    """
    check_language(language)
    words = ("number", "criterion", "ratio", "target", "ranking", "repair", "Parameters", "MACs", "Accuracy", "Proof")
    rows = [_row(str(number), trial, language) for number, trial in enumerate(trials, 1)]
    if trials:
        first = trials[0].before
        costs = scaled(first.parameters, language), scaled(first.macs, language)
        empty = (MISSING,) * 5
        rows.insert(0, (say(language, "original"), *empty, *costs, _accuracy(first, language), MISSING))
    columns = tuple(say(language, word) for word in words)
    return Table(say(language, "Applied so far"), columns, tuple(rows), "llrlllrrrl")


def _row(number: str, trial: Trial, language: str) -> tuple[str, ...]:
    settings, metrics, before = trial.settings, trial.metrics, trial.before
    ranking = "isomorphic" if settings.get("isomorphic") else "global" if settings["global_pruning"] else "local"
    return (
        number,
        trial.label,
        percent(settings["pruning_ratio"], language, digits=0),
        term(language, settings["target"]),
        term(language, ranking),
        term(language, settings.get("recover", "none")),
        *(
            f"{scaled(new, language)} ({percent(new / old if old else None, language)})"
            for new, old in ((metrics.parameters, before.parameters), (metrics.macs, before.macs))
        ),
        _accuracy(metrics, language),
        say(language, "not verified" if trial.verification is None else "proven"),
    )


def _accuracy(metrics: ModelMetrics, language: str) -> str:
    return percent(None if metrics.accuracy is None else metrics.accuracy / 100, language)


def _measure(pruner: StructuredPruner, model: nn.Module, loader: Iterable[Any] | None) -> ModelMetrics:
    return measure_model(model, pruner.example_inputs, loader=loader, forward_fn=pruner.call_options["forward_fn"])
