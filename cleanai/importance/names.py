"""Criteria by name."""

from __future__ import annotations

from collections.abc import Callable

from cleanai.checks import suggest_names
from cleanai.errors import InputError
from cleanai.importance.group import Importance

CRITERIA: dict[str, Callable[[], Importance]] = {}
"""What makes the criterion of each name: {name: a function without arguments that returns the scorer}."""


def add_criteria(criteria: dict[str, Callable[[], Importance]]) -> None:
    """Gives criteria their names; modules later in the pipeline add theirs where they are defined.

    Args:
        criteria: {name: a function without arguments that returns the scorer}.

    Raises:
        ValueError: a name is taken.

    Example:
        >>> add_criteria({"first": lambda: lambda group: list(range(group.size, 0, -1))})
        >>> import torch
        >>> from cleanai import StructuredPruner
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> StructuredPruner(net, torch.zeros(1, 3), "first").score_groups()["0"].tolist()
        [4.0, 3.0, 2.0, 1.0]
        >>> del CRITERIA["first"]
    """
    for name, make in criteria.items():
        if CRITERIA.setdefault(name, make) is not make:
            raise ValueError(f"a criterion named {name!r} is there already")


def find_importance(importance: Importance | str) -> Importance:
    """The scorer itself, or the one of a name ("magnitude", "wanda", …).

    Args:
        importance: a name that `CRITERIA` has, or a callable on a `ScoredGroup`.

    Raises:
        InputError: there is no such name (the known ones are listed), or it is no callable.

    Example:
        >>> find_importance("l1")
        MagnitudeImportance(p=1)
    """
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
