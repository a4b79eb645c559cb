"""Saying what is going on in a long run, in the language asked for, and how long each step took."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Generator, Mapping

from tqdm.auto import tqdm

from cleanai.texts import check_language


class Narrator:
    """Writes one line per step; a silent one writes nothing.

    Args:
        language: "en" or "tr".
        turkish: the Turkish of every phrase that is said; placeholders are the same in both.
        silent: for processes that are not the first, and for callers who want no text.

    Raises:
        InputError: there is no such language.

    Example:
        >>> Narrator("tr", {"Pruning {model}": "{model} budanıyor"}).say("Pruning {model}", model="ResNet-18")
        ResNet-18 budanıyor
    """

    def __init__(self, language: str, turkish: Mapping[str, str], *, silent: bool = False) -> None:
        self.language = check_language(language)
        self.silent = silent
        self._turkish = turkish
        self._start = time.perf_counter()

    def say(self, phrase: str, **values: object) -> None:
        """Writes a phrase with its placeholders filled."""
        if not self.silent:
            _write(self.translate(phrase, **values))

    def elapsed(self) -> str:
        """Seconds since the narrator was made."""
        return f"{time.perf_counter() - self._start:.1f}"

    @contextlib.contextmanager
    def step(self, phrase: str, **values: object) -> Generator[str]:
        """Announces a step and, when it has ended, says how long it took; gives the title for a progress bar."""
        title = self.translate(phrase, **values)
        if not self.silent:
            _write(f"• {title} …")
        start = time.perf_counter()
        yield title
        self.say("  done in {seconds} s", seconds=f"{time.perf_counter() - start:.1f}")

    def translate(self, phrase: str, **values: object) -> str:
        """The phrase in the narrator's language."""
        phrases = {"  done in {seconds} s": "  {seconds} sn sürdü", **self._turkish}
        return (phrase if self.language == "en" else phrases[phrase]).format(**values)


def _write(line: str) -> None:
    tqdm.write(line, file=sys.stdout)  # above a progress bar, where there is one
    sys.stdout.flush()
