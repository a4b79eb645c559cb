"""What each operation connects: one small function per kind of operation.

A rule takes the operation and its labelled inputs and returns its labelled outputs, recording unions and freezes on the
way. Operations without a rule freeze what they touch (see `apply_rule`): a guess is never made.
"""

from __future__ import annotations

from cleanai.fields import Labelled
from cleanai.rules import arithmetic, contraction, indexing, movement, normalisation  # each registers its rules
from cleanai.rules.context import RULES, Context, Count, Inputs, Rule, Site, freeze_all, handles, known
from cleanai.trace import Operation

__all__ = [
    "RULES",
    "Context",
    "Count",
    "Inputs",
    "Rule",
    "Site",
    "apply_rule",
    "arithmetic",
    "contraction",
    "handles",
    "indexing",
    "movement",
    "normalisation",
]


def apply_rule(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """The labelled outputs of one operation; one without a rule freezes what it touches, and is named."""
    context.labels.operation = op.index
    inputs_only = any(value.is_input for value in known(inputs))
    context.partner = "the input of the model" if inputs_only else "something that cannot be pruned"
    rule = RULES.get(op.kind)
    if rule is None:
        return freeze_all(context, op, inputs, f"no rule for the operation {op.where}")
    if not known(inputs):
        return [Labelled(shape) for shape in op.shapes]
    return rule(context, op, inputs)
