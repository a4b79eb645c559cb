"""The documents for people as tests see them: their blocks, run as they stand."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "guide"
BLOCK = re.compile(r"(?:^<!-- not run: (?P<needs>[^\n]+) -->\n+)?^```(?P<language>\w+)\n(?P<content>.*?)^```$", re.DOTALL | re.MULTILINE)  # fmt: skip  # noqa: E501
COMMAND_SECONDS = 280


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its lines, and what it needs that a test has not ("" where nothing)."""

    language: str
    content: str
    needs: str = ""


def list_blocks(path: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    found = BLOCK.finditer(path.read_text(encoding="utf-8"))
    return [Block(match["language"], match["content"], match["needs"] or "") for match in found]


def run_python(path: Path, read_output: Any) -> Iterator[tuple[str, str]]:
    """Runs a document's Python blocks in one namespace; what each printed, and the text block that follows, or "".

    ``read_output`` gives what was printed since it was last called.
    """
    namespace: dict[str, Any] = {"__name__": "document"}
    blocks = list_blocks(path)
    for position, block in enumerate(blocks):
        if block.language == "python":
            exec(compile(block.content, f"{path.name}, block {position + 1}", "exec"), namespace)
            following = blocks[position + 1 : position + 2]
            yield read_output(), following[0].content if following and following[0].language == "text" else ""


def assert_said(printed: str, said: str) -> None:
    """Every line of the document was printed, in this order; "…" alone stands for lines left out.

    How wide a table's columns are depends on the latencies in it, so spaces and rules count as one.
    """
    lines = iter(_narrow(line) for line in printed.splitlines())
    for line in map(_narrow, said.splitlines()):
        found = line in ("", "…") or line in lines  # goes on where the last search ended
        assert found, f"not printed, or not here: {line!r}"


def list_commands(block: Block) -> list[list[str]]:
    """The commands of a shell block as words, without comments and without variables set in front."""
    lines = block.content.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [_without_variables(words) for words in found if words]


def check_command(words: list[str], needs: str, folder: Path) -> None:
    """Runs a command in a folder, or where it needs what a test has not, checks that there is such a command.

    ``make`` is asked what it would do: the tests themselves are run by it.
    """
    if words[0] == "make":
        assert _run(["make", "--dry-run", *words[1:]], ROOT).returncode == 0, words
    elif "cleanai" in words and needs:
        parse_arguments(words[words.index("cleanai") + 1 :])
    elif words[0] == "cleanai":
        done = _run([sys.executable, "-m", *words], folder)
        assert done.returncode == 0, done.stderr
    elif words[0] == "python":
        _check_script(words[1:])
    else:
        assert needs, f"{words}: say what it needs: <!-- not run: needs … -->"


def parse_arguments(words: list[str]) -> None:
    """Reads the arguments of ``cleanai`` as the command line would, settings included, and runs nothing."""
    from cleanai.cli import build_parser, read_settings
    from cleanai.experiments import make_config

    options = build_parser().parse_args(words)
    if options.command in ("run", "sweep"):
        make_config(options.scenario, options.profile, **read_settings(options))


def load_script(path: Path) -> Any:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check_script(words: list[str]) -> None:
    """A script of the repository exists and knows the options that it is given."""
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
        return
    path = ROOT / (words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0])
    source = path.read_text(encoding="utf-8")
    assert all(option in source for option in words if option.startswith("--")), words


def _without_variables(words: list[str]) -> list[str]:
    first = next(position for position, word in enumerate(words) if not re.match(r"[A-Z_]+=", word))
    return words[first:]


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )


def _narrow(line: str) -> str:
    return re.sub(r"-{3,}", "---", " ".join(line.split()))
