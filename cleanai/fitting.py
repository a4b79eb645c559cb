"""A cut tried before it is made: which sizes the forward keeps in attributes, and what it cannot follow.

A model's forward may compute with sizes it stores (``self.num_heads``) or with literal numbers. Autograd does not say
which, so the cut is tried on a stand-in without data: every operation must come out in the shape that the labels
predict, with the same numbers as before. Where it does not, the attributes that hold an old size are made to follow;
where that does not help either, the channels concerned are frozen and named.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai.coupling import Coupling, Group, solve_coupling
from cleanai.errors import PlanError
from cleanai.fields import IntArray, Labelled
from cleanai.inputs import call_model, map_tensors, output_tensors
from cleanai.isolation import seed_random_state, shadow_model
from cleanai.layers import group_attributes, prepare_layers
from cleanai.plan import AttributeChange, GroupCut, Plan, TensorCut
from cleanai.prediction import Mismatch, alive_classes, compare_in_step, compare_traces
from cleanai.slicing import slice_model
from cleanai.trace import ForwardFailed, ForwardFunction, trace_model

Choice = Mapping[int, Sequence[int] | IntArray]
"""Units to remove: {group index: unit indices}."""
_Hypothesis = tuple[tuple[str, int | None, int], ...]
_RuleKey = tuple[str, str, int | None]

_OWN_LAYERS = ("torch.nn.", "cleanai.layers")
"""Of these it is known what they keep besides their weights (`group_attributes`, `sizes_of`)."""
_MOST_HYPOTHESES = 40
_MOST_STEPS = 6
_MOST_TRIES = 100
_MOST_PIECES = 8


@dataclass(frozen=True)
class AttributeRule:
    """An attribute that must follow a size: its value is the number of ``labels`` still alive."""

    module: str
    attribute: str
    index: int | None
    old: int
    labels: IntArray = field(repr=False)


def make_plan(
    coupling: Coupling,
    dropped: Mapping[int, Sequence[int] | IntArray],
    rules: Sequence[AttributeRule] = (),
    records: Mapping[int, Mapping[str, Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan that removes some units of some groups ({group index: unit indices}).

    ``records`` adds fields to the record of a group (scores, asked_ratio, note).
    """
    cuts: dict[tuple[str, int], list[IntArray]] = {}
    roles: dict[tuple[str, int], tuple[int, str]] = {}
    group_cuts = []
    for group in coupling.groups:
        units = np.unique(np.asarray(dropped.get(group.index, ()), dtype=np.int64))
        extra = dict((records or {}).get(group.index, {}))
        group_cuts.append(GroupCut(group.name, group.kind, group.size, tuple(units.tolist()), group.width, **extra))
        if not len(units):
            continue
        gone = np.zeros(group.size, bool)
        gone[units] = True
        for member in group.members:
            key = (member.parameter, member.dim)
            cuts.setdefault(key, []).append(member.positions[gone[member.units]])
            roles[key] = (member.size, member.role)
    alive = alive_classes(coupling, dropped)
    attributes = []
    for rule in rules:
        new = int(alive[coupling.class_of[rule.labels]].sum())
        if new != rule.old:
            attributes.append(AttributeChange(rule.module, rule.attribute, rule.index, rule.old, new))
    # The members of a group mostly lose the same indices: they then share one tuple.
    shared: dict[bytes, tuple[int, ...]] = {}

    def indices(pieces: Sequence[IntArray]) -> tuple[int, ...]:
        positions = np.sort(np.concatenate(pieces))
        key = positions.tobytes()
        if key not in shared:
            shared[key] = tuple(positions.tolist())
        return shared[key]

    return Plan(
        cuts=tuple(
            TensorCut(name, dim, roles[name, dim][0], indices(pieces), roles[name, dim][1])
            for (name, dim), pieces in cuts.items()
        ),
        groups=tuple(group_cuts),
        attributes=tuple(attributes),
        settings=settings or {},
    )


# ------------------------------------------------------------------------------------------------------------ trying


@dataclass
class Fitting:
    """The model, how to call it, its coupling, and the attribute rules found so far."""

    model: nn.Module
    example_inputs: Any
    coupling: Coupling
    forward_fn: ForwardFunction | None = None
    output_transform: Callable[[Any], Any] | None = None
    _needed: dict[_RuleKey, AttributeRule] = field(default_factory=dict)
    _courtesy: dict[_RuleKey, AttributeRule] = field(default_factory=dict)
    _confirmed: set[_RuleKey] = field(default_factory=set)
    _paths: dict[str, nn.Module] = field(default_factory=dict)
    _sizes: tuple[IntArray, dict[str, list[tuple[int, IntArray]]]] | None = None
    _tries: int = 0

    def __post_init__(self) -> None:
        self._paths = dict(self.model.named_modules())

    def fork(self) -> Fitting:
        """The same knowledge of the same model, to which trying a cut may add without changing this one."""
        known = self.coupling
        return replace(
            self,
            coupling=replace(known, modes=dict(known.modes), manual=[*known.manual], ties=[*known.ties]),
            _needed=dict(self._needed),
            _courtesy=dict(self._courtesy),
            _confirmed=set(self._confirmed),
        )

    @property
    def rules(self) -> tuple[AttributeRule, ...]:
        """The attributes that follow a cut: those of torch's own layers, and those that were found."""
        return tuple(self._all_rules({}).values())

    def _all_rules(self, trial: Mapping[_RuleKey, AttributeRule]) -> dict[_RuleKey, AttributeRule]:
        return {**self._own_rules(), **self._courtesy, **self._needed, **trial}

    def try_cut(self, dropped: Choice, rules: Sequence[AttributeRule] | None = None) -> Mismatch | None:
        """What goes wrong when some units of some groups are removed from a stand-in; None if nothing does."""
        self._tries += 1
        alive = alive_classes(self.coupling, dropped)
        plan = make_plan(self.coupling, dropped, self.rules if rules is None else rules)
        for number, labelled in enumerate(self.coupling.traces):
            if labelled.trace.failure:
                continue
            try:
                trace = trace_model(
                    self.model,
                    self.example_inputs if labelled.trace.inputs is None else labelled.trace.inputs,
                    forward_fn=self.forward_fn,
                    output_transform=self.output_transform,
                    training=labelled.trace.training,
                    change=_then_slice(labelled.trace.change, plan),
                    method=labelled.trace.method,
                    track_buffers=labelled.trace.track_buffers,
                )
                mismatch = compare_traces(self.coupling, labelled, trace, alive)
            except ForwardFailed as error:
                # What went wrong first may be further up than where the forward noticed.
                mismatch = compare_in_step(self.coupling, labelled, error.trace, alive, complete=False)
                if mismatch is not None and not mismatch.other_path:
                    mismatch = replace(mismatch, message=f"{mismatch.message}; then {error}")
                else:
                    mismatch = Mismatch(error.module, str(error), len(error.trace))
            except PlanError as error:
                mismatch = Mismatch("", str(error), 0)
            if mismatch is not None:
                return replace(mismatch, trace=number)
        return None

    def fit(self, choose: Callable[[Coupling], Choice]) -> None:
        """Finds the attributes that must follow and freezes what cannot, until the chosen cut goes as predicted.

        First everything is cut at once. Where that fails, the groups that have one role in a model's repeated blocks
        are cut role by role, which tells apart what each of them needs; then all together again. ``choose`` picks units
        of the current coupling; it is asked again whenever the groups have changed.
        """
        self._tries = 0
        settled: set[str] = set()
        mismatch = self._search(choose(self.coupling), eager=True)
        while mismatch is not None:
            dropped = choose(self.coupling)
            for role, members in self._roles(dropped).items():
                if role in settled:
                    continue
                if not self._settle(members, choose):
                    break  # the groups have changed
                settled.add(role)
            else:
                mismatch = self.try_cut(dropped)
                if mismatch is not None:
                    self._freeze_together(dropped)
        self._confirm_courtesy(choose(self.coupling))

    def fit_pieces(self) -> None:
        """Fits small cuts that take from one piece of a group only: from the zeros before some channels, not after.

        Two attributes may have one value; a cut that takes as much from what each of them counts does not tell which
        of them counts what, and a cut that misses a piece says nothing of it.
        """
        for number in range(_MOST_PIECES):
            choose = functools.partial(self._choose_pieces, number)
            if not choose(self.coupling):
                break
            self.fit(choose)

    def _choose_pieces(self, number: int, coupling: Coupling) -> Choice:
        """A small cut in the piece of that number of each group that has so many."""
        pieces = self._list_pieces(coupling)
        choice = {}
        for group in coupling.groups:
            for inside in pieces.get(group.index, [])[number : number + 1]:
                choice[group.index] = _take_units(group, inside)
        return choice

    def _list_pieces(self, coupling: Coupling) -> dict[int, list[np.ndarray]]:
        """Parts of groups that the forward counts alone: {group index: [which of its units, at least two]}."""
        class_of = coupling.class_of
        group_of = np.full(int(class_of.max(initial=0)) + 1, -1, np.int64)
        for group in coupling.groups:
            group_of[group.classes] = group.index
        counted = [c.labels for each in coupling.traces for counts in each.counts.values() for c in counts]
        kept = [
            labels
            for path, sizes in self._sizes_by_module().items()
            if not type(self._paths[path]).__module__.startswith(_OWN_LAYERS)
            for found in _candidates(self._paths[path], sizes).values()
            for _, labels in found
        ]
        pieces: dict[int, dict[bytes, np.ndarray]] = {}
        for labels in [*counted, *kept]:
            if labels is None:
                continue
            classes = np.unique(class_of[labels])
            for index in np.unique(group_of[classes][group_of[classes] >= 0]).tolist():
                group = coupling.groups[index]
                inside = np.isin(group.classes, classes)
                if 1 < inside.sum() < group.size and group.bundles > 1:
                    pieces.setdefault(index, {})[inside.tobytes()] = inside
        return {index: list(found.values()) for index, found in pieces.items()}

    def _roles(self, dropped: Choice) -> dict[str, Choice]:
        """The cut by role: groups of one kind that touch the same tensors of a model's repeated blocks."""
        roles: dict[str, dict[int, Sequence[int] | IntArray]] = {}
        for group in self.coupling.groups:
            if len(dropped.get(group.index, ())):
                parts = {(_place(member.parameter), member.dim) for member in group.members}
                roles.setdefault(f"{group.kind} {sorted(parts)}", {})[group.index] = dropped[group.index]
        return dict(roles)

    def _settle(self, dropped: Choice, choose: Callable[[Coupling], Choice]) -> bool:
        """Makes one role's cut go as predicted; False where that changed the groups."""
        mismatch = self._search(dropped)
        if mismatch is None:
            return True
        if (
            mismatch is not _CHANGED
            and not self._cut_inside(dropped)
            and not self._tie_sizes(dropped, mismatch, choose)
        ):
            self._freeze_culprits(dropped, mismatch)
        return False

    # -------------------------------------------------------------------------------------------------- attributes

    def _search(self, dropped: Choice, eager: bool = False) -> Mismatch | None:
        """Looks for attributes that make a cut go as predicted, and remembers them; else what goes wrong.

        ``eager`` tries only the likeliest attributes of each module.
        """
        found: dict[_RuleKey, AttributeRule] = {}
        mismatch = self.try_cut(dropped)
        for _ in range(_MOST_STEPS):
            step = self._step(dropped, mismatch, found, eager) if mismatch is not None else None
            if step is None:
                break
            found, mismatch = step
        if mismatch is not None:
            return mismatch
        if eager:
            self._courtesy.update(self._forget_guesses(found, dropped))
            return None
        return self._learn(found, dropped)

    def _step(
        self, dropped: Choice, mismatch: Mismatch, found: dict[_RuleKey, AttributeRule], eager: bool
    ) -> tuple[dict[_RuleKey, AttributeRule], Mismatch | None] | None:
        """More attributes that follow, with which the cut gets further than it did; None where there are none."""
        sizes, alive = self._changed_sizes(dropped), alive_classes(self.coupling, dropped)
        for path in _ancestors(mismatch.module):
            module = self._paths.get(path)
            # Of torch's own layers it is known what they keep (`group_attributes`); the fault is in who calls them.
            if module is None or type(module).__module__.startswith(_OWN_LAYERS):
                continue
            # What repeats from block to block mostly follows alike; where its sizes coincide in one block, it may not.
            alike = [other for other in self._paths if _place(other) == _place(path) and other in sizes]
            for modules in [alike, [path]] if alike != [path] else [alike]:
                best: tuple[dict[_RuleKey, AttributeRule], Mismatch] | None = None
                for hypothesis in [(), *self._hypotheses(modules, sizes)[: 1 if eager else None]]:
                    if self._tries > _MOST_TRIES:
                        return None
                    trial = self._instantiate(modules, hypothesis, sizes)
                    other = self._give_way(modules, found, trial, alive)
                    variants = [{**found, **trial}] if trial else []
                    for rules in [*variants, {**found, **trial, **other}] if other else variants:
                        result = self.try_cut(dropped, tuple(self._all_rules(rules).values()))
                        if result is None:
                            return rules, None
                        if result.progress > (best[1] if best else mismatch).progress:
                            best = rules, result
                if best is not None:
                    return best
        return None

    def _give_way(
        self,
        modules: Sequence[str],
        found: Mapping[_RuleKey, AttributeRule],
        trial: Mapping[_RuleKey, AttributeRule],
        alive: np.ndarray,
    ) -> dict[_RuleKey, AttributeRule]:
        """Rules that may have been guesses: the attributes follow a size of that number which is not cut now."""
        class_of = self.coupling.class_of
        stays: dict[_RuleKey, AttributeRule] = {}
        for key, rule in {**self._courtesy, **self._needed, **found}.items():
            if key in trial or rule.module not in modules or alive[class_of[rule.labels]].all():
                continue
            for size, labels in self._sizes_by_module().get(rule.module, []):
                if size == rule.old and alive[class_of[labels]].all():
                    stays.setdefault(key, replace(rule, labels=labels))
        return stays

    def _forget_guesses(
        self, found: Mapping[_RuleKey, AttributeRule], dropped: Choice
    ) -> dict[_RuleKey, AttributeRule]:
        """The rules that a cut has shown; what was known of attributes that stay in it, and did not, was a guess."""
        alive, class_of = alive_classes(self.coupling, dropped), self.coupling.class_of
        shown = {key: rule for key, rule in found.items() if not alive[class_of[rule.labels]].all()}
        for known in (self._courtesy, self._needed):
            for key in found.keys() - shown.keys():
                known.pop(key, None)
        return shown

    def _learn(self, found: dict[_RuleKey, AttributeRule], dropped: Choice) -> Mismatch | None:
        """Keeps rules for good: those the cut cannot do without, and the others where nothing else claims them.

        Where two cuts each need the same attribute to follow, their sizes must stay equal.
        """
        found = self._forget_guesses(found, dropped)
        needed = dict(found)
        for attribute, index in dict.fromkeys((key[1], key[2]) for key in found):
            fewer = {key: rule for key, rule in needed.items() if key[1:] != (attribute, index)}
            if len(needed) > len(fewer) and self.try_cut(dropped, tuple(self._all_rules(fewer).values())) is None:
                needed = fewer
        alive = alive_classes(self.coupling, dropped)
        clashes = []
        for key, rule in needed.items():
            known = self._needed.get(key)
            if (
                known is not None
                and alive[self.coupling.class_of[known.labels]].all()
                and self._is_needed(known, {**found, key: rule})
            ):
                clashes.append([known.labels, rule.labels])
        if clashes:
            self.coupling.ties.extend(clashes)
            solve_coupling(self.coupling)
            return _CHANGED
        for key, rule in found.items():
            if key not in needed:
                self._courtesy.setdefault(key, rule)
        self._needed.update(needed)
        return None

    def _is_needed(self, known: AttributeRule, trial: Mapping[_RuleKey, AttributeRule]) -> bool:
        """Whether a cut of what a known rule counts fails with another in its place: it was no guess among sizes."""
        coupling = self.coupling
        counted = coupling.class_of[known.labels]
        elsewhere = coupling.class_of[trial[known.module, known.attribute, known.index].labels]
        cut = {}
        for group in coupling.groups:
            inside = np.isin(group.classes, counted) & ~np.isin(group.classes, elsewhere)
            if inside.any() and group.bundles > 1:
                cut[group.index] = _take_units(group, inside)
        return not cut or self.try_cut(cut, tuple(self._all_rules(trial).values())) is not None

    def _confirm_courtesy(self, dropped: Choice) -> None:
        """Drops attributes that follow though the cut goes without, unless they say a size and change no value.

        A number of buckets that happens to equal a width must not follow it: nothing but the values would show.
        """
        more = {key: rule for key, rule in self._name_sizes(dropped).items() if key not in self._all_rules({})}
        if more and self.try_cut(dropped, tuple(self._all_rules(more).values())) is None:
            self._courtesy.update(more)
        names = dict.fromkeys((key[1], key[2]) for key in self._courtesy if key not in self._confirmed)
        spare = [name for name in names if self.try_cut(dropped, self._rules_without([name])) is None]
        doubtful = [name for name in spare if not _SIZE_NAME.search(name[0])]
        self._forget(doubtful)
        spare = [name for name in spare if name not in doubtful]
        if spare:
            least = self._run(dropped, self._rules_without(spare))
            if least is None or not _same(least, self._run(dropped, self.rules)):
                one_by_one = [(name, [other for other in spare if other != name]) for name in spare]
                self._forget(
                    [
                        name
                        for name, others in one_by_one
                        if least is None or not _same(least, self._run(dropped, self._rules_without(others)))
                    ]
                )
        self._confirmed.update(self._courtesy)

    def _name_sizes(self, dropped: Choice) -> dict[_RuleKey, AttributeRule]:
        """Attributes that by their name and value say one of the sizes that a cut changes, whether used or not."""
        alive = alive_classes(self.coupling, dropped)
        rules = {}
        for path, sizes in self._changed_sizes(dropped).items():
            module = self._paths[path]
            if type(module).__module__.startswith(_OWN_LAYERS):
                continue
            for (attribute, index), found in _candidates(module, sizes).items():
                left = {int(alive[self.coupling.class_of[labels]].sum()) for _, labels in found}
                if len(left) == 1 and _SIZE_NAME.search(attribute):
                    rules[path, attribute, index] = AttributeRule(path, attribute, index, *found[0])
        return rules

    def _rules_without(self, names: Sequence[tuple[str, int | None]]) -> tuple[AttributeRule, ...]:
        courtesy = {key: rule for key, rule in self._courtesy.items() if key[1:] not in names}
        return tuple({**self._own_rules(), **courtesy, **self._needed}.values())

    def _forget(self, names: Sequence[tuple[str, int | None]]) -> None:
        self._courtesy = {key: rule for key, rule in self._courtesy.items() if key[1:] not in names}

    def _run(self, dropped: Choice, rules: Sequence[AttributeRule]) -> list[Tensor] | None:
        """What a stand-in returns after a cut; None where it cannot be run."""
        plan = make_plan(self.coupling, dropped, rules)

        def prepare(stand_in: nn.Module) -> None:
            prepare_layers(stand_in)
            stand_in.train(False)
            slice_model(stand_in, plan)

        try:
            with shadow_model(self.model, "real", track_buffers=False, prepare=prepare), torch.no_grad():
                seed_random_state(0)
                output = call_model(self.model, map_tensors(Tensor.clone, self.example_inputs), self.forward_fn)
                return [tensor for tensor in output_tensors(output) if tensor.device.type != "meta"] or None
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            return None

    def _own_rules(self) -> dict[_RuleKey, AttributeRule]:
        """What torch's own layers keep besides their weights."""
        rules = {}
        sizes = self._sizes_by_module()
        for path, module in self._paths.items():
            names = group_attributes(module) if path in sizes else ()
            options = _candidates(module, sizes[path]) if names else {}
            for (name, index), found in options.items():
                if name in names:
                    size, labels = found[0]
                    rules[path, name, index] = AttributeRule(path, name, index, size, labels)
        return rules

    def _sizes_by_module(self) -> dict[str, list[tuple[int, IntArray]]]:
        """The removable sizes a module's own operations meet, in order: [(size, labels along the axis)].

        First those of their results and the numbers they are called with, then those of what flows in.
        """
        class_of = self.coupling.class_of
        if self._sizes is not None and self._sizes[0] is class_of:
            return self._sizes[1]
        sizes: dict[str, dict[bytes, tuple[int, IntArray]]] = {}
        removable = np.zeros(int(class_of.max(initial=0)) + 1, bool)
        for group in self.coupling.groups:
            removable[group.classes] = True

        def note(module: str, entries: Iterable[tuple[int, IntArray]]) -> None:
            known = sizes.setdefault(module, {})
            for size, labels in entries:
                classes = class_of[labels]
                if removable[classes].any():
                    known.setdefault(classes.tobytes(), (size, labels))

        later: list[tuple[str, Labelled]] = []
        for labelled in self.coupling.traces:
            values = labelled.values
            for op in labelled.trace.operations:
                if op.state is not None or op.module not in self._paths:
                    continue
                counts = labelled.counts.get(op.index, [])
                note(op.module, [(count.value, count.labels) for count in counts if count.labels is not None])
                note(op.module, itertools.chain.from_iterable(map(_row_sizes, values[op.index])))
                later += [(op.module, values[v.operation][v.output]) for v in op.inputs if v is not None]
            for path, call in labelled.trace.calls.items():
                if call.source is not None:
                    later.append((path, values[call.source.operation][call.source.output]))
        for module, value in later:
            note(module, _row_sizes(value))
        found = {module: list(entry.values()) for module, entry in sizes.items() if entry}
        self._sizes = (class_of, found)
        return found

    def _changed_sizes(self, dropped: Choice) -> dict[str, list[tuple[int, IntArray]]]:
        """Those of them that a cut changes."""
        alive = alive_classes(self.coupling, dropped)
        changed = {}
        for path, entries in self._sizes_by_module().items():
            own = [(size, labels) for size, labels in entries if not alive[self.coupling.class_of[labels]].all()]
            if own:
                changed[path] = own
        return changed

    def _hypotheses(self, modules: Sequence[str], sizes: Mapping[str, list[tuple[int, IntArray]]]) -> list[_Hypothesis]:
        """Sets of attributes that may follow in some modules, alike in all of them, the likeliest first.

        An entry is (attribute, index in a tuple or None, which of the sizes with that value it follows).
        """
        options: dict[tuple[str, int | None], int] = {}
        for path in modules:
            for key, found in _candidates(self._paths[path], sizes.get(path, [])).items():
                options[key] = max(options.get(key, 0), len(found))
        keys = sorted(options, key=lambda key: (_plausibility(key[0]), key[0], key[1] or 0))
        every = [tuple((*key, 0) for key in keys)] if keys else []
        singles = [((*key, option),) for key in keys for option in range(options[key])]
        combined = itertools.chain(itertools.combinations(singles, 2), itertools.combinations(singles, 3))
        more = (tuple(entry for single in combination for entry in single) for combination in combined)
        return list(itertools.islice(dict.fromkeys(itertools.chain(every, singles, more)), _MOST_HYPOTHESES))

    def _instantiate(
        self, modules: Sequence[str], hypothesis: _Hypothesis, sizes: Mapping[str, list[tuple[int, IntArray]]]
    ) -> dict[_RuleKey, AttributeRule]:
        """A hypothesis as rules for every one of some modules."""
        rules = {}
        for path in modules:
            options = _candidates(self._paths[path], sizes.get(path, []))
            for attribute, index, option in hypothesis:
                found = options.get((attribute, index))
                if found:
                    size, labels = found[min(option, len(found) - 1)]
                    rules[path, attribute, index] = AttributeRule(path, attribute, index, size, labels)
        return rules

    # ------------------------------------------------------------------------------------------- what cannot follow

    def _cut_inside(self, dropped: Choice) -> bool:
        """Removes parts of every row instead of whole rows (head dimensions, not heads) in the groups of a cut."""
        coupling = self.coupling
        touched = np.zeros(int(coupling.class_of.max()) + 1, bool)
        for index in dropped:
            touched[coupling.groups[index].classes] = True
        changed = False
        for number, relation in enumerate(coupling.context.labels.relations):
            structure = coupling.structure_of.get(number)
            if structure is None or coupling.modes.get(structure) == "inner":
                continue
            if touched[coupling.class_of[relation.flat]].any():
                coupling.modes[structure] = "inner"
                changed = True
        if changed:
            solve_coupling(coupling)
        return changed

    def _tie_sizes(self, dropped: Choice, mismatch: Mismatch, choose: Callable[[Coupling], Choice]) -> bool:
        """Sizes that code takes for one (the width of a block and that of the attention inside it) shrink alike."""
        coupling = self.coupling
        alive = alive_classes(coupling, dropped)
        before = list(coupling.ties)
        for path in _ancestors(mismatch.module):
            ties = []
            for other, entries in self._sizes_by_module().items():
                if _place(other) == _place(path):
                    ties += self._list_ties(entries, alive)
            if not ties:
                continue
            coupling.ties = [*before, *ties]
            solve_coupling(coupling)
            touched = np.unique(coupling.class_of[np.concatenate([labels for tie in ties for labels in tie])])
            choice = choose(coupling)
            merged = {g.index: choice.get(g.index, ()) for g in coupling.groups if np.isin(g.classes, touched).any()}
            merged = {index: units for index, units in merged.items() if len(units)}
            fits = bool(merged) and self._search(merged) is None
            tied = coupling.ties
            coupling.ties = list(before)
            solve_coupling(coupling)
            if not fits:
                continue
            # The tie asks for another cut, which may have shown what follows: with that, sizes need not be tied.
            if self._search(dropped) is not None:
                coupling.ties = tied
                solve_coupling(coupling)
            return True
        return False

    def _list_ties(self, entries: Sequence[tuple[int, IntArray]], alive: np.ndarray) -> list[list[IntArray]]:
        """Of one module: each size that a cut changes, with the sizes of the same number that it does not."""
        ties = []
        intact = [alive[self.coupling.class_of[labels]].all() for _, labels in entries]
        for (_, labels), whole in zip(entries, intact, strict=True):
            alike = [
                other
                for (_, other), kept in zip(entries, intact, strict=True)
                if kept and len(other) == len(labels) and not self._are_tied([labels, other])
            ]
            if not whole and alike:
                ties.append([labels, *alike])
        return ties

    def _are_tied(self, arrays: Sequence[IntArray]) -> bool:
        wanted = {labels.tobytes() for labels in arrays}
        return any(wanted <= {labels.tobytes() for labels in tie} for tie in self.coupling.ties)

    def _freeze_culprits(self, dropped: Choice, mismatch: Mismatch) -> None:
        """Freezes those groups of a cut that fail alone; all of them where only their combination does."""
        guilty = {index: self.try_cut({index: units}) for index, units in dropped.items()} if len(dropped) > 1 else {}
        alone = {index: found.message for index, found in guilty.items() if found is not None}
        self._freeze_groups(alone or dict.fromkeys(dropped, mismatch.message))

    def _freeze_together(self, dropped: Choice) -> None:
        """Every role goes alone but not all together: those that do not go with the ones before them are frozen."""
        together: dict[int, Sequence[int] | IntArray] = {}
        messages: dict[int, str] = {}
        for members in self._roles(dropped).values():
            mismatch = self.try_cut({**together, **members})
            if mismatch is None:
                together.update(members)
            else:
                messages.update(dict.fromkeys(members, mismatch.message))
        self._freeze_groups(messages)

    def _freeze_groups(self, messages: Mapping[int, str]) -> None:
        for index, message in messages.items():
            self.coupling.freeze_group(
                self.coupling.groups[index], f"the forward does not follow a cut of it: {message}"
            )
        if not messages:
            raise PlanError("no cut of this model could be followed")
        solve_coupling(self.coupling)


_CHANGED = Mismatch("", "the groups have changed", 0)


def _then_slice(change: Callable[[nn.Module], object] | None, plan: Plan) -> Callable[[nn.Module], object]:
    def both(stand_in: nn.Module) -> None:
        if change is not None:
            change(stand_in)
        slice_model(stand_in, plan)

    return both


def _row_sizes(value: Labelled) -> Iterator[tuple[int, IntArray]]:
    """The sizes of a tensor's labelled dimensions, with the labels of their first row; nothing follows a size of 1."""
    for axis, labels in value.fields.items():
        if labels.shape[axis] > 1:
            yield labels.shape[axis], np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])[0]


def _place(path: str) -> str:
    """A path without its numbers: the same for what repeats from block to block."""
    return re.sub(r"\d+", "#", path)


def _ancestors(path: str) -> Iterator[str]:
    yield path
    while path:
        path = path.rpartition(".")[0]
        yield path


def _same(first: Sequence[Tensor], second: Sequence[Tensor] | None) -> bool:
    if second is None or len(first) != len(second):
        return False
    pairs = zip(first, second, strict=True)
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in pairs)


# What says a size of channels or heads, and nothing else: no number of buckets, no size of a window.
_SIZE_NAME = re.compile(
    r"(^|_)(heads?|dims?|width|channels?|features?|planes|hidden|embed|inner)(_|$)|(hidden|head|embed|all_head|split)_size"
)
_LIKELY = ("head", "group", "dim", "size", "channel", "feature", "width", "embed", "planes", "hidden", "num_", "n_")


def _plausibility(attribute: str) -> int:
    return 0 if any(part in attribute.lower() for part in _LIKELY) else 1


def _candidates(
    module: nn.Module, sizes: Sequence[tuple[int, IntArray]]
) -> dict[tuple[str, int | None], list[tuple[int, IntArray]]]:
    """Attributes of a module that hold one of the sizes: {(attribute, index): [(size, labels), …]}."""
    found: dict[tuple[str, int | None], list[tuple[int, IntArray]]] = {}
    for attribute, value in vars(module).items():
        if attribute.startswith("_") and attribute.startswith(("_parameters", "_buffers", "_modules")):
            continue
        entries: list[tuple[int | None, Any]] = [(None, value)]
        if type(value) in (tuple, list) and 0 < len(value) <= 8:
            entries = list(enumerate(value))
        for index, item in entries:
            if type(item) is int and item > 0:
                matches = [(size, labels) for size, labels in sizes if size == item]
                if matches:
                    found[attribute, index] = matches
    return found


def probe_choice(coupling: Coupling) -> dict[int, IntArray]:
    """A small cut in every group, of a different size in neighbouring groups, to see whether the forward follows."""
    groups = [group for group in coupling.groups if group.bundles > 1]
    return {group.index: _take_units(group, np.ones(group.size, bool)) for group in groups}


def _take_units(group: Group, inside: np.ndarray) -> IntArray:
    """A few units of a group from among some of them, as far as the same share of each block allows."""
    bundles = group.bundles
    steps = [(block, len(block) // bundles) for block in group.blocks]
    room = min((int(inside[block].sum() - 1) // step for block, step in steps if inside[block].any()), default=0)
    amount = max(1, min(1 + group.index % 3, bundles - 2, room))  # a size of 1 shows less
    picks = []
    for block, step in steps:
        first, others = block[inside[block]], block[~inside[block]]
        count = min(len(first), amount * step)
        start = (len(first) // 3) % (len(first) - count + 1)
        picks += [first[start : start + count], others[: amount * step - count]]
    return np.sort(np.concatenate(picks))
