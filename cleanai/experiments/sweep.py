"""Sweeps: the same experiment with every combination of methods, ratios and seeds, in one table.

A cell of the sweep is an experiment of its own with its own folder; cells of one seed share the prepared model. What
is finished is not done again, so an interrupted sweep goes on when it is started again.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from cleanai.errors import InputError
from cleanai.experiments.config import ExperimentConfig
from cleanai.experiments.phrases import TURKISH
from cleanai.experiments.results import ExperimentResults
from cleanai.experiments.runner import list_rows, run_experiment, write_csv
from cleanai.experiments.scenarios import find_method
from cleanai.narrator import Narrator
from cleanai.select import check_ratio
from cleanai.serialize import write_text

if TYPE_CHECKING:
    import pandas as pd

TABLE, SUMMARY = "sweep.csv", "summary.csv"
_RESULT = "result.json"


@dataclass(frozen=True)
class Cell:
    """One combination: an experiment with a single method."""

    method: str
    ratio: float
    seed: int

    @property
    def folder(self) -> Path:
        """Its folder below the sweep's."""
        return Path(f"seed{self.seed}") / f"{self.method}_{self.ratio:g}"


def run_sweep(
    config: ExperimentConfig,
    *,
    methods: Sequence[str] | None = None,
    ratios: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
    output: str | Path = "sweeps",
    scheduler: str | None = None,
    overwrite: bool = False,
    silent: bool = False,
) -> pd.DataFrame:
    """Every combination of methods, ratios and seeds; gives the table with one row for each stage of each cell.

    Writes ``sweep.csv`` (all rows, after each cell), ``summary.csv`` (mean and standard deviation over seeds) and
    ``accuracy_cost.png`` and ``.svg`` into the output folder.

    Args:
        config: all other settings; its methods, ratio and seed where the next three are None.
        methods: criteria to compare.
        ratios: shares to remove, 0 to 1.
        seeds: each is an experiment of its own, with its own split and order.
        output: the folder; with a scheduler, one that all machines see under this path.
        scheduler: the address of a Dask scheduler (``tcp://host:8786``) whose workers run the cells; None: here, one
            after the other. Needs the extra ``cleanai[sweep]``.
        overwrite: do every cell anew.
        silent: say nothing.

    Raises:
        InputError: nothing to vary, a value that cannot be used, or a folder with the results of other settings.

    Example:
        >>> from cleanai.experiments import make_config
        >>> table = run_sweep(make_config("TS1", "smoke"), ratios=[0.2, 0.4], seeds=[0, 1])  # doctest: +SKIP
        >>> run_sweep(make_config("TS1", "smoke"), ratios=[0.2, 0.2])
        Traceback (most recent call last):
            ...
        cleanai.errors.InputError: ratios is [0.2, 0.2]; give one or several, each once
    """
    cells = list_cells(config, methods, ratios, seeds)
    folder = Path(output).absolute()
    narrator = Narrator(config.language, TURKISH, silent=silent)
    with _open_pool(scheduler) as run_all:
        for seed in run_all(functools.partial(_prepare_seed, config, folder, overwrite), _unique(cells, "seed")):
            narrator.say("Prepared: seed {seed}", seed=seed)
        bar = tqdm(total=len(cells), desc="sweep", unit="cell", disable=True if silent else None)
        with bar:
            for cell in run_all(functools.partial(_run_cell, config, folder, overwrite), cells):
                narrator.say("Done: {cell}", cell=cell.folder)
                bar.update()
                _write_table(folder, cells)
    rows = _write_table(folder, cells)
    write_text(folder / SUMMARY, write_csv(summarise(rows)))
    _draw(rows, folder, config.language)
    narrator.say("  {path}", path=folder / TABLE)
    import pandas

    return pandas.DataFrame(rows)


def list_cells(
    config: ExperimentConfig,
    methods: Sequence[str] | None = None,
    ratios: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Cell]:
    """The combinations, seed by seed; checked before anything runs.

    Example:
        >>> list_cells(ExperimentConfig(), ["wanda"], [0.1, 0.2])
        [Cell(method='wanda', ratio=0.1, seed=0), Cell(method='wanda', ratio=0.2, seed=0)]
    """
    methods = _check_distinct("methods", config.methods if methods is None else methods)
    ratios = _check_distinct("ratios", (config.pruning_ratio,) if ratios is None else ratios)
    seeds = _check_distinct("seeds", (config.seed,) if seeds is None else seeds)
    for method in methods:
        find_method(method)
    for ratio in ratios:
        check_ratio(ratio, "ratios")
    for seed in seeds:
        config.replace(seed=seed)
    return [Cell(method, float(ratio), seed) for seed, ratio, method in itertools.product(seeds, ratios, methods)]


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of each method, ratio and stage.

    The deviation is that of a sample (divided by n - 1); None with a single seed.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["pruning_ratio"], row["stage"]), []).append(row)
    return [
        {
            "method": method,
            "pruning_ratio": ratio,
            "stage": stage,
            "seeds": len(found),
            **{
                f"{name}_{word}": value
                for name in ("accuracy", "parameters", "macs")
                for word, value in zip(("mean", "sd"), _mean_and_deviation([row[name] for row in found]), strict=True)
            },
        }
        for (method, ratio, stage), found in groups.items()
    ]


# --------------------------------------------------------------------------------------------------------- one by one


def _prepare_seed(config: ExperimentConfig, folder: Path, overwrite: bool, seed: int) -> int:
    place = folder / f"seed{seed}"
    run_experiment(config.replace(seed=seed), stage="prepare", output=place, overwrite=overwrite, silent=True)
    return seed


def _run_cell(config: ExperimentConfig, folder: Path, overwrite: bool, cell: Cell) -> Cell:
    place = folder / cell.folder
    own = config.replace(seed=cell.seed, pruning_ratio=cell.ratio, methods=(cell.method,))
    if overwrite or not _is_done(place / _RESULT, own):
        results = run_experiment(
            own, output=place, prepared=folder / f"seed{cell.seed}", overwrite=overwrite, silent=True, documents=False
        )
        assert results is not None
        results.save(place / _RESULT)
    return cell


def _is_done(path: Path, config: ExperimentConfig) -> bool:
    return path.is_file() and ExperimentResults.load(path).config.settings_until("report") == config.settings_until(
        "report"
    )


def _open_pool(scheduler: str | None) -> _Here | _Cluster:
    return _Here() if scheduler is None else _Cluster(scheduler)


class _Here:
    """Runs one after the other, in this process."""

    def __enter__(self) -> Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]:
        return map

    def __exit__(self, *_: object) -> None:
        pass


class _Cluster:
    """Runs on the workers of a Dask scheduler, wherever they are."""

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise InputError('A sweep on several machines needs Dask: pip install "cleanai[sweep]".') from error
        try:
            self._client = Client(address, timeout="10s")
        except (OSError, ValueError) as error:
            raise InputError(
                f"There is no Dask scheduler at {address} ({error}). Start one with `dask scheduler`, and on every "
                f"machine `dask worker {address} --nthreads 1`."
            ) from error

    def __enter__(self) -> Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]:
        from distributed import as_completed

        def run_all(task: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
            # pure=False: what was done before is told by the files, not by the scheduler's memory of calls.
            futures = self._client.map(task, items, pure=False)
            yield from (future.result() for future in as_completed(futures))

        return run_all

    def __exit__(self, *_: object) -> None:
        self._client.close()


# ---------------------------------------------------------------------------------------------------------- the table


def _write_table(folder: Path, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """All rows known so far, in the order of the cells, whichever was done first."""
    paths = [folder / cell.folder / _RESULT for cell in cells]
    rows = [row for path in paths if path.is_file() for row in list_rows(ExperimentResults.load(path))]
    write_text(folder / TABLE, write_csv(rows))
    return rows


def _draw(rows: Sequence[dict[str, Any]], folder: Path, language: str) -> None:
    from cleanai.experiments.sweep_plot import plot_sweep

    figure = plot_sweep(rows, language)
    for suffix in (".png", ".svg"):
        figure.savefig(folder / f"accuracy_cost{suffix}", dpi=200)


def _mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < len(values):
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def _unique(cells: Sequence[Cell], name: str) -> list[Any]:
    return list(dict.fromkeys(getattr(cell, name) for cell in cells))


def _check_distinct(name: str, values: Sequence[Any]) -> Sequence[Any]:
    if isinstance(values, str) or not values or len(set(values)) != len(values):
        raise InputError(f"{name} is {values!r}; give one or several, each once")
    return values
