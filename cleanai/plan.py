"""The plan of a cut: inert data that prints, compares, saves as JSON, composes and replays."""

from __future__ import annotations

import itertools
import json
import operator
import reprlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cleanai.errors import PlanError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

__all__ = ["AttributeChange", "BlockCut", "GroupCut", "Plan", "TensorCut"]

FORMAT = "cleanai-plan-1"
_MOST_PLACES = 1000  # no block returns more values
_MOST_INDICES = 1 << 62
# What the plan of the largest model has a tenth of; a text of the same length that has more would fill the memory.
_MOST_JSON_NODES = 300_000
_MOST_DEPTH = 20
_Record = TypeVar("_Record", "TensorCut", "GroupCut", "AttributeChange", "BlockCut")


@dataclass(frozen=True)
class TensorCut:
    """Which indices of one dimension of a model tensor go.

    Attributes:
        parameter: the tensor's name in the model, such as "conv1.weight".
        dim: which of its dimensions.
        size: how many indices it has before the cut.
        dropped: those that go, ascending.
        role: "input" where the dimension is summed over (the columns of a weight), else "output".

    Example:
        >>> cut = TensorCut("fc.weight", 0, 4, (1,))
        >>> cut.kept, cut.new_indices
        ((0, 2, 3), (0, None, 1, 2))
    """

    parameter: str
    dim: int
    size: int
    dropped: tuple[int, ...]
    role: str = "output"

    @property
    def kept(self) -> tuple[int, ...]:
        """The indices that stay, ascending."""
        gone = set(self.dropped)
        return tuple(index for index in range(self.size) if index not in gone)

    @property
    def new_indices(self) -> tuple[int | None, ...]:
        """For each index before the cut, the one that it has after it; None where it went."""
        places = {old: new for new, old in enumerate(self.kept)}
        return tuple(places.get(old) for old in range(self.size))

    @property
    def kept_size(self) -> int:
        """How many indices stay."""
        return self.size - len(self.dropped)


@dataclass(frozen=True)
class GroupCut:
    """What goes from one group: unit indices in the group's own numbering, and every unit's score if there are any.

    Attributes:
        name: the group's name: the path of the layer that makes its channels.
        kind: what its units are: "channels", "heads" or "groups".
        size: how many units it has before the cut.
        dropped: those that go, ascending.
        width: how many channels a unit has in the layer that names the group.
        asked_ratio: the share that was asked of this very group; None where it was asked of several together.
        scores: one number per unit, higher = keep; None where the group was not scored.
        note: why it was treated specially.

    Example:
        >>> cut = GroupCut("attention.query", "heads", size=4, dropped=(1,), width=16, scores=(0.9, 0.1, 0.7, 0.8))
        >>> cut.kept_size, len(cut.dropped) * cut.width  # heads that stay, channels that go
        (3, 16)
    """

    name: str
    kind: str
    size: int
    dropped: tuple[int, ...]
    width: int = 1
    asked_ratio: float | None = None
    scores: tuple[float, ...] | None = None
    note: str = ""

    @property
    def kept_size(self) -> int:
        """How many units stay."""
        return self.size - len(self.dropped)


@dataclass(frozen=True)
class AttributeChange:
    """A number that a module keeps and its forward uses, such as the number of heads: it follows the cut.

    Attributes:
        module: the path of the module that keeps it.
        attribute: its name there.
        index: its place, where the attribute is a tuple or a list of numbers; None where it is a number itself.
        old, new: what it is before the cut and after it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner
        >>> layer = nn.TransformerEncoderLayer(d_model=8, nhead=2, dim_feedforward=16, batch_first=True)
        >>> plan = StructuredPruner(layer, torch.randn(1, 4, 8), pruning_ratio=0.5).make_plan()
        >>> plan.attributes
        (AttributeChange(module='self_attn', attribute='num_heads', index=None, old=2, new=1),)
    """

    module: str
    attribute: str
    index: int | None
    old: int
    new: int


@dataclass(frozen=True)
class BlockCut:
    """A residual block that could be dropped whole, and whether it is: what is left there hands its input on.

    Attributes:
        module: the block's path.
        kind: the name of its class.
        dropped: whether it goes.
        places: the form of what it returns: 0 for a tensor, n for a tuple of n that begins with one. What follows in
            the tuple is read nowhere and becomes None.
        score: how much the model needs it, higher = keep; None where it was not scored.
        note: why it was treated specially.

    Example:
        >>> plan = Plan(blocks=(BlockCut("layers.3", "Bottleneck"), BlockCut("layers.4", "Bottleneck", dropped=False)))
        >>> plan.dropped_blocks
        ('layers.3',)
    """

    module: str
    kind: str
    dropped: bool = True
    places: int = 0
    score: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """Everything a cut does to a model, by names and indices only.

    Inert data: it prints, compares, saves as JSON, and is carried out by `cleanai.slice_model`, on the model it was
    made for or on a fresh one of the same architecture. `StructuredPruner.make_plan` makes it.

    Attributes:
        cuts: one `cleanai.plan.TensorCut` per dimension of a tensor that shrinks; tied tensors appear once.
        groups: one `cleanai.plan.GroupCut` per group of channels: which units go, with their scores.
        attributes: numbers that modules keep and that follow (`cleanai.plan.AttributeChange`).
        settings: what was asked for, as plain data.
        blocks: the residual blocks that could go (`cleanai.plan.BlockCut`): those that do are dropped before anything
            is cut, and nothing inside them is.

    Raises:
        PlanError: the parts contradict each other: an index that does not exist, a tensor that would be emptied, a cut
            inside a block that goes.

    Example:
        >>> cut = TensorCut("fc.weight", 0, 4, (1, 3))
        >>> plan = Plan(cuts=(cut,))
        >>> plan.kept("fc.weight", 0)
        (0, 2)
        >>> Plan.from_json(plan.to_json()) == plan
        True
    """

    cuts: tuple[TensorCut, ...] = ()
    groups: tuple[GroupCut, ...] = ()
    attributes: tuple[AttributeChange, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    blocks: tuple[BlockCut, ...] = ()

    def __post_init__(self) -> None:
        self._check_cuts()
        self._check_groups()
        self._check_blocks()

    def _check_cuts(self) -> None:
        seen = set()
        for cut in self.cuts:
            if cut.dim < 0:
                raise PlanError(f"{cut.parameter}: the dimension {cut.dim} is negative; count from the first one")
            if (cut.parameter, cut.dim) in seen:
                raise PlanError(f"{cut.parameter} dimension {cut.dim} appears twice in the plan")
            seen.add((cut.parameter, cut.dim))
            if not _is_ascending(cut.dropped):
                raise PlanError(f"the dropped indices of {cut.parameter} are not distinct and ascending")
            if cut.size > _MOST_INDICES:
                raise PlanError(f"{cut.parameter} dimension {cut.dim} cannot have {cut.size} indices")
            if cut.dropped and not 0 <= cut.dropped[0] <= cut.dropped[-1] < cut.size:
                raise PlanError(
                    f"{cut.parameter} dimension {cut.dim} has {cut.size} indices; the plan drops "
                    f"{cut.dropped[0]}…{cut.dropped[-1]}"
                )
            if len(cut.dropped) >= cut.size:
                raise PlanError(f"the plan would empty {cut.parameter} dimension {cut.dim}")

    def _check_groups(self) -> None:
        for group in self.groups:
            if not _is_ascending(group.dropped) or not all(0 <= index < group.size for index in group.dropped):
                raise PlanError(f"the dropped units of {group.name} are not distinct, ascending and below {group.size}")
            if group.width < 1 or not 0 <= group.size <= _MOST_INDICES:
                raise PlanError(f"the group {group.name} cannot have {group.size} units of {group.width} channels")
            if group.scores is not None and len(group.scores) != group.size:
                raise PlanError(f"the group {group.name} has {group.size} units and {len(group.scores)} scores")

    def _check_blocks(self) -> None:
        gone = frozenset(self.dropped_blocks)
        for name, count in Counter(block.module for block in self.blocks).items():
            if count > 1:
                raise PlanError(f"the block {name} appears twice in the plan")
        if "" in gone:
            raise PlanError("the plan drops the whole model")
        for block in self.blocks:
            if not 0 <= block.places <= _MOST_PLACES:
                raise PlanError(f"the block {block.module} returns {block.places} values in the plan")
        # What is left of a block keeps the block's own attributes, which may follow a cut.
        for name in (*(cut.parameter for cut in self.cuts), *(change.module for change in self.attributes), *gone):
            if _is_inside(name, gone):
                raise PlanError(f"the plan cuts {name}, which is gone with a block that it drops")

    def kept(self, parameter: str, dim: int) -> tuple[int, ...]:
        """The indices of a tensor's dimension that stay, in the numbering before the cut.

        Args:
            parameter: the tensor's name.
            dim: which of its dimensions.

        Raises:
            KeyError: the plan does not cut it.
        """
        for cut in self.cuts:
            if cut.parameter == parameter and cut.dim == dim:
                return cut.kept
        raise KeyError(f"the plan does not cut {parameter} dimension {dim}")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is removed."""
        return not self.dropped_blocks and not any(cut.dropped for cut in self.cuts)

    @property
    def dropped_blocks(self) -> tuple[str, ...]:
        """The paths of the blocks that go whole."""
        return tuple(block.module for block in self.blocks if block.dropped)

    @property
    def units(self) -> int:
        """How many channels the plan's groups had (a head counts with its width)."""
        return sum(group.size * group.width for group in self.groups)

    @property
    def dropped_units(self) -> int:
        """How many of them go."""
        return sum(len(group.dropped) * group.width for group in self.groups)

    def then(self, later: Plan) -> Plan:
        """One plan for this one followed by ``later``, in the numbering of the original model.

        What this plan cuts inside a block that ``later`` drops goes with the block.

        Raises:
            PlanError: ``later`` does not start where this plan ends, or touches a block that this one drops.

        Example:
            >>> first = Plan(cuts=(TensorCut("fc.weight", 0, 4, (1,)),))  # 0, 2 and 3 stay
            >>> later = Plan(cuts=(TensorCut("fc.weight", 0, 3, (1,)),))  # of those, 2 goes
            >>> first.then(later).kept("fc.weight", 0)
            (0, 3)
        """
        gone = frozenset(later.dropped_blocks)
        return Plan(
            cuts=_compose_cuts([c for c in self.cuts if not _is_inside(c.parameter, gone)], later.cuts),
            groups=_compose_groups(self.groups, later.groups),
            attributes=_compose_attributes(
                [c for c in self.attributes if not _is_inside(c.module, gone)], later.attributes
            ),
            settings=dict(later.settings),
            blocks=_compose_blocks(self.blocks, later.blocks),
        )

    def compare(self, other: Plan) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Where this plan and an ``other`` differ: {group: (dropped here only, dropped there only)}.

        A block that only one of them drops is listed by its path, with a 0 on that plan's side.

        Example:
            >>> here, there = (Plan(groups=(GroupCut("fc", "channels", 4, units),)) for units in ((0, 1), (1, 2)))
            >>> here.compare(there)
            {'fc': ((0,), (2,))}
        """
        mine = {group.name: set(group.dropped) for group in self.groups}
        theirs = {group.name: set(group.dropped) for group in other.groups}
        differences = {}
        for name in [*mine, *(name for name in theirs if name not in mine)]:
            here, there = mine.get(name, set()), theirs.get(name, set())
            if here != there:
                differences[name] = (tuple(sorted(here - there)), tuple(sorted(there - here)))
        differences.update({path: ((0,), ()) for path in self.dropped_blocks if path not in other.dropped_blocks})
        differences.update({path: ((), (0,)) for path in other.dropped_blocks if path not in self.dropped_blocks})
        return differences

    def apply_masks(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """The ``model`` as it would be after the cut, without cutting: ``with plan.apply_masks(model) as masked: …``.

        The masked model computes what the sliced one would, in evaluation mode and without gradients; afterwards the
        model is as before. It is several times slower than the sliced one, but nothing is copied.

        Raises:
            InputError: ``model`` is no module with a forward of its own.
            PlanError: the plan does not fit the model.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from cleanai import StructuredPruner
            >>> net, x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(1, 3)
            >>> pruner = StructuredPruner(net, x)
            >>> with pruner.make_plan().apply_masks(net) as masked:
            ...     preview = masked(x)
            >>> torch.allclose(preview, pruner.prune()(x))
            True
        """
        from cleanai.masks import apply_masks

        return apply_masks(model, self)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data for JSON."""
        data = asdict(self)
        data["settings"] = dict(self.settings)
        return {"format": FORMAT, **data}

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The plan whose ``data`` `to_dict` wrote; everything is checked, nothing is executed.

        Raises:
            PlanError: it is damaged, or something else.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise PlanError(f"this is not a plan of the format {FORMAT}")
        parts: dict[str, Any] = {name: data.get(name) for name in ("cuts", "groups", "attributes")}
        parts["blocks"] = data.get("blocks", [])  # plans from before there were any have none
        settings = data.get("settings")
        if not all(isinstance(records, list) for records in parts.values()):
            raise PlanError("the plan is damaged: cuts, groups, attributes and blocks must be lists")
        if not isinstance(settings, Mapping):
            raise PlanError("the plan is damaged: settings must be a mapping")
        if not _is_shallow(settings):
            raise PlanError(f"the plan is damaged: its settings are nested more than {_MOST_DEPTH} deep")
        return cls(
            cuts=tuple(_read(TensorCut, cut) for cut in parts["cuts"]),
            groups=tuple(_read(GroupCut, group) for group in parts["groups"]),
            attributes=tuple(_read(AttributeChange, change) for change in parts["attributes"]),
            settings=dict(settings),
            blocks=tuple(_read(BlockCut, block) for block in parts["blocks"]),
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan whose ``text`` `to_json` wrote; everything is checked, nothing is executed.

        Raises:
            PlanError: the text is damaged, or something else.
        """
        return cls.from_dict(parse_json(text, "the plan"))

    def __repr__(self) -> str:
        cut = [group for group in self.groups if group.dropped]
        blocks = f"{len(self.dropped_blocks)} of {len(self.blocks)} blocks, " if self.blocks else ""
        channels = f"{self.dropped_units} of {self.units} channels in {len(cut)} of {len(self.groups)} groups"
        return f"Plan({blocks}{channels})"

    def __str__(self) -> str:
        width = max(
            map(len, [*(group.name for group in self.groups), *(block.module for block in self.blocks)]), default=0
        )
        lines = [repr(self)]
        for block in self.blocks:
            change = "dropped" if block.dropped else "kept"
            lines.append(f"  {block.module:<{width}}  {block.kind} {change}  {block.note}".rstrip())
        for group in self.groups:
            change = (
                f"{group.size} -> {group.kept_size} {group.kind}" if group.dropped else f"{group.size} {group.kind}"
            )
            details = "  ".join(text for text in (shorten_indices(group.dropped), group.note) if text)
            lines.append(f"  {group.name:<{width}}  {change}  {details}".rstrip())
        for change in self.attributes:
            place = change.attribute if change.index is None else f"{change.attribute}[{change.index}]"
            lines.append(f"  {change.module}.{place}: {change.old} -> {change.new}")
        return "\n".join(lines)


def shorten_indices(indices: Sequence[int], most: int = 8) -> str:
    """Indices as people read them: "0, 3, 7" or "0, 3, 7, … (24)"."""
    shown = ", ".join(str(index) for index in indices[:most])
    return f"{shown}, … ({len(indices)})" if len(indices) > most else shown


def parse_json(text: str, what: str) -> Any:
    """JSON values; whatever is wrong with the text is a `PlanError`, and so is more than a plan could hold."""
    if not isinstance(text, (str, bytes)):
        raise PlanError(f"{what} is a {type(text).__name__}; give its JSON text")
    if not isinstance(text, str):
        raise PlanError(f"{what} is a {type(text).__name__}, not JSON text")
    nodes = sum(text.count(mark) for mark in "{[:")
    if nodes > _MOST_JSON_NODES:
        raise PlanError(f"{what} is refused: it has {nodes} lists and fields, more than the {_MOST_JSON_NODES}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{what} is no valid JSON: {type(error).__name__}: {error!s:.80}") from error


def _is_shallow(value: Mapping[str, Any] | list[Any], most: int = _MOST_DEPTH) -> bool:
    """Whether JSON values are nested so deep at most: more would break what prints or saves them."""
    items = value.values() if isinstance(value, Mapping) else value
    return most > 0 and all(_is_shallow(item, most - 1) for item in items if type(item) in (dict, list))


def _is_ascending(indices: Sequence[int]) -> bool:
    return all(map(operator.lt, indices, itertools.islice(indices, 1, None)))


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _is_list_of(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and set(map(type, value)) <= set(kinds)


# What a field may hold in JSON, by the annotation it has above.
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": _is_integer,
    "int | None": lambda value: value is None or _is_integer(value),
    "float | None": lambda value: value is None or type(value) in (int, float),
    "tuple[int, ...]": _is_list_of(int),
    "tuple[float, ...] | None": lambda value: value is None or _is_list_of(int, float)(value),
}


def _read(kind: type[_Record], data: Any) -> _Record:
    """One record from JSON, every field checked."""
    names = {item.name: str(item.type) for item in fields(kind)}
    if not isinstance(data, Mapping) or set(data) != set(names):
        raise PlanError(f"the plan is damaged: a {kind.__name__} needs exactly the fields {', '.join(names)}")
    values: dict[str, Any] = {}
    for name, annotation in names.items():
        if not _CHECKS[annotation](data[name]):
            raise PlanError(
                f"the plan is damaged: {kind.__name__}.{name} is {shorten_value(data[name])}, not {annotation}"
            )
        values[name] = tuple(data[name]) if isinstance(data[name], list) else data[name]
    return kind(**values)


def shorten_value(value: Any) -> str:
    """A value as an error shows it, however long or deep it is."""
    return f"{reprlib.repr(value):.60}"


def _compose(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    """Indices dropped by two cuts in a row; the second counts in what the first left."""
    gone, later = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    stayed_before = gone - np.arange(len(gone))  # for each index that went first, how many before it stayed
    later = later + np.searchsorted(stayed_before, later, side="right")
    return tuple(np.sort(np.concatenate([gone, later])).tolist())


def _compose_cuts(first: Sequence[TensorCut], second: Sequence[TensorCut]) -> tuple[TensorCut, ...]:
    merged = {(cut.parameter, cut.dim): cut for cut in first}
    for cut in second:
        key = (cut.parameter, cut.dim)
        before = merged.get(key)
        if before is None:
            merged[key] = cut
            continue
        if before.kept_size != cut.size:
            raise PlanError(
                f"the plans do not follow each other: {cut.parameter} dimension {cut.dim} has {before.kept_size} "
                f"indices after the first and {cut.size} before the second"
            )
        dropped = _compose(before.dropped, cut.dropped)
        merged[key] = TensorCut(cut.parameter, cut.dim, before.size, dropped, before.role)
    return tuple(merged.values())


def _compose_groups(first: Sequence[GroupCut], second: Sequence[GroupCut]) -> tuple[GroupCut, ...]:
    """The records of both; what the model loses is in the cuts, which are checked.

    A later group of the same name may have other units: single heads, where a key head and its queries went together
    before, or channels of several groups that must now shrink alike. It is a group of its own, if it loses any.
    """
    merged = list(first)
    for group in second:
        same = [n for n, before in enumerate(merged) if before.name == group.name]
        followed = [n for n in same if (merged[n].kind, merged[n].kept_size) == (group.kind, group.size)]
        if followed:
            merged[followed[0]] = _compose_group(merged[followed[0]], group)
        elif group.dropped or not same:
            merged.append(group)
    return tuple(merged)


def _compose_group(before: GroupCut, group: GroupCut) -> GroupCut:
    """The record of the same units after two cuts."""
    scores = before.scores
    if group.scores is not None:
        left = np.setdiff1d(np.arange(before.size), np.asarray(before.dropped, dtype=np.int64))
        full = np.array(before.scores if before.scores is not None else [0.0] * before.size)
        full[left] = group.scores
        scores = tuple(full.tolist())
    return GroupCut(
        group.name,
        before.kind,
        before.size,
        _compose(before.dropped, group.dropped),
        before.width,
        group.asked_ratio if group.asked_ratio is not None else before.asked_ratio,
        scores,
        group.note or before.note,
    )


def _compose_attributes(
    first: Sequence[AttributeChange], second: Sequence[AttributeChange]
) -> tuple[AttributeChange, ...]:
    merged = {(change.module, change.attribute, change.index): change for change in first}
    for change in second:
        key = (change.module, change.attribute, change.index)
        before = merged.get(key)
        if before is not None and before.new != change.old:
            raise PlanError(
                f"the plans do not follow each other: {change.module}.{change.attribute} is {before.new} after the "
                f"first and {change.old} before the second"
            )
        old = before.old if before is not None else change.old
        merged[key] = AttributeChange(change.module, change.attribute, change.index, old, change.new)
    return tuple(merged.values())


def _is_inside(path: str, blocks: Collection[str]) -> bool:
    """Whether a module or tensor is a part of some block."""
    if not blocks:
        return False
    dots = (place for place, letter in enumerate(path) if letter == ".")
    return any(path[:dot] in blocks for dot in dots)


def _compose_blocks(first: Sequence[BlockCut], second: Sequence[BlockCut]) -> tuple[BlockCut, ...]:
    merged = {block.module: block for block in first}
    for block in second:
        before = merged.get(block.module)
        if before is not None and before.dropped:
            raise PlanError(f"the plans do not follow each other: the first has dropped {block.module} already")
        known = before.score if before is not None and block.score is None else block.score
        merged[block.module] = replace(block, score=known)
    dropped = {block.module for block in second if block.dropped}
    # A block inside one that goes later is no longer a block of its own.
    return tuple(block for block in merged.values() if not _is_inside(block.module, dropped))
