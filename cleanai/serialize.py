"""Plain JSON of records and back, and files that are written whole or not at all.

>>> read_json(to_json({"loss": math.nan}))
{'loss': nan}
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import re
import threading
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


def write_bytes(target: Path, content: bytes, *, durable: bool = False) -> None:
    """Writes beside the file, then renames over it: readers see the old file or the new one, never a part.

    That holds when the process is killed at any moment; what it leaves is removed by the next one that writes this
    file. Missing folders are made.

    Args:
        durable: the disk has the content before it gets the name, so that it holds when the machine loses power too.
            Costs what the disk takes to write it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    temporary = target.with_name(f"{_temporary_prefix(target)}{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_prefix(target: Path) -> str:
    """How the temporary files begin that this machine writes for a file; others may write to the same disk."""
    return f".{target.name}.{platform.node()}."


def _remove_leftovers(target: Path) -> None:
    """Removes what processes that are gone have left of a file they were writing."""
    prefix = _temporary_prefix(target)
    with contextlib.suppress(OSError):  # a folder that may be written to but not listed
        for path in target.parent.iterdir():
            if path.name.startswith(prefix) and path.name.endswith(".tmp"):
                process = path.name[len(prefix) :].partition(".")[0]
                if process.isdecimal() and not _is_running(int(process)):
                    path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name == "nt":  # there, signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True
