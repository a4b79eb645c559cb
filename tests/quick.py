"""What makes tests of the whole pruner quick."""

from __future__ import annotations

from typing import Any

import pytest

from cleanai.evaluate import measure_model


def measure_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pruner measures its latencies in next to no time; half a second each is what it takes otherwise."""

    def measure(*args: Any, **options: Any) -> Any:
        options["min_run_time"] = 1e-4
        return measure_model(*args, **options)

    monkeypatch.setattr("cleanai.pruner.measure_model", measure)
