"""Criteria by name."""

from __future__ import annotations

from collections.abc import Callable

from cleanai.checks import suggest_names
from cleanai.errors import InputError
from cleanai.importance.group import Importance

CRITERIA: dict[str, Callable[[], Importance]] = {}
"""What makes the criterion of each name."""


def add_criteria(criteria: dict[str, Callable[[], Importance]]) -> None:
    """Gives criteria their names; modules later in the pipeline add theirs where they are defined.

    Raises:
        ValueError: a name is taken.
    """
    for name, make in criteria.items():
        if CRITERIA.setdefault(name, make) is not make:
            raise ValueError(f"a criterion named {name!r} is there already")


def find_importance(importance: Importance | str) -> Importance:
    """The scorer itself, or the one of a name ("magnitude", "wanda", …)."""
    if isinstance(importance, str):
        if importance not in CRITERIA:
            hint = suggest_names(importance, CRITERIA)
            raise InputError(f"no importance is named {importance!r}; the names are {', '.join(CRITERIA)}{hint}")
        return CRITERIA[importance]()
    if isinstance(importance, type):
        raise InputError(f"importance is the class {importance.__name__}; give an instance: {importance.__name__}()")
    if not callable(importance):
        raise InputError(
            f"importance is {importance!r}; give a name ({', '.join(CRITERIA)}) or a callable on a group that returns "
            "one score per unit"
        )
    return importance
