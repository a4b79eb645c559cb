"""What was cut from a model, prune by prune: kept with the model, saved as JSON, replayed on another instance.

The history travels with the model object (copies have it too) and with the file that `cleanai.save_pruned` writes. It
is inert data: names, indices and numbers.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from torch import Tensor, nn

from cleanai.checks import check_model
from cleanai.errors import PlanError
from cleanai.plan import Plan, TensorCut, parse_json, shorten_value

FORMAT = "cleanai-history-1"
_ATTRIBUTE = "_cleanai_history"
_BUDGET = ("target", "pruning_ratio", "global_pruning", "iterative_steps", "layer_pruning_ratios")


@dataclass(frozen=True)
class Removed:
    """What one cut took out of a model: enough to put it back.

    ``tensors`` holds, for each tensor that was cut, the values that went, one after another in the order of the
    original. ``modules`` holds the class and the plain attributes that changed, by path.
    """

    tensors: Mapping[str, Tensor]
    blocks: Mapping[str, nn.Module]
    modules: Mapping[str, tuple[type, Mapping[str, Any]]]


@dataclass(frozen=True)
class HistoryEntry:
    """One prune: what went, why, by which version, from which architecture.

    Attributes:
        steps: the plans of its steps, each in the numbering of the model before that step.
        architecture: the hash of the model before (see `hash_architecture`).
        version: of CleanAI.
        created: when, in UTC, as ISO 8601 writes it.
        removed: what each step took out, where it was kept (``keep_removed=True``); else None.

    Example:
        >>> import torch
        >>> from cleanai import StructuredPruner, history_of
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> (entry,) = history_of(StructuredPruner(net, torch.ones(1, 3), pruning_ratio=0.25).prune())
        >>> entry.criterion, entry.budget["pruning_ratio"], entry.plan
        ('magnitude', 0.25, Plan(2 of 8 channels in 1 of 1 groups))
        >>> entry.architecture == hash_architecture(net)
        True
    """

    steps: tuple[Plan, ...]
    architecture: str
    version: str
    created: str
    removed: tuple[Removed, ...] | None = field(default=None, compare=False, repr=False)

    @functools.cached_property
    def plan(self) -> Plan:
        """All steps as one plan, in the numbering of the model before the prune."""
        return functools.reduce(Plan.then, self.steps)

    @property
    def criterion(self) -> str:
        """The criterion that chose, as the plan's settings name it; "" for a plan that was made by hand."""
        return str(self.steps[-1].settings.get("importance", ""))

    @property
    def budget(self) -> dict[str, Any]:
        """How much was asked for: the target, the ratio, and how it was shared out."""
        settings = self.steps[-1].settings
        return {name: settings[name] for name in _BUDGET if name in settings}

    def __deepcopy__(self, memo: Any) -> HistoryEntry:
        return self  # inert; what a rollback puts back is copied then

    def to_dict(self) -> dict[str, Any]:
        """The entry as plain data for JSON, without the removed values."""
        return {
            "criterion": self.criterion,
            "budget": self.budget,
            "version": self.version,
            "created": self.created,
            "architecture": self.architecture,
            "removed": self.removed is not None,
            "steps": [plan.to_dict() for plan in self.steps],
        }

    @classmethod
    def from_dict(cls, data: Any) -> HistoryEntry:
        """The entry whose ``data`` `to_dict` wrote; everything is checked, nothing is executed.

        Raises:
            PlanError: it is damaged, or something else.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("steps"), list) or not data["steps"]:
            raise PlanError("the history is damaged: an entry needs a list of steps")
        texts = {name: data.get(name) for name in ("architecture", "version", "created")}
        for name, value in texts.items():
            if not isinstance(value, str):
                raise PlanError(f"the history is damaged: {name} is {shorten_value(value)}, not a text")
        return cls(tuple(Plan.from_dict(plan) for plan in data["steps"]), **texts)


@dataclass(frozen=True)
class History:
    """The prunes of a model, oldest first; as long as there were prunes.

    `history_of` gives it. It behaves like a list of entries.

    Attributes:
        entries: the prunes, as `HistoryEntry`.

    Example:
        >>> from cleanai.plan import TensorCut
        >>> from cleanai.slicing import slice_model
        >>> cuts = (TensorCut("weight", 0, 4, (1,)), TensorCut("bias", 0, 4, (1,)))
        >>> history = history_of(slice_model(nn.Linear(3, 4), Plan(cuts=cuts)))
        >>> len(history), history.plan.kept("weight", 0)
        (1, (0, 2, 3))
        >>> History.from_json(history.to_json()) == history
        True
    """

    entries: tuple[HistoryEntry, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[HistoryEntry]:
        return iter(self.entries)

    def __getitem__(self, index: int) -> HistoryEntry:
        return self.entries[index]

    @property
    def plan(self) -> Plan:
        """Everything that has gone, in the numbering of the original model."""
        return functools.reduce(Plan.then, (entry.plan for entry in self.entries), Plan())

    def channel_maps(self, layer: str) -> tuple[TensorCut, ...]:
        """Old and new channels of a ``layer``'s tensors: ``kept[new]`` is an old index, ``new_indices[old]`` a new one.

        One record for each dimension of each tensor that shrank, by dimension: 0 of "conv1.weight" is its outputs, 1
        its inputs. Empty where nothing of the layer went.

        Example:
            >>> from cleanai.plan import TensorCut
            >>> from cleanai.slicing import slice_model
            >>> net = nn.Sequential(nn.Linear(3, 4))
            >>> plan = Plan(cuts=(TensorCut("0.weight", 0, 4, (1,)), TensorCut("0.bias", 0, 4, (1,))))
            >>> [(cut.parameter, cut.new_indices) for cut in history_of(slice_model(net, plan)).channel_maps("0")]
            [('0.bias', (0, None, 1, 2)), ('0.weight', (0, None, 1, 2))]
        """
        cuts = [cut for cut in self.plan.cuts if cut.parameter.rpartition(".")[0] == layer and cut.dropped]
        return tuple(sorted(cuts, key=lambda cut: (cut.dim, cut.parameter)))

    def to_json(self) -> str:
        """The history as JSON text, without removed values."""
        return json.dumps(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The history as plain data for JSON, without removed values."""
        return {"format": FORMAT, "entries": [entry.to_dict() for entry in self.entries]}

    @classmethod
    def from_dict(cls, data: Any) -> History:
        """The history whose ``data`` `to_dict` wrote; everything is checked, nothing is executed.

        Raises:
            PlanError: it is damaged, or something else.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT or not isinstance(data.get("entries"), list):
            raise PlanError(f"this is not a history of the format {FORMAT}")
        return cls(tuple(HistoryEntry.from_dict(entry) for entry in data["entries"]))

    @classmethod
    def from_json(cls, text: str) -> History:
        """The history whose ``text`` `to_json` wrote; everything is checked, nothing is executed.

        Raises:
            PlanError: the text is damaged, or something else.
        """
        return cls.from_dict(parse_json(text, "the history"))

    def __str__(self) -> str:
        lines = [f"History({len(self)} {'prune' if len(self) == 1 else 'prunes'})"]
        for number, entry in enumerate(self.entries, 1):
            budget = ", ".join(f"{name}={value}" for name, value in entry.budget.items())
            lines.append(
                f"  {number}. {entry.created}  {entry.criterion or 'by hand'}  {entry.plan!r}  {budget}".rstrip()
            )
        return "\n".join(lines)


def hash_architecture(model: nn.Module) -> str:
    """SHA-256 over a model's module classes and the names and shapes of its parameters and saved buffers.

    64 hexadecimal digits. Values, dtypes and devices do not enter, nor does the place a class is defined in.

    Example:
        >>> hash_architecture(nn.Linear(3, 4)) == hash_architecture(nn.Linear(3, 4))
        True
        >>> hash_architecture(nn.Linear(3, 4)) == hash_architecture(nn.Linear(3, 5))
        False
    """
    digest = hashlib.sha256()
    for path, module in model.named_modules():
        digest.update(f"{path}:{type(module).__name__}\n".encode())
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            digest.update(f"{name}:{tuple(value.shape)}\n".encode())
    return digest.hexdigest()


def history_of(model: nn.Module) -> History:
    """What was cut from a ``model``, oldest first; empty for one that was never pruned.

    Prunes of its parts on their own are among them, with the names that they have in the whole.

    Raises:
        InputError: ``model`` is no module.

    Example:
        >>> import torch
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruned = StructuredPruner(net, torch.ones(1, 3)).prune()
        >>> len(history_of(net)), len(history_of(pruned)), history_of(pruned)[0].criterion
        (0, 1, 'magnitude')
    """
    check_model(model)
    entries = []
    for path, module in model.named_modules():
        own = module.__dict__.get(_ATTRIBUTE, History())
        entries += [_inside(entry, path) for entry in own] if path else own
    return History(tuple(sorted(entries, key=lambda entry: entry.created)))


def own_history(model: nn.Module) -> History:
    """The prunes of this very module, without those of its parts."""
    check_model(model)
    return model.__dict__.get(_ATTRIBUTE, History())


def set_own_history(model: nn.Module, history: History) -> None:
    """Makes this the history of this very module."""
    model.__dict__.pop(_ATTRIBUTE, None)
    if history.entries:
        model.__dict__[_ATTRIBUTE] = history


def record_cut(model: nn.Module, plan: Plan, architecture: str, removed: Removed | None) -> None:
    """Adds one cut to a model's own history."""
    import cleanai

    created = datetime.now(timezone.utc).isoformat(timespec="microseconds")
    kept = None if removed is None else (removed,)
    entry = HistoryEntry((plan,), architecture, cleanai.__version__, created, kept)
    set_own_history(model, History((*own_history(model), entry)))


def merge_steps(model: nn.Module, before: History, plan: Plan) -> None:
    """Makes one entry of what was cut since: the steps themselves where what they removed was kept, else their sum."""
    new = own_history(model).entries[len(before) :]
    if not new:
        return
    kept = [entry.removed for entry in new]
    merged = replace(new[0], steps=(plan,), created=new[-1].created)
    if all(removed is not None for removed in kept):
        steps = [step for entry in new for step in entry.steps]
        steps[-1] = replace(steps[-1], settings=dict(plan.settings))
        removed = tuple(part for parts in kept for part in parts or ())
        merged = replace(merged, steps=tuple(steps), removed=removed)
    set_own_history(model, History((*before, merged)))


def _inside(entry: HistoryEntry, path: str) -> HistoryEntry:
    """The entry of a part, with the names that it has in the whole."""
    steps = tuple(_move_plan(plan, path) for plan in entry.steps)
    return replace(entry, steps=steps, removed=_move_removed(entry, path))


def _move_plan(plan: Plan, path: str) -> Plan:
    return replace(
        plan,
        cuts=tuple(replace(cut, parameter=f"{path}.{cut.parameter}") for cut in plan.cuts),
        groups=tuple(replace(cut, name=f"{path}.{cut.name}") for cut in plan.groups),
        attributes=tuple(replace(c, module=f"{path}.{c.module}" if c.module else path) for c in plan.attributes),
        blocks=tuple(replace(block, module=f"{path}.{block.module}") for block in plan.blocks),
    )


def _move_removed(entry: HistoryEntry, path: str) -> tuple[Removed, ...] | None:
    def move(values: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{path}.{name}" if name else path: value for name, value in values.items()}

    if entry.removed is None:
        return None
    return tuple(Removed(move(r.tensors), move(r.blocks), move(r.modules)) for r in entry.removed)


def check_same_names(found: Sequence[str], wanted: Sequence[str], what: str) -> None:
    """Raises `PlanError` where two lists of names differ, and says in which."""
    here, there = set(found), set(wanted)
    missing = [name for name in wanted if name not in here]
    strange = [name for name in found if name not in there]
    if missing or strange:
        text = f"{missing[0]} is missing" if missing else f"{strange[0]} is not part of the model"
        raise PlanError(f"{what}: {text} ({len(missing)} missing, {len(strange)} unknown)")
