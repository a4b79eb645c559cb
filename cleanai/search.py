"""Multi-objective search for ratios and criteria with Optuna, whose storage lets several machines share a study."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn
from tqdm.auto import tqdm

from cleanai.checks import check_positive, check_type, suggest_names
from cleanai.errors import InputError
from cleanai.evaluate import count_macs, count_parameters, measure_latency
from cleanai.importance import find_importance
from cleanai.isolation import copy_model
from cleanai.plan import Plan
from cleanai.pruner import StructuredPruner
from cleanai.select import check_ratio
from cleanai.slicing import slice_model

if TYPE_CHECKING:
    import optuna
    import pandas as pd

__all__ = ["SearchResult", "SearchSpace", "SearchTrial", "search_plans"]

OBJECTIVES = ("accuracy", "params", "macs", "latency")
"""What `search_plans` can look at: accuracy is made large, everything else small."""
_PLAN, _OBJECTIVES = "cleanai_plan", "cleanai_objectives"


@dataclass(frozen=True)
class SearchSpace:
    """What a trial chooses.

    Attributes:
        by: "group": a ratio for each group; "stage": one for the groups of each stage (the first part of their names
            and their kind); "model": one for all.
        max_ratio: the largest ratio, in [0, 1).
        step: how far apart ratios are.
        importances: names of criteria to choose from.
        scopes: "local" (ratios as ``by`` says), "global" or "isomorphic" (one ratio, ranked across groups).

    Raises:
        InputError: a value that cannot be used; it says which.

    Example:
        >>> space = SearchSpace(by="model", max_ratio=0.5, importances=("magnitude", "lamp"))
        >>> space.step, space.scopes
        (0.05, ('local',))
    """

    by: str = "group"
    max_ratio: float = 0.9
    step: float = 0.05
    importances: tuple[str, ...] = ("magnitude",)
    scopes: tuple[str, ...] = ("local",)

    def __post_init__(self) -> None:
        if self.by not in ("group", "stage", "model"):
            raise InputError(f"SearchSpace: by is {self.by!r}; use 'group', 'stage' or 'model'")
        check_ratio(self.max_ratio, "SearchSpace: max_ratio")
        if check_positive(self.step, "SearchSpace: step") > self.max_ratio:
            raise InputError(f"SearchSpace: step is {self.step!r}; it must be above 0 and at most max_ratio")
        unknown = [scope for scope in self.scopes if scope not in ("local", "global", "isomorphic")]
        if unknown or not self.scopes or not self.importances:
            raise InputError(
                f"SearchSpace: scopes is {self.scopes!r} and importances {self.importances!r}; give at least one "
                "criterion, and scopes from 'local', 'global' and 'isomorphic'"
            )
        for name in self.importances:
            find_importance(name)


@dataclass(frozen=True)
class SearchTrial:
    """One pruned model that was tried: its objectives, the plan that makes it, and what was chosen for it.

    Attributes:
        number: of the trial in its study.
        values: {objective: value}: parameters and MACs as counts, latency in ms, accuracy as ``evaluate`` gives it.
        plan: what was cut, in the numbering of the original model.
        choices: the ratios, the criterion and the scope.

    Example:
        >>> import torch
        >>> from cleanai.plan import TensorCut
        >>> net = nn.Linear(3, 4)
        >>> cuts = tuple(TensorCut(name, 0, 4, dropped=(1, 2)) for name in ("weight", "bias"))
        >>> trial = SearchTrial(0, {"accuracy": 92.0, "params": 8.0}, Plan(cuts), {"importance": "magnitude"})
        >>> trial.apply(net), net.out_features
        (Linear(in_features=3, out_features=2, bias=True), 4)
    """

    number: int
    values: Mapping[str, float]
    plan: Plan = field(repr=False)
    choices: Mapping[str, Any] = field(repr=False)

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy of the original ``model``, pruned by this trial's plan.

        Raises:
            PlanError: it is another architecture.
        """
        return slice_model(copy_model(model), self.plan)


@dataclass(frozen=True, repr=False)
class SearchResult:
    """All finished trials of a study, those of other processes included, by number.

    `search_plans` makes it.

    Attributes:
        trials: one record per pruned model: ``number``, ``values`` by objective, ``plan``, ``choices``;
            ``apply(model)`` makes it again.
        objectives: what was searched for.
        study_name: the name of the study in its storage.
        study: the study itself, an ``optuna.Study``.

    Example:
        >>> from cleanai import Plan
        >>> from cleanai.search import SearchTrial
        >>> values = [(92.0, 4e6), (91.0, 2e6), (90.0, 3e6)]  # accuracy and MACs
        >>> named = [dict(zip(("accuracy", "macs"), pair, strict=True)) for pair in values]
        >>> trials = tuple(SearchTrial(number, each, Plan(), {}) for number, each in enumerate(named))
        >>> result = SearchResult(trials, ("accuracy", "macs"), "demo", study=None)
        >>> [trial.number for trial in result.pareto]  # the last one is beaten by the second in both
        [0, 1]
        >>> result.best("macs", accuracy=91.5).number
        0
    """

    trials: tuple[SearchTrial, ...]
    objectives: tuple[str, ...]
    study_name: str
    study: optuna.Study = field(compare=False)

    @property
    def pareto(self) -> tuple[SearchTrial, ...]:
        """The trials that no other one beats, by descending accuracy (or the first objective); of equals the first."""
        front = []
        for trial in self.trials:
            mine = self._signed(trial)
            others = [(self._signed(other), other.number) for other in self.trials if other is not trial]
            beaten = any(
                all(a >= b for a, b in zip(theirs, mine, strict=True)) and (theirs != mine or number < trial.number)
                for theirs, number in others
            )
            front += [] if beaten else [trial]
        return tuple(sorted(front, key=lambda trial: (-self._signed(trial)[0], trial.number)))

    def _signed(self, trial: SearchTrial) -> tuple[float, ...]:
        """The values so that more is better."""
        return tuple(trial.values[name] if name == "accuracy" else -trial.values[name] for name in self.objectives)

    def best(self, objective: str, **limits: float) -> SearchTrial:
        """The best trial by one objective among those that keep limits on others.

        Args:
            objective: one of those that were searched for.
            limits: at least that accuracy, at most that of anything else: ``best("macs", accuracy=92.0)``.

        Raises:
            InputError: an objective that was not searched for, or no trial keeps the limits.
        """
        unknown = [name for name in (objective, *limits) if name not in self.objectives]
        if unknown:
            raise InputError(f"{unknown[0]!r} was not searched for; the objectives are {', '.join(self.objectives)}")
        kept = [
            trial
            for trial in self.pareto
            if all(
                trial.values[name] >= limit if name == "accuracy" else trial.values[name] <= limit
                for name, limit in limits.items()
            )
        ]
        if not kept:
            raise InputError(f"none of {len(self.trials)} trials keeps {limits}")
        sign = -1 if objective == "accuracy" else 1
        return min(kept, key=lambda trial: sign * trial.values[objective])

    def to_frame(self) -> pd.DataFrame:
        """One row per trial: its number, its objectives, and whether it is on the Pareto front."""
        import pandas as pd

        front = {trial.number for trial in self.pareto}
        return pd.DataFrame([{"trial": t.number, **t.values, "pareto": t.number in front} for t in self.trials])

    def __repr__(self) -> str:
        return f"SearchResult({self.study_name!r}, {len(self.trials)} trials, {len(self.pareto)} on the Pareto front)"

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        return frame[frame["pareto"]].drop(columns="pareto").to_html(index=False)


def search_plans(
    model: nn.Module,
    example_inputs: Any,
    evaluate: Callable[[nn.Module], float],
    *,
    objectives: Sequence[str] = ("accuracy", "macs"),
    n_trials: int = 50,
    space: SearchSpace | None = None,
    prepare: Callable[[StructuredPruner], object] | None = None,
    storage: str | None = None,
    study_name: str = "cleanai",
    seed: int | None = None,
    progress: bool | None = None,
    **options: Any,
) -> SearchResult:
    """Tries pruned models and returns those that no other one beats in all objectives.

    Every trial prunes a copy; the model is left as it was. Trials are chosen by Optuna's TPE sampler, after a few that
    prune everything alike. Each one's plan is stored with the study: whoever opens it has the models too. Needs Optuna:
    ``pip install "cleanai[search]"``.

    Args:
        model: the trained model.
        example_inputs: what it is called with, as for `StructuredPruner`.
        evaluate: gives a pruned model's accuracy (any number that is better when higher); it may train the model.
        objectives: two or more of "accuracy", "params", "macs", "latency"; all but accuracy are minimised.
        n_trials: how many trials this call makes; a study that goes on keeps its earlier ones.
        space: what a trial chooses.
        prepare: called with each trial's pruner before it prunes: ``lambda pruner:
            pruner.collect_activations(loader)`` for criteria that need activations.
        storage: None keeps the study in memory; a URL ("sqlite:///study.db", or a database server's) or the path of a
            journal file (also on a network drive) shares it: processes that name the same storage and study work on it
            together, each with a seed of its own.
        study_name: which study of the storage to begin or go on with.
        seed: makes the choice of trials repeatable in a single process.
        progress: True or False for a progress bar; None shows one on terminals.
        options: further arguments of `StructuredPruner` (ignored_layers, min_channels, forward_fn, …).

    Returns:
        All trials, those on the Pareto front as ``pareto``.

    Raises:
        InputError: Optuna is not installed, an argument cannot be used, or the study has other objectives.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> result = search_plans(net, torch.randn(1, 3), lambda model: 1.0, n_trials=3, seed=0, progress=False)
        >>> len(result.trials), result.pareto[0].apply(net)[0].in_features
        (3, 3)
    """
    optuna = _import_optuna()
    names = _check_objectives(objectives)
    _check_calls(evaluate, prepare, n_trials)
    space = SearchSpace() if space is None else space
    check_type(space, SearchSpace, "space", "a SearchSpace")
    known = list(inspect.signature(StructuredPruner).parameters)
    unknown = [name for name in options if name not in known]
    if unknown:
        hint = suggest_names(unknown[0], known)
        raise InputError(f"search_plans: {unknown[0]!r} is no setting of StructuredPruner{hint}")
    taken = {"importance", "pruning_ratio", "global_pruning", "isomorphic", "layer_pruning_ratios", "inplace", "target"}
    wrong = sorted(taken & set(options))
    if wrong:
        raise InputError(f"search_plans: {wrong[0]} is chosen by the search (see space); leave it out")
    first = StructuredPruner(model, example_inputs, space.importances[0], 0.0, **options)
    parts = _list_parts(first, space)
    if not parts:
        raise InputError("search_plans: the model has no group that can be pruned")
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = _open_study(optuna, names, storage, study_name, seed)
        for choices in _list_first_choices(parts, space):
            study.enqueue_trial(choices, skip_if_exists=True)

        def run(trial: optuna.Trial) -> list[float]:
            pruner = _make_pruner(trial, model, example_inputs, space, parts, options)
            if prepare is not None:
                prepare(pruner)
            pruned = pruner.prune()
            assert pruner.plan is not None
            trial.set_user_attr(_PLAN, pruner.plan.to_json())
            return [_measure(name, pruned, pruner, evaluate) for name in names]

        with tqdm(
            total=n_trials, desc="search", unit="trial", disable=None if progress is None else not progress
        ) as bar:
            study.optimize(run, n_trials=n_trials, callbacks=[lambda *_: bar.update()])
    finally:
        optuna.logging.set_verbosity(verbosity)
    return _read_result(optuna, study, names)


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InputError("search needs Optuna: pip install 'cleanai[search]'") from error
    return optuna


def _check_objectives(objectives: Sequence[str]) -> tuple[str, ...]:
    names = (objectives,) if isinstance(objectives, str) else tuple(objectives)
    if len(set(names)) < 2 or len(set(names)) < len(names) or any(name not in OBJECTIVES for name in names):
        raise InputError(f"search_plans: objectives is {objectives!r}; give two or more of {', '.join(OBJECTIVES)}")
    return names


def _check_calls(evaluate: Any, prepare: Any, n_trials: Any) -> None:
    if not callable(evaluate):
        raise InputError(f"search_plans: evaluate is {evaluate!r}; give a function from a model to its accuracy")
    if prepare is not None and not callable(prepare):
        raise InputError(f"search_plans: prepare is {prepare!r}; give a function of a pruner")
    if not isinstance(n_trials, int) or isinstance(n_trials, bool) or n_trials < 1:
        raise InputError(f"search_plans: n_trials is {n_trials!r}; it must be a whole number of at least 1")


def _list_parts(pruner: StructuredPruner, space: SearchSpace) -> dict[str, list[str]]:
    """The names of the ratios a trial chooses, and the groups that each is for."""
    parts: dict[str, list[str]] = {}
    for group in pruner.groups:
        stage = f"{group.name.split('.')[0]} ({group.kind})"
        part = {"group": group.name, "stage": stage, "model": "all"}[space.by]
        parts.setdefault(part, []).append(group.name)
    return parts


def _list_first_choices(parts: Mapping[str, Any], space: SearchSpace) -> list[dict[str, Any]]:
    """Choices to begin with: the same ratio everywhere."""
    found = []
    for wanted in (0.0, 0.25, 0.5):
        ratio = round(round(min(wanted, space.max_ratio) / space.step) * space.step, 10)
        common = {"importance": space.importances[0], "scope": space.scopes[0]}
        ratios = {f"ratio {part}": ratio for part in parts} if space.scopes[0] == "local" else {"ratio": ratio}
        found.append({**common, **ratios})
    return found


def _make_pruner(
    trial: Any,
    model: nn.Module,
    example_inputs: Any,
    space: SearchSpace,
    parts: Mapping[str, Sequence[str]],
    options: Mapping[str, Any],
) -> StructuredPruner:
    importance = trial.suggest_categorical("importance", space.importances)
    scope = trial.suggest_categorical("scope", space.scopes)
    most = round(math.floor(space.max_ratio / space.step + 1e-9) * space.step, 10)
    if scope != "local":
        ratio = trial.suggest_float("ratio", 0.0, most, step=space.step)
        together: dict[str, Any] = {"global": {"global_pruning": True}, "isomorphic": {"isomorphic": True}}[scope]
        return StructuredPruner(model, example_inputs, importance, ratio, **together, **options)
    ratios: dict[Any, float] = {}
    for part, groups in parts.items():
        ratio = trial.suggest_float(f"ratio {part}", 0.0, most, step=space.step)
        ratios.update(dict.fromkeys(groups, ratio))
    return StructuredPruner(model, example_inputs, importance, 0.0, layer_pruning_ratios=ratios, **options)


def _measure(name: str, pruned: nn.Module, pruner: StructuredPruner, evaluate: Callable[[nn.Module], float]) -> float:
    forward_fn = pruner.call_options["forward_fn"]
    if name == "params":
        return float(count_parameters(pruned))
    if name == "macs":
        return float(count_macs(pruned, pruner.example_inputs, forward_fn))
    if name == "latency":
        return measure_latency(pruned, pruner.example_inputs, forward_fn=forward_fn, min_run_time=0.2).median_ms
    value = evaluate(pruned)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"search_plans: evaluate returned {value!r}; it must return a finite number, higher = better")
    return float(value)


def _open_study(optuna: Any, names: tuple[str, ...], storage: str | None, study_name: str, seed: int | None) -> Any:
    opened: Any = storage
    if isinstance(storage, str) and "://" not in storage:
        backend = optuna.storages.journal.JournalFileBackend(storage)
        opened = optuna.storages.JournalStorage(backend)
    study = optuna.create_study(
        storage=opened,
        study_name=study_name,
        sampler=optuna.samplers.TPESampler(seed=seed),
        directions=["maximize" if name == "accuracy" else "minimize" for name in names],
        load_if_exists=True,
    )
    known = study.user_attrs.get(_OBJECTIVES)
    if known is None:
        study.set_user_attr(_OBJECTIVES, list(names))
    elif tuple(known) != names:
        raise InputError(
            f"search_plans: the study {study_name!r} has the objectives {', '.join(known)}, not {', '.join(names)}; "
            "use another study_name"
        )
    return study


def _read_result(optuna: Any, study: Any, names: tuple[str, ...]) -> SearchResult:
    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    trials = [
        SearchTrial(
            trial.number,
            dict(zip(names, trial.values, strict=True)),
            Plan.from_json(trial.user_attrs[_PLAN]),
            dict(trial.params),
        )
        for trial in sorted(done, key=lambda trial: trial.number)
        if _PLAN in trial.user_attrs
    ]
    return SearchResult(tuple(trials), names, study.study_name, study)
