"""What each operation connects: one small function per kind of operation.

A rule takes the operation and its labelled inputs and returns its labelled outputs, recording unions and freezes on the
way. Of an operation without a rule only what its gradients prove can be pruned (`probing`): a guess is never made.
"""

from __future__ import annotations

from cleanai.fields import Labelled
from cleanai.rules import (  # noqa: F401  (each registers its rules)
    arithmetic,
    contraction,
    indexing,
    layer,
    movement,
    normalisation,
    recurrent,
)
from cleanai.rules.context import RULES, Context, Inputs, Rule, handles, known
from cleanai.rules.layer import Channels, Links, Tensors, register_rule, unregister_rule
from cleanai.rules.probing import READ_FROM_VALUES, probe_channels
from cleanai.trace import Operation, Trace

__all__ = [
    "RULES",
    "Channels",
    "Context",
    "Inputs",
    "Links",
    "Rule",
    "Tensors",
    "handles",
    "register_rule",
    "unregister_rule",
]


def apply_rule(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """The labelled outputs of one operation; one without a rule is probed, and frozen where that proves nothing."""
    context.labels.operation = op.index
    inputs_only = any(value.is_input for value in known(inputs))
    context.partner = "the input of the model" if inputs_only else "something that cannot be pruned"
    if not known(inputs):
        return [Labelled(shape) for shape in op.shapes]
    return RULES.get(op.kind, probe_channels)(context, op, inputs)


def needs_values(trace: Trace) -> bool:
    """Whether some operation of a trace can only be understood in one that was run for real: see `probing`."""
    return any(
        op.kind not in RULES or op.kind in READ_FROM_VALUES
        for op in trace.operations
        if op.state is None and op.kind != "Input"
    )
