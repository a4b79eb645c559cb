"""Plain JSON of records and back, and files that are written whole or not at all.

>>> read_json(to_json({"loss": math.nan}))
{'loss': nan}
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_json(value: Any) -> Any:
    """Plain JSON values of a nest of dataclasses, dictionaries, sequences and numbers."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if dataclasses.is_dataclass(value):
        return {name: to_json(getattr(value, name)) for name in field_names(type(value))}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    # NumPy and torch scalars know their Python number; anything else is named rather than refused.
    return to_json(value.item()) if hasattr(value, "item") else str(value)


def read_json(value: Any) -> Any:
    """JSON values with the numbers that JSON lacks restored."""
    if isinstance(value, dict):
        return {key: read_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [read_json(item) for item in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def format_json(value: Any) -> str:
    """The text of a JSON file: indented, with lists of numbers on one line each."""
    text = json.dumps(to_json(value), ensure_ascii=False, allow_nan=False, indent=1)
    # A raw line break cannot occur inside a JSON string, so names are safe.
    return re.sub(r"\[\n[-+0-9.eE,\s]+\]", lambda numbers: re.sub(r"\s+", " ", numbers[0]), text) + "\n"


def field_names(kind: Any) -> list[str]:
    """The names of a dataclass's fields."""
    return [part.name for part in dataclasses.fields(kind)]


def read_record(kind: type[_T], data: dict[str, Any], /, **convert: Callable[[Any], Any]) -> _T:
    """A dataclass from its dictionary, some fields converted; raises `ValueError` on fields it does not know."""
    unknown = set(data) - set(field_names(kind))
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}.")
    return kind(**{name: convert[name](value) if name in convert else value for name, value in data.items()})


def optional(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same conversion, which leaves None alone."""
    return lambda value: None if value is None else convert(value)


def many(convert: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    """The conversion of each item of a list."""
    return lambda values: tuple(convert(value) for value in values)


def read_number(value: Any) -> float:
    """A number as `to_json` wrote it."""
    return _NOT_FINITE[value] if isinstance(value, str) else float(value)


def write_text(target: Path, text: str) -> None:
    """Writes a text file as `write_bytes` does."""
    write_bytes(target, text.encode("utf-8"))


def write_bytes(target: Path, content: bytes) -> None:
    """Writes beside the file, then renames over it: readers see the old file or the new one, never a part.

    Missing folders are made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
