"""Sensitivity: what each group's cut alone does to the model, and ratios per group that are found from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from cleanai.calibration import select_inputs
from cleanai.checks import check_iterable, check_type
from cleanai.cost import CostModel
from cleanai.errors import InputError
from cleanai.evaluate import evaluate_model
from cleanai.fields import IntArray
from cleanai.fitting import make_plan
from cleanai.inputs import call_model, map_tensors, output_tensors
from cleanai.isolation import copy_model, evaluation_mode, list_state, preserve_random_state
from cleanai.prediction import alive_classes
from cleanai.pruner import StructuredPruner
from cleanai.select import Ladder, LayerSpec, build_ladder, check_ratio
from cleanai.slicing import slice_model
from cleanai.texts import count_things

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Sensitivity", "SensitivityPoint", "analyze_sensitivity", "auto_ratio"]

FORMAT = "cleanai-sensitivity-1"
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Evaluate = Callable[[nn.Module], float] | Iterable[Any]
"""A function from a model to its accuracy (any number that is better when higher), or a loader of (inputs, labels)."""


@dataclass(frozen=True)
class SensitivityPoint:
    """What one cut of one group does.

    Attributes:
        group: the group's name.
        ratio, removed: the share of its units that was asked for, and that went.
        params, macs: the share of the whole model's parameters and MACs that the cut saves.
        error: ‖y' - y‖₂ / ‖y‖₂ of the model's outputs on the calibration data.
        accuracy: what the user's evaluation gives; None without one.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner = StructuredPruner(net, torch.randn(4, 3))
        >>> point = analyze_sensitivity(pruner, ratios=(0.3,), progress=False).points[0]
        >>> point.group, point.ratio, point.removed, round(point.params, 3)  # 0.3 of 8 units are 2 whole ones
        ('0', 0.3, 0.25, 0.24)
    """

    group: str
    ratio: float
    removed: float
    params: float
    macs: float
    error: float
    accuracy: float | None = None


@dataclass(frozen=True, repr=False)
class Sensitivity:
    """What each group's cut alone does to a model: the points of all groups, by group and ascending ratio.

    `analyze_sensitivity` makes it, `auto_ratio` makes ratios of it.

    Attributes:
        points: one `cleanai.sensitivity.SensitivityPoint` per group and ratio: ``group``, ``ratio``, ``removed``,
            ``params`` and ``macs`` (shares saved), ``error`` (relative, of the outputs), ``accuracy``.
        importance: the criterion that chose the units.
        samples: how many rows of calibration data the outputs were compared on.
        accuracy: of the model as it was; None where it was not measured.

    Example:
        >>> errors = {"conv1": 0.01, "conv2": 0.4}
        >>> points = tuple(SensitivityPoint(name, 0.5, 0.5, 0.3, 0.2, error) for name, error in errors.items())
        >>> sensitivity = Sensitivity(points, importance="magnitude", samples=64)
        >>> max(sensitivity.points, key=lambda point: point.error).group  # cut this one least
        'conv2'
        >>> Sensitivity.from_json(sensitivity.to_json()) == sensitivity
        True
    """

    points: tuple[SensitivityPoint, ...]
    importance: str
    samples: int
    accuracy: float | None = None

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that were cut, in the order of the model."""
        return tuple(dict.fromkeys(point.group for point in self.points))

    def points_of(self, group: str) -> tuple[SensitivityPoint, ...]:
        """The points of one ``group``, by ascending ratio.

        Raises:
            InputError: no group of that name was cut.
        """
        found = tuple(point for point in self.points if point.group == group)
        if not found:
            raise InputError(f"no group named {group!r} was cut; there are {', '.join(self.groups)}")
        return found

    def to_frame(self) -> pd.DataFrame:
        """One row per point, with the columns group, ratio, removed, params, macs, error and accuracy."""
        import pandas as pd

        return pd.DataFrame([asdict(point) for point in self.points])

    def to_json(self) -> str:
        """Text that `from_json` reads back."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """What `to_json` wrote into ``text``.

        Raises:
            InputError: it is something else.
        """
        try:
            data = json.loads(text)
            if data.pop("format") != FORMAT:
                raise ValueError(f"the format is not {FORMAT}")
            points = tuple(SensitivityPoint(**point) for point in data.pop("points"))
            return cls(points, **data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"this is no sensitivity that to_json wrote: {error}") from error

    def __repr__(self) -> str:
        groups, points = count_things(len(self.groups), "group"), count_things(len(self.points), "point")
        return f"Sensitivity({groups}, {points}, {count_things(self.samples, 'sample')})"

    def _repr_html_(self) -> str:
        by = "accuracy" if self.accuracy is not None else "error"
        return self.to_frame().pivot(index="group", columns="ratio", values=by).loc[list(self.groups)].to_html()


# --------------------------------------------------------------------------------------------------------- measuring


def analyze_sensitivity(
    pruner: StructuredPruner,
    evaluate: Evaluate | None = None,
    *,
    calibration: Iterable[Any] | None = None,
    ratios: Sequence[float] = RATIOS,
    progress: bool | None = None,
) -> Sensitivity:
    """Cuts every group alone, at every ratio, on a copy of the pruner's model, and measures what that does.

    The pruner gives the model, the criterion with its statistics, and the limits (``min_channels``, ``round_to``,
    ``max_pruning_ratio``); nothing of it is changed. Ratios that come to the same cut are measured once.

    Args:
        pruner: of the trained model.
        evaluate: a function from a model to its accuracy, or a loader of (inputs, labels) to measure it on.
        calibration: batches on which outputs are compared; the example inputs if left out.
        ratios: shares of a group's units, in (0, 1).
        progress: True or False for a progress bar; None shows one on terminals.

    Returns:
        For each group and ratio: the share of its units that went, the shares of the whole model's parameters and MACs
        that this saves, the relative error ‖y' - y‖₂ / ‖y‖₂ of the outputs, and the accuracy.

    Raises:
        InputError: a ratio is out of range, the criterion lacks statistics, a loader is empty or can be gone through
            only once, or no group was scored.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> result = analyze_sensitivity(StructuredPruner(net, torch.randn(4, 3)), ratios=(0.25, 0.5), progress=False)
        >>> [(point.group, point.removed) for point in result.points]
        [('0', 0.25), ('0', 0.5)]
    """
    check_type(pruner, StructuredPruner, "pruner", "a StructuredPruner of the trained model")
    check_iterable(ratios, "ratios", "shares of a group's units between 0 and 1, such as (0.25, 0.5)")
    shares = sorted({check_ratio(ratio, "ratios") for ratio in ratios} - {0.0})
    if not shares:
        raise InputError(f"ratios is {ratios!r}; give shares of a group's units between 0 and 1, such as (0.25, 0.5)")
    judge = _read_evaluate(evaluate, pruner)
    ladders = _build_ladders(pruner)
    costs = _Costs(pruner)
    outputs = _Outputs(pruner, calibration)
    accuracy = None if judge is None else judge(copy_model(pruner.model))
    points = []
    bar = tqdm(
        total=len(ladders) * len(shares),
        desc="sensitivity",
        unit="cut",
        disable=None if progress is None else not progress,
    )
    with bar:
        for ladder in ladders:
            known: dict[int, tuple[float, float | None]] = {0: (0.0, accuracy)}
            for ratio in shares:
                steps = ladder.nearest(ratio * ladder.original)
                units = ladder.first(steps)
                if steps not in known:
                    model = _cut_alone(pruner, ladder, units)
                    known[steps] = outputs.compare(model), None if judge is None else judge(model)
                params, macs = costs.save({ladder.group.index: units})
                removed = len(units) / ladder.group.size
                points.append(SensitivityPoint(ladder.group.name, ratio, removed, params, macs, *known[steps]))
                bar.update()
    return Sensitivity(tuple(points), pruner.importance_name, outputs.samples, accuracy)


def _read_evaluate(evaluate: Evaluate | None, pruner: StructuredPruner) -> Callable[[nn.Module], float] | None:
    if evaluate is None:
        return None
    if callable(evaluate) and not isinstance(evaluate, (list, tuple)):
        function: Any = evaluate

        def judge(model: nn.Module) -> float:
            value = function(model)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise InputError(f"evaluate returned {value!r}; it must return a finite number, higher = better")
            return float(value)

        return judge
    if not isinstance(evaluate, Iterable) or iter(evaluate) is evaluate:
        raise InputError(
            f"evaluate is a {type(evaluate).__name__}; give a function from a model to its accuracy, or a loader of "
            "(inputs, labels) that can be gone through many times"
        )
    loader: Iterable[Any] = evaluate

    def measure(model: nn.Module) -> float:
        found = evaluate_model(model, loader, **pruner.call_options)
        if found.accuracy is None:
            raise InputError("the loader's targets are no class labels; give a function from a model to a number")
        return found.accuracy

    return measure


def _build_ladders(pruner: StructuredPruner) -> list[Ladder]:
    scores = pruner.score_groups()
    scored = [(group, values) for group in pruner.groups if (values := scores[group.name]) is not None]
    if not scored:
        raise InputError(f"{pruner.importance_name} scores none of the {len(pruner.groups)} groups of the model")
    return [build_ladder(group, values, pruner.limits) for group, values in scored]


def _cut_alone(pruner: StructuredPruner, ladder: Ladder, units: IntArray) -> nn.Module:
    analysis = pruner.analysis
    plan = make_plan(analysis.coupling, {ladder.group.index: units}, analysis.rules)
    return slice_model(copy_model(pruner.model), plan)


class _Costs:
    """Shares of the whole model's cost that choices save."""

    def __init__(self, pruner: StructuredPruner) -> None:
        self._coupling = pruner.analysis.coupling
        parameters = [state for state in list_state(pruner.model) if isinstance(state.tensor, nn.Parameter)]
        self._costs = CostModel(self._coupling, parameters)
        self._units = sum(group.size * group.width for group in self._coupling.groups)
        self._whole = self._count({})

    def _count(self, choice: Mapping[int, IntArray]) -> tuple[int, int]:
        alive = alive_classes(self._coupling, choice)
        return self._costs.count_parameters(alive), self._costs.count_macs(alive)

    def save(self, choice: Mapping[int, IntArray]) -> tuple[float, float]:
        """The shares of parameters and of MACs that go."""
        params, macs = (1 - now / max(before, 1) for now, before in zip(self._count(choice), self._whole, strict=True))
        return params, macs

    def share(self, choice: Mapping[int, IntArray], target: str) -> float:
        """The share of a target that goes."""
        if target == "channels":
            gone = sum(len(units) * self._coupling.groups[index].width for index, units in choice.items())
            return gone / max(self._units, 1)
        return self.save(choice)[0 if target == "params" else 1]


class _Outputs:
    """The outputs of the whole model on the calibration data, and how far those of another one are from them."""

    def __init__(self, pruner: StructuredPruner, calibration: Iterable[Any] | None) -> None:
        batches = [] if calibration is None else [select_inputs(b, pruner.example_inputs) for b in calibration]
        if calibration is None:
            batches = [pruner.example_inputs]
        if not batches:
            raise InputError("the calibration loader is empty: outputs are compared on at least one batch")
        device = next((tensor.device for tensor in pruner.model.parameters()), torch.device("cpu"))
        self._batches = [map_tensors(lambda tensor: tensor.to(device), batch) for batch in batches]
        self._options = pruner.call_options
        self._expected = self._run(pruner.model)
        self._norm = math.sqrt(sum(float(output.square().sum()) for output in self._expected))
        self.samples = sum(next((len(t) for t in output_tensors(b) if t.dim()), 1) for b in self._batches)

    def _run(self, model: nn.Module) -> list[Tensor]:
        forward_fn, transform = self._options["forward_fn"], self._options["output_transform"]
        outputs: list[Tensor] = []
        with evaluation_mode(model), preserve_random_state(), torch.no_grad():
            for batch in self._batches:
                output = call_model(model, batch, forward_fn)
                found = output_tensors(output if transform is None else transform(output))
                outputs += [tensor.detach().double().cpu() for tensor in found if tensor.is_floating_point()]
        return outputs

    def compare(self, model: nn.Module) -> float:
        """‖y' - y‖₂ / ‖y‖₂ over all outputs."""
        pairs = zip(self._run(model), self._expected, strict=True)
        distance = math.sqrt(sum(float((ours - theirs).square().sum()) for ours, theirs in pairs))
        return distance / self._norm if self._norm else distance


# ---------------------------------------------------------------------------------------------------- finding ratios


@dataclass(frozen=True)
class _Piece:
    """A piece of a group's curve: from one removed share to the next, what it loses and what it loses per saving."""

    group: str
    start: float
    end: float
    loss: float
    price: float


def auto_ratio(
    sensitivity: Sensitivity,
    pruner: StructuredPruner,
    *,
    budget: float | None = None,
    max_loss: float | None = None,
    target: str = "macs",
    by: str | None = None,
) -> dict[LayerSpec, float]:
    """Ratios per group, for a budget or for a loss that is not to be exceeded; for ``layer_pruning_ratios``.

    Losses of the groups are taken to add up. Each group's curve of loss against saving is replaced by its lower convex
    hull, and the pieces of all hulls are taken by ascending loss per saving: no other ratios lose less for what they
    save, as far as the sum holds. It is a prediction; what the model loses in the end has to be measured.

    Args:
        sensitivity: what `analyze_sensitivity` returned.
        pruner: of the same model.
        budget: the share of ``target`` to save, in (0, 1); met by predicted cost, as near as whole units allow.
        max_loss: instead of a budget, how much may be lost: points of accuracy, or relative output error.
        target: "params", "macs" or "channels".
        by: "accuracy" or "error"; accuracy if it was measured.

    Returns:
        {group name: ratio in [0, 1)}.

    Raises:
        InputError: both or none of the two are given, the budget is out of reach, or accuracy was not measured.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner = StructuredPruner(net, torch.randn(4, 3))
        >>> ratios = auto_ratio(analyze_sensitivity(pruner, progress=False), pruner, budget=0.5)
        >>> StructuredPruner(net, torch.randn(4, 3), pruning_ratio=0.0, layer_pruning_ratios=ratios).prune()[0]
        Linear(in_features=3, out_features=4, bias=True)
    """
    check_type(sensitivity, Sensitivity, "sensitivity", "what analyze_sensitivity returned")
    check_type(pruner, StructuredPruner, "pruner", "a StructuredPruner of the trained model")
    if (budget is None) == (max_loss is None):
        raise InputError("auto_ratio: give either budget (a share to save) or max_loss (how much may be lost)")
    if target not in ("channels", "params", "macs"):
        raise InputError(f"auto_ratio: target is {target!r}; use 'channels', 'params' or 'macs'")
    if max_loss is not None and not (math.isfinite(max_loss) and max_loss >= 0):
        raise InputError(f"auto_ratio: max_loss is {max_loss!r}; it must be a number of at least 0")
    ladders = {ladder.group.name: ladder for ladder in _build_ladders(pruner)}
    unknown = [name for name in sensitivity.groups if name not in ladders]
    if unknown:
        raise InputError(f"the sensitivity is of another model: this one has no group {unknown[0]}")
    pieces = _list_pieces(sensitivity, ladders, target, _choose_measure(sensitivity, by))
    if max_loss is not None:
        ratios = _take(pieces, sensitivity.groups, _position_of_loss(pieces, max_loss))
        floors = {name: int(ratio * ladders[name].group.size + 1e-9) for name, ratio in ratios.items()}
        return {
            name: _whole_units(ladders[name], ladders[name].snap(units // ladders[name].units_per_step))
            for name, units in floors.items()
        }
    wanted = check_ratio(budget, "budget")
    costs = _Costs(pruner)

    def save(position: float) -> float:
        ratios = _take(pieces, sensitivity.groups, position)
        choice = {ladders[n].group.index: ladders[n].first(_steps(ladders[n], ratios[n])) for n in ratios}
        return costs.share(choice, target)

    low, high = 0.0, float(len(pieces))
    if save(high) < wanted - 0.005:
        raise InputError(
            f"auto_ratio: a budget of {wanted:g} is out of reach; the ratios that were tried save {save(high):.3f} of "
            f"the {target} together: analyze larger ratios"
        )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if save(middle) >= wanted else (middle, high)
    position = min((low, high), key=lambda place: abs(save(place) - wanted))
    ratios = _take(pieces, sensitivity.groups, position)
    return {name: _whole_units(ladders[name], _steps(ladders[name], ratio)) for name, ratio in ratios.items()}


def _whole_units(ladder: Ladder, steps: int) -> float:
    """So many steps as a ratio, which does not depend on how it is rounded."""
    return steps * ladder.units_per_step / ladder.original


def _steps(ladder: Ladder, ratio: float) -> int:
    return ladder.nearest(ratio * ladder.original)


def _choose_measure(sensitivity: Sensitivity, by: str | None) -> Callable[[SensitivityPoint], float]:
    before = sensitivity.accuracy
    by = ("error" if before is None else "accuracy") if by is None else by
    if by not in ("accuracy", "error"):
        raise InputError(f"auto_ratio: by is {by!r}; use 'accuracy' or 'error'")
    if by == "error":
        return lambda point: point.error
    if before is None:
        raise InputError("auto_ratio: accuracy was not measured; give analyze_sensitivity an evaluate, or by='error'")
    return lambda point: max(0.0, before - (before if point.accuracy is None else point.accuracy))


_TIE = 1e-6
"""Where cuts lose equally much (no accuracy at all, say), the output error decides."""


def _list_pieces(
    sensitivity: Sensitivity,
    ladders: Mapping[str, Ladder],
    target: str,
    measure: Callable[[SensitivityPoint], float],
) -> list[_Piece]:
    """The pieces of all groups' hulls by ascending price; each group's own come in order, as hulls are convex."""
    pieces = []
    for name in sensitivity.groups:
        points = sensitivity.points_of(name)
        group = ladders[name].group
        removed = np.array([0.0, *(point.removed for point in points)])
        losses = np.maximum.accumulate([0.0, *(measure(point) for point in points)])
        ranks = losses + _TIE * np.maximum.accumulate([0.0, *(point.error for point in points)])
        whole = removed * group.size * group.width
        saved = whole if target == "channels" else np.array([0.0, *(getattr(point, target) for point in points)])
        corners = _hull(np.maximum.accumulate(saved), ranks)
        for first, last in pairwise(corners):
            price = float((ranks[last] - ranks[first]) / (saved[last] - saved[first]))
            loss = float(losses[last] - losses[first])
            pieces.append(_Piece(name, float(removed[first]), float(removed[last]), loss, price))
    return sorted(pieces, key=lambda piece: piece.price)


def _hull(x: np.ndarray, y: np.ndarray) -> list[int]:
    """The corners of the lower convex hull of points with ascending x; of equal x, the first counts."""
    corners: list[int] = []
    for point in range(len(x)):
        if corners and x[point] <= x[corners[-1]]:
            continue
        while len(corners) > 1:
            a, b = corners[-2:]
            if (y[b] - y[a]) * (x[point] - x[b]) < (y[point] - y[b]) * (x[b] - x[a]):
                break
            corners.pop()
        corners.append(point)
    return corners


def _take(pieces: Sequence[_Piece], groups: Sequence[str], position: float) -> dict[str, float]:
    """The ratios when so many pieces are taken, the last one in part."""
    ratios = dict.fromkeys(groups, 0.0)
    for number, piece in enumerate(pieces):
        part = min(max(position - number, 0.0), 1.0)
        if part:
            ratios[piece.group] = piece.start + part * (piece.end - piece.start)
    return ratios


def _position_of_loss(pieces: Sequence[_Piece], most: float) -> float:
    """How many pieces lose no more than that together, the last one in part."""
    left = most
    for number, piece in enumerate(pieces):
        if piece.loss > left:
            return number + left / piece.loss
        left -= piece.loss
    return float(len(pieces))
