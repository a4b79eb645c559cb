"""What the stages of one experiment share: settings, data, device, file names, and which stages are done."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cleanai.distributed import choose_local_device, is_main, run_on_main
from cleanai.errors import InputError
from cleanai.evaluate import ModelMetrics, measure_model
from cleanai.experiments.checkpoints import Names, save_checkpoint
from cleanai.experiments.config import ExperimentConfig, Stage
from cleanai.experiments.results import STAGE_FORMAT, from_plain, to_plain
from cleanai.experiments.splits import Splits, load_splits
from cleanai.experiments.subjects import name_model
from cleanai.narrator import Narrator
from cleanai.plan import Plan
from cleanai.serialize import format_json, write_text

_T = TypeVar("_T")


@dataclass(frozen=True)
class Workspace:
    """One experiment's settings and output folder, and what follows from them.

    ``prepared`` is the output folder of another experiment that shares the preparation; None: its own.
    """

    config: ExperimentConfig
    output: Path
    narrator: Narrator
    prepared: Path | None = None
    overwrite: bool = False

    @functools.cached_property
    def splits(self) -> Splits:
        """The data, read when first needed."""
        with self.narrator.step("Loading {data}", data=self.config.data):
            return load_splits(self.config)

    @functools.cached_property
    def names(self) -> Names:
        """How the files are called."""
        return Names(self.config.scenario, name_model(self.config.model), self.splits.title)

    @functools.cached_property
    def device(self) -> torch.device:
        """Where this process computes."""
        return find_device(self.config.device)

    @property
    def workers(self) -> int:
        """The processes that load images: no more than there are cores."""
        return min(self.config.workers, os.cpu_count() or 1)

    @property
    def trains(self) -> bool:
        """Whether there is anything to train on."""
        return self.splits.train is not None

    @property
    def preparation_folder(self) -> Path:
        """The output folder that holds the preparation."""
        return self.output if self.prepared is None else self.prepared

    # --------------------------------------------------------------------------------------------------- finished work

    def find_done(self, path: Path, stage: Stage, kind: type[_T]) -> _T | None:
        """The result of a stage that has been finished with these settings; None where it has not been.

        Raises:
            InputError: it was finished with other settings, which are named.
        """
        found = run_on_main(functools.partial(self._read_done, path, stage))
        return None if found is None else from_plain(kind, found)

    def _read_done(self, path: Path, stage: Stage) -> dict[str, Any] | None:
        if self.overwrite or not path.is_file():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}): run again with --overwrite, or delete it.") from error
        if not isinstance(data, dict) or data.get("format") != STAGE_FORMAT:
            raise InputError(f"{path} was not written by an experiment: choose another output folder.")
        check_same_settings(path, data["settings"], self.config.settings_until(stage))
        return data["result"]

    def save_done(self, path: Path, stage: Stage, result: Any) -> None:
        """Notes that a stage is finished, and with which settings."""
        if is_main():
            settings = self.config.settings_until(stage)
            data = {"format": STAGE_FORMAT, "stage": stage, "settings": settings, "result": to_plain(result)}
            write_text(path, format_json(data))

    # ------------------------------------------------------------------------------------------- models and measuring

    def save_model(
        self, model: nn.Module, path: Path, *, plan: Plan | None = None, facts: Mapping[str, Any] | None = None
    ) -> Path:
        """Writes a checkpoint from the first process; gives its path below the output folder."""
        if is_main():
            save_checkpoint(
                model,
                self.output / path,
                name=self.config.model,
                data=self.config.data,
                classes=self.splits.classes,
                plan=plan,
                facts=facts,
            )
        return path

    def measure(self, model: nn.Module, title: str) -> ModelMetrics:
        """Accuracy and loss on the test images, parameters, size and MACs; measured by the first process for all."""

        def measure_here() -> ModelMetrics:
            return measure_model(
                model,
                self.example(1),
                loader=self.splits.loader("test", self.config.batch_size, workers=self.workers),
                max_batches=self.config.max_batches,
                progress=title,
            )

        return run_on_main(measure_here)

    def example(self, batch_size: int) -> Tensor:
        """A batch of the example image, on the device."""
        example = self.splits.example
        return example.expand(batch_size, *example.shape[1:]).contiguous().to(self.device)


def check_same_settings(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises `InputError` where finished work was done with other settings."""
    changed = [
        f"{name} was {old.get(name)}, is {new.get(name)}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise InputError(
            f"{path} holds the results of other settings ({'; '.join(changed)}). Choose another output folder, or "
            "replace them with --overwrite."
        )


def find_device(name: str) -> torch.device:
    """The device of a name; "auto" takes this process's GPU where there is one.

    Raises:
        InputError: there is no such device here.
    """
    try:
        device = choose_local_device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device is {name!r}, which cannot be used here ({reason}); use cpu or auto.") from error
    return device
