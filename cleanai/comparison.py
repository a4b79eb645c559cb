"""Criteria compared on one trained network: how alike they rank its units, and what each of them would remove."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import hypergeom, rankdata
from torch import Tensor, nn
from tqdm.auto import tqdm

from cleanai.checks import check_iterable
from cleanai.errors import InputError
from cleanai.evaluate import Evaluation, count_macs, evaluate_model
from cleanai.fields import IntArray
from cleanai.importance import Importance, MixedImportance, ScoredGroup, find_importance
from cleanai.importance.group import score_group
from cleanai.pruner import StructuredPruner
from cleanai.recover import check_method
from cleanai.rendering import Table
from cleanai.texts import MISSING, count_things, local_number, percent, say, term, whole_number

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Contrast", "CriteriaComparison", "CutAccuracies", "Overlap", "compare_criteria", "measure_criteria"]

COVERAGE_CRITERIA = {
    "normalized_mean": "coverage",
    "frequency": "coverage_frequency",
    "mean_absolute": "coverage_mean_absolute",
    "combined": "coverage_combined",
}
"""The name of the coverage criterion of each metric."""
METRIC_LABELS = {
    "normalized_mean": "normalized mean",
    "frequency": "frequency",
    "mean_absolute": "mean |x|",
    "combined": "combined",
}
"""How figures and panels write the metrics."""
STANDARD_CRITERIA = (*COVERAGE_CRITERIA.values(), "wanda", "weight_activation", "magnitude", "taylor", "random")
"""What is compared if nothing else is asked for."""
_LABELS = {
    **{criterion: f"coverage: {METRIC_LABELS[metric]}" for metric, criterion in COVERAGE_CRITERIA.items()},
    "wanda": "WANDA",
    "weight_activation": "weight + activation",
    "taylor": "Taylor",
}


def label_criterion(name: str, language: str = "en") -> str:
    """A criterion's name as figures write it.

    >>> label_criterion("coverage_frequency"), label_criterion("coverage_frequency", "tr")
    ('coverage: frequency', 'kapsama: sıklık')
    """
    return term(language, _LABELS.get(name, name))


def write_number(value: float, digits: int, language: str = "en") -> str:
    """A number with fixed digits, without a sign where it rounds to 0; a dash where there is none."""
    return local_number(f"{round(value, digits) + 0.0:.{digits}f}", language) if np.isfinite(value) else MISSING


# ------------------------------------------------------------------------------------------------------- the record


@dataclass(frozen=True)
class Overlap:
    """What two criteria remove in common.

    Attributes:
        first, second: how many units each removes, over all groups.
        shared: how many both do.
        expected: the mean Jaccard index of two random choices of as many units of each group as the two take there.

    Example:
        >>> Overlap(first=4, second=4, shared=2, expected=0.2).jaccard == 2 / 6
        True
    """

    first: int
    second: int
    shared: int
    expected: float

    @property
    def jaccard(self) -> float:
        """``|A ∩ B| / |A ∪ B|``, in [0, 1]; 1 where neither removes anything."""
        return _jaccard(self.shared, self.first + self.second)


def _jaccard(shared: Any, both: int) -> Any:
    return shared / (both - shared) if both else 1.0


@dataclass(frozen=True, repr=False)
class Contrast:
    """Two criteria side by side at one ratio.

    Attributes:
        first, second, ratio, global_pruning: what was asked.
        agreement: their rank agreement over all groups.
        overlap: what they remove in common.
        chosen: {criterion: {group: the units it removes}}, as `CriteriaComparison.contrast` gives them.

    Example:
        >>> Contrast("wanda", "l1", 0.3, False, 0.25, Overlap(4, 4, 2, 0.2), chosen={}).describe()
        'WANDA and l1: rank agreement 0.25, 33 % removed in common (by chance 20 %)'
    """

    first: str
    second: str
    ratio: float
    global_pruning: bool
    agreement: float
    overlap: Overlap
    chosen: Mapping[str, Mapping[str, IntArray]]

    def describe(self, language: str = "en") -> str:
        """The contrast in one sentence."""
        return say(
            language,
            "{first} and {second}: rank agreement {agreement}, {jaccard} removed in common (by chance {expected})",
            first=label_criterion(self.first, language),
            second=label_criterion(self.second, language),
            agreement=write_number(self.agreement, 2, language),
            jaccard=percent(self.overlap.jaccard, language, digits=0),
            expected=percent(self.overlap.expected, language, digits=0),
        )

    def __repr__(self) -> str:
        return f"Contrast({self.describe()})"


@dataclass(frozen=True, repr=False)
class CriteriaComparison:
    """The scores of every unit by every criterion, and what follows from them; nothing of the model changes with it.

    `compare_criteria` makes it.

    Attributes:
        criteria: the criteria by name.
        scores: {criterion: {group: scores, float64, shape [size], higher = keep; None where it does not see the
            group}}.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner = StructuredPruner(net, torch.randn(1, 3))
        >>> comparison = compare_criteria(pruner, ["l1", "magnitude", "random"])
        >>> comparison
        CriteriaComparison(3 criteria, 1 group, 8 units)
        >>> len(comparison.choose("random", 0.25)["0"])
        2
        >>> comparison.overlap("l1", "l1", 0.25).jaccard
        1.0
    """

    criteria: Mapping[str, Importance]
    scores: Mapping[str, Mapping[str, Tensor | None]]
    _pruner: StructuredPruner = field(compare=False)
    _chosen: dict[tuple[str, float, bool], dict[str, IntArray]] = field(default_factory=dict, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the criteria."""
        return tuple(self.scores)

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups, in the order of the model."""
        return tuple(group.name for group in self._pruner.groups)

    @property
    def sizes(self) -> dict[str, int]:
        """The units of each group."""
        return {group.name: group.size for group in self._pruner.groups}

    def __repr__(self) -> str:
        criteria = count_things(len(self.names), "criterion", "criteria")
        groups, units = count_things(len(self.groups), "group"), count_things(sum(self.sizes.values()), "unit")
        return f"CriteriaComparison({criteria}, {groups}, {units})"

    def check_criterion(self, name: str) -> str:
        """The name itself; raises `InputError` listing the names where it is none of them."""
        if name not in self.scores:
            raise InputError(f"no criterion named {name!r} was compared; there are {', '.join(self.names)}")
        return name

    def check_group(self, name: str) -> str:
        """The name itself; raises `InputError` listing the groups where it is none of them."""
        if name not in self.groups:
            raise InputError(f"no group is named {name!r}; there are {', '.join(self.groups)}")
        return name

    def mix(self, name: str, weights: Mapping[str, float], **options: Any) -> CriteriaComparison:
        """The same with one more criterion (or another of that ``name``): a mix of criteria that are compared already.

        As `cleanai.MixedImportance` mixes them, from their scores: ``Σ weight · score / mean |score|`` in each group.
        ``{"magnitude": α, "activation": 1 - α}`` is `cleanai.WeightActivationImportance`.

        Args:
            name: what the mix is called.
            weights: {criterion: weight}; terms with the weight 0 are left out.
            options: those of `cleanai.MixedImportance`.

        Raises:
            InputError: a term is not compared, or no weight is positive.
        """
        known = [(self._lookup(term), weight) for term, weight in weights.items() if weight != 0]
        mixed = MixedImportance(known, **options)
        scores = {g.name: score_group(mixed, ScoredGroup(g, {}, {})) for g in self._pruner.groups}
        return replace(
            self,
            criteria={**self.criteria, name: mixed},
            scores={**self.scores, name: scores},
            _chosen={asked: chosen for asked, chosen in self._chosen.items() if asked[0] != name},
        )

    def _lookup(self, name: str) -> Importance:
        scores = self.scores[self.check_criterion(name)]
        return lambda group: scores[group.name]

    # ------------------------------------------------------------------------------------------------------ agreement

    def rank_agreement(self, first: str, second: str, group: str | None = None) -> float:
        """Spearman's rank correlation of two criteria, -1 to 1: within one ``group``, or on average over all.

        Within a group it is Pearson's correlation of the ranks that ``first`` and ``second`` give, where units with
        equal scores share the mean of their ranks. It is NaN where a criterion does not see the group or scores all its
        units alike. Over all groups it is the mean of theirs, weighted by how many units they have; groups where it is
        NaN are left out.

        Raises:
            InputError: no such criterion or group.
        """
        return float(self._agree((first, second), group)[0, 1])

    def agreement_matrix(self, group: str | None = None) -> np.ndarray:
        """`rank_agreement` of every two criteria in a ``group`` (None: all): shape [criteria, criteria], as in `names`.

        Raises:
            InputError: no such group.
        """
        return self._agree(self.names, group)

    def _agree(self, names: Sequence[str], group: str | None) -> np.ndarray:
        columns = [self.scores[self.check_criterion(name)] for name in names]
        groups = self.groups if group is None else (self.check_group(group),)
        values = np.array([_spearman([column[each] for column in columns]) for each in groups])
        weights = np.array([self.sizes[each] for each in groups], dtype=float).reshape(-1, 1, 1) * np.isfinite(values)
        total = weights.sum(0)
        return np.where(total > 0, (weights * np.nan_to_num(values)).sum(0) / np.maximum(total, 1), np.nan)

    # ------------------------------------------------------------------------------------------------------- choosing

    def choose(self, criterion: str, ratio: float, *, global_pruning: bool = False) -> dict[str, IntArray]:
        """The units that a criterion would remove: {group: ascending unit indices}, empty where none goes.

        What `StructuredPruner.select_units` chooses for this criterion and ratio, everything else being as in the
        pruner that was compared (target, limits, ratios of single layers).

        Args:
            criterion: one of `names`.
            ratio: the share of the pruner's target to remove, in [0, 1).
            global_pruning: rank the units of all groups together.

        Raises:
            InputError: no such criterion, or a ratio outside [0, 1).
        """
        key = self.check_criterion(criterion), ratio, global_pruning
        if key not in self._chosen:
            asked = _ask(self._pruner, self.criteria[criterion], pruning_ratio=ratio, global_pruning=global_pruning)
            plan = asked.select_units(self.scores[criterion])
            self._chosen[key] = {cut.name: np.array(cut.dropped, dtype=np.int64) for cut in plan.groups}
        return dict(self._chosen[key])

    def removed_shares(self, criterion: str, ratio: float, *, global_pruning: bool = False) -> dict[str, float]:
        """The share of each group's units that a criterion would remove: {group: 0 to 1}.

        ``criterion``, ``ratio``, ``global_pruning`` and errors are those of `choose`.
        """
        chosen = self.choose(criterion, ratio, global_pruning=global_pruning)
        return {name: len(units) / self.sizes[name] for name, units in chosen.items()}

    def overlap(self, first: str, second: str, ratio: float, *, global_pruning: bool = False) -> Overlap:
        """What two criteria would remove in common, over all groups, with what chance alone would give.

        ``first`` and ``second`` are criteria; ``ratio``, ``global_pruning`` and errors are those of `choose`.
        """
        sets = [self.choose(name, ratio, global_pruning=global_pruning) for name in (first, second)]
        return self._overlap(*sets)

    def _overlap(self, first: Mapping[str, IntArray], second: Mapping[str, IntArray]) -> Overlap:
        counts = tuple((size, len(first[name]), len(second[name])) for name, size in self.sizes.items())
        shared = sum(len(np.intersect1d(first[name], second[name])) for name in self.groups)
        return Overlap(sum(a for _, a, _ in counts), sum(b for _, _, b in counts), shared, _expect_jaccard(counts))

    def contrast(self, first: str, second: str, ratio: float, *, global_pruning: bool = False) -> Contrast:
        """Two criteria side by side: what each would remove, and how alike they are.

        ``first`` and ``second`` are criteria; ``ratio``, ``global_pruning`` and errors are those of `choose`.
        """
        chosen = {
            name: self.choose(name, ratio, global_pruning=global_pruning) for name in dict.fromkeys((first, second))
        }
        overlap = self._overlap(chosen[first], chosen[second])
        return Contrast(first, second, ratio, global_pruning, self.rank_agreement(first, second), overlap, chosen)

    def overlaps(self, ratio: float, *, global_pruning: bool = False) -> list[list[Overlap]]:
        """The `overlap` of every two criteria, in the order of `names`.

        ``ratio``, ``global_pruning`` and errors are those of `choose`.
        """
        sets = [self.choose(name, ratio, global_pruning=global_pruning) for name in self.names]
        return [[self._overlap(first, second) for second in sets] for first in sets]

    def to_frame(self) -> pd.DataFrame:
        """One row per unit and a column per criterion; NaN where it does not see the group."""
        import pandas as pd

        rows = []
        for name, size in self.sizes.items():
            columns = {c: scores[name] for c, scores in self.scores.items()}
            values = {c: np.full(size, np.nan) if v is None else v.numpy() for c, v in columns.items()}
            rows.append(pd.DataFrame({"group": name, "unit": np.arange(size), **values}))
        return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["group", "unit", *self.names])


def _spearman(columns: Sequence[Tensor | None]) -> np.ndarray:
    """Spearman's coefficient of every two columns of scores; NaN where one is missing or all alike."""
    rows = []
    size = max((len(scores) for scores in columns if scores is not None), default=0)
    for scores in columns:
        ranks = np.full(size, np.nan) if scores is None else rankdata(scores.numpy())
        centred = ranks - ranks.mean()
        length = np.sqrt(np.square(centred).sum())
        rows.append(centred / length if length > 0 else np.full(size, np.nan))
    return np.clip(np.array(rows) @ np.array(rows).T, -1, 1)


@functools.lru_cache(maxsize=4096)
def _expect_jaccard(counts: tuple[tuple[int, int, int], ...]) -> float:
    """The mean Jaccard index of random choices, from (size, first's count, second's count) of each group.

    How many units of a group both take is hypergeometric; over the groups those counts add up.
    """
    chances = np.ones(1)
    for size, first, second in counts:
        shared = np.arange(min(first, second) + 1)
        chances = np.convolve(chances, hypergeom.pmf(shared, size, first, second))
    both = sum(first + second for _, first, second in counts)
    return float(chances @ np.broadcast_to(_jaccard(np.arange(len(chances)), both), len(chances)))


# ---------------------------------------------------------------------------------------------------------- comparing


def compare_criteria(
    pruner: StructuredPruner, criteria: Mapping[str, Importance | str] | Sequence[str] | None = None
) -> CriteriaComparison:
    """Scores all groups of a pruner's model by several criteria, from what the pruner has collected.

    Args:
        pruner: gives the model, its groups, the statistics and gradients, and what a choice depends on; its own
            criterion and ratio do not matter, and nothing of it changes.
        criteria: {name: criterion or its name}, or names; `STANDARD_CRITERIA` if left out.

    Returns:
        The scores, with what the criteria have in common and what each would remove.

    Raises:
        InputError: there is no criterion, or one needs activations or gradients that were not collected.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner = StructuredPruner(net, torch.randn(1, 3))
        >>> _ = pruner.collect_activations([torch.randn(64, 3)], progress=False)
        >>> comparison = compare_criteria(pruner, ["magnitude", "wanda"])
        >>> comparison.names, comparison.scores["wanda"]["0"].shape
        (('magnitude', 'wanda'), torch.Size([8]))
        >>> -1 <= comparison.rank_agreement("magnitude", "wanda") <= 1
        True
    """
    found = find_criteria(criteria)
    _check_pruner(pruner)
    scores = {name: _ask(pruner, each).score_groups() for name, each in found.items()}
    return CriteriaComparison(found, scores, pruner.vary())


def find_criteria(criteria: Mapping[str, Importance | str] | Sequence[str] | None = None) -> dict[str, Importance]:
    """The criteria themselves, by name, from what `compare_criteria` is given."""
    if criteria is None:
        criteria = STANDARD_CRITERIA
    if isinstance(criteria, str):
        raise InputError(f"criteria is the name {criteria!r}; give several: [{criteria!r}, 'random']")
    check_iterable(criteria, "criteria", "several, e.g. ['coverage', 'magnitude']")
    pairs = criteria.items() if isinstance(criteria, Mapping) else ((name, name) for name in criteria)
    found = {str(name): find_importance(importance) for name, importance in pairs}
    if not found:
        raise InputError("criteria is empty; give e.g. ['coverage', 'magnitude']")
    return found


def _check_pruner(pruner: StructuredPruner) -> None:
    if not isinstance(pruner, StructuredPruner):
        raise InputError(f"pruner is a {type(pruner).__name__}; give a StructuredPruner of the trained model")


def _ask(pruner: StructuredPruner, importance: Importance, **settings: Any) -> StructuredPruner:
    """A pruner that knows the same and goes by another criterion, which says itself whether it looks at costs."""
    return pruner.vary(importance=importance, cost_aware=None, **settings)


# ------------------------------------------------------------------------------------------------- accuracy after a cut

REPAIRS = ("none", "least_squares")


@dataclass(frozen=True)
class CutAccuracy:
    """What is left after one cut.

    Attributes:
        criterion, ratio, repair: who chose, how much, and how the rest was repaired ("none": not at all).
        accuracy: in percent, on the test data.
        macs: the share of the original's MACs that is left.
        units: the share of its units that is left.
    """

    criterion: str
    ratio: float
    repair: str
    accuracy: float
    macs: float
    units: float


@dataclass(frozen=True, repr=False)
class CutAccuracies:
    """The accuracies after several cuts, by criterion, ratio and repair; `measure_criteria` makes them.

    Attributes:
        points: one record per cut: ``criterion``, ``ratio``, ``repair``, ``accuracy`` in percent, and the shares of the
            original's ``macs`` and ``units`` that are left.
        original: the accuracy before any cut, in percent.
        samples: how many rows of the test data it was measured on.

    Example:
        >>> from cleanai.comparison import CutAccuracy
        >>> cuts = [CutAccuracy(name, 0.5, "none", left, 0.27, 0.5) for name, left in (("l1", 71.0), ("random", 40.0))]
        >>> accuracies = CutAccuracies(tuple(cuts), original=93.0, samples=10_000)
        >>> accuracies
        CutAccuracies(2 cuts, 10000 samples)
        >>> accuracies.best(0.5).criterion, accuracies.point("random", 0.5).accuracy
        ('l1', 40.0)
    """

    points: tuple[CutAccuracy, ...]
    original: float
    samples: int

    def __repr__(self) -> str:
        return f"CutAccuracies({len(self.points)} cuts, {self.samples} samples)"

    @property
    def criteria(self) -> tuple[str, ...]:
        """The names of the criteria."""
        return tuple(dict.fromkeys(point.criterion for point in self.points))

    @property
    def ratios(self) -> tuple[float, ...]:
        """The ratios, ascending."""
        return tuple(sorted({point.ratio for point in self.points}))

    @property
    def repairs(self) -> tuple[str, ...]:
        """The repairs, in the order in which they were asked for."""
        return tuple(dict.fromkeys(point.repair for point in self.points))

    def point(self, criterion: str, ratio: float, repair: str = "none") -> CutAccuracy:
        """What one cut left, by its ``criterion``, ``ratio`` and ``repair``.

        Raises:
            InputError: it was not made.
        """
        for point in self.points:
            if (point.criterion, point.ratio, point.repair) == (criterion, ratio, repair):
                return point
        raise InputError(
            f"no cut by {criterion!r} at {ratio:g} with the repair {repair!r} was made; there are "
            f"{', '.join(self.criteria)} at {', '.join(f'{each:g}' for each in self.ratios)} with "
            f"{', '.join(self.repairs)}"
        )

    def best(self, ratio: float, repair: str = "none") -> CutAccuracy:
        """The cut that left most accuracy at a ``ratio`` with a ``repair``; the first of those at a tie.

        Raises:
            InputError: no cut of this ratio and repair was made.
        """
        return max((self.point(name, ratio, repair) for name in self.criteria), key=lambda point: point.accuracy)

    def to_frame(self) -> pd.DataFrame:
        """One row per cut, with the columns criterion, ratio, repair, accuracy, macs and units."""
        import pandas as pd

        return pd.DataFrame([asdict(point) for point in self.points])

    def to_table(self, language: str = "en") -> Table:
        """One row per criterion, one column per ratio and repair: accuracy in percent; ``language`` is "en" or "tr"."""
        columns = [(ratio, repair) for repair in self.repairs for ratio in self.ratios]
        heads = [f"{percent(ratio, language, digits=0)}, {label_repair(repair, language)}" for ratio, repair in columns]
        rows = [
            (
                label_criterion(name, language),
                *(percent(self.point(name, *column).accuracy / 100, language) for column in columns),
            )
            for name in self.criteria
        ]
        note = say(
            language,
            "Accuracy on {samples} samples; {accuracy} before pruning.",
            samples=whole_number(self.samples, language),
            accuracy=percent(self.original / 100, language),
        )
        title = say(language, "Accuracy after the cut")
        return Table(title, (term(language, "criterion"), *heads), tuple(rows), "l" + "r" * len(heads), (note,))

    def _repr_html_(self) -> str:
        return self.to_table()._repr_html_()


def label_repair(name: str, language: str = "en") -> str:
    """A repair as tables and figures name it."""
    phrases = {"none": "no repair", "batchnorm": "BatchNorm", "bias": "biases", "least_squares": "least squares"}
    return term(language, phrases[check_method(name)])


def measure_criteria(
    pruner: StructuredPruner,
    loader: Iterable[Any],
    criteria: Mapping[str, Importance | str] | Sequence[str] | None = None,
    *,
    ratios: Sequence[float] = (0.3, 0.5, 0.7),
    repairs: Sequence[str] = REPAIRS,
    progress: bool | None = None,
) -> CutAccuracies:
    """Prunes copies of a pruner's model by several criteria, and measures them as cut and as repaired.

    Every cut is made by ``pruner.vary(…).prune()``: planned, sliced, proven unless the pruner has ``verify=False``, and
    repaired on the data given to `StructuredPruner.collect_activations`.

    Args:
        pruner: gives everything but criterion, ratio and repair; nothing of it changes.
        loader: labelled test data; gone through once per measurement.
        criteria: as in `compare_criteria`.
        ratios: shares of the pruner's target.
        repairs: "none" and other methods of `cleanai.recover_model`.
        progress: True or False for a progress bar; None shows one on terminals.

    Returns:
        The accuracy after each cut, in percent, and that of the original.

    Raises:
        InputError: as in `compare_criteria`, labels that are no classes, or repairs before
            `StructuredPruner.collect_activations`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner, x = StructuredPruner(net, torch.randn(1, 3)), torch.randn(64, 3)
        >>> _ = pruner.collect_activations([x], progress=False)
        >>> test_data = [(x, net(x).argmax(1))]  # what the network says itself
        >>> found = measure_criteria(pruner, test_data, ["magnitude", "random"], ratios=[0.5], progress=False)
        >>> found.original, found.criteria, found.repairs
        (100.0, ('magnitude', 'random'), ('none', 'least_squares'))
        >>> found.point("magnitude", 0.5).units
        0.5
    """
    found = find_criteria(criteria)
    _check_pruner(pruner)
    before = _evaluate(pruner, pruner.model, loader)
    whole = _count_macs(pruner, pruner.model)
    cuts = list(itertools.product(found, ratios, repairs))
    points = []
    for name, ratio, repair in tqdm(cuts, desc="cuts", disable=None if progress is None else not progress):
        asked = _ask(pruner, found[name], pruning_ratio=ratio, recover=repair)
        pruned = asked.prune()
        accuracy, plan = _evaluate(pruner, pruned, loader).accuracy, asked.plan
        assert accuracy is not None and plan is not None
        macs, units = _count_macs(pruner, pruned) / max(whole, 1), 1 - plan.dropped_units / max(plan.units, 1)
        points.append(CutAccuracy(name, ratio, repair, accuracy, macs, units))
    assert before.accuracy is not None
    return CutAccuracies(tuple(points), before.accuracy, before.samples)


def _evaluate(pruner: StructuredPruner, model: nn.Module, loader: Iterable[Any]) -> Evaluation:
    found = evaluate_model(model, loader, **pruner.call_options)
    if found.accuracy is None:
        raise InputError("the labels of the test data are no classes: accuracy cannot be measured")
    return found


def _count_macs(pruner: StructuredPruner, model: nn.Module) -> int:
    return count_macs(model, pruner.example_inputs, pruner.call_options["forward_fn"])
