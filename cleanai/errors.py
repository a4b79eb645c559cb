"""The errors CleanAI raises: each says what is wrong, where, and what to do."""

from __future__ import annotations


class CleanAIError(Exception):
    """Base of every error CleanAI raises on purpose."""


class InputError(CleanAIError, ValueError):
    """An argument, a model or data that cannot be used; nothing has been changed."""


class TraceError(CleanAIError, RuntimeError):
    """The model's forward could not be followed through autograd."""


class PlanError(CleanAIError, ValueError):
    """A plan that does not fit the model; raised before anything is touched."""


class VerificationError(CleanAIError, RuntimeError):
    """The pruned model does not equal the masked original; the caller's model is untouched."""
