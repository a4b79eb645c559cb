"""The errors CleanAI raises: each says what is wrong, where, and what to do."""

from __future__ import annotations


class CleanAIError(Exception):
    """Base of every error that CleanAI raises on purpose: ``except CleanAIError`` catches them all.

    The message says what is wrong, where, and what to do about it. The models that were handed over are as before.

    Example:
        >>> from cleanai import Plan
        >>> try:
        ...     Plan.from_json("{}")
        ... except CleanAIError as error:
        ...     print(f"{type(error).__name__}: {error}")
        PlanError: this is not a plan of the format cleanai-plan-1
    """


class InputError(CleanAIError, ValueError):
    """An argument, a model or data that cannot be used; nothing has been changed.

    It is a `ValueError` too.

    Example:
        >>> import torch
        >>> from cleanai import StructuredPruner
        >>> StructuredPruner(torch.nn.Linear(3, 2), torch.zeros(1, 3), pruning_ratio=30)
        Traceback (most recent call last):
            ...
        cleanai.errors.InputError: pruning_ratio is 30; it must lie in [0, 1): 0.3 removes 30 %
    """


class TraceError(CleanAIError, RuntimeError):
    """The model's forward could not be followed through autograd; nothing has been changed.

    Either it raised (the message says in which layer), or no output depends on the parameters. It is a `RuntimeError`
    too.

    Example:
        >>> import torch
        >>> from cleanai import trace_model
        >>> trace_model(torch.nn.Linear(3, 2), torch.zeros(1, 3), output_transform=torch.Tensor.detach)
        Traceback (most recent call last):
            ...
        cleanai.errors.TraceError: no output of the model depends on its parameters through autograd (1 output ...
    """


class PlanError(CleanAIError, ValueError):
    """A plan or a history that is damaged or does not fit the model; raised before anything is touched.

    It is a `ValueError` too.

    Example:
        >>> import torch
        >>> from cleanai import Plan, slice_model
        >>> from cleanai.plan import TensorCut
        >>> slice_model(torch.nn.Linear(3, 2), Plan(cuts=(TensorCut("bias", 0, 8, (1,)),)))  # a plan for 8 outputs
        Traceback (most recent call last):
            ...
        cleanai.errors.PlanError: the plan expects 8 indices in dimension 0 of bias, which has shape (2,)...
    """


class VerificationError(CleanAIError, RuntimeError):
    """The pruned (or exported) model does not equal the original with the dropped channels masked.

    Raised by `StructuredPruner.prune`, which names the group or block at fault and leaves the caller's model untouched,
    and by the exporters, which leave no file. It is a `RuntimeError` too.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner, register_rule, unregister_rule
        >>> class Flip(nn.Module):
        ...     def forward(self, x):
        ...         return x.flip(1)
        >>> def connect(links):  # wrong: the first input channel is the last output channel
        ...     links.tie(links.input().dim(1), links.output().dim(1))
        >>> register_rule(Flip, connect)
        >>> net = nn.Sequential(nn.Linear(3, 4), Flip(), nn.Linear(4, 2))
        >>> try:
        ...     StructuredPruner(net, torch.randn(1, 3), lambda group: list(range(group.size))).prune()
        ... except VerificationError as error:
        ...     print("refused:", str(error).partition("; ")[2])
        refused: the group at fault is 0. The model has not been changed.
        >>> unregister_rule(Flip)
    """
