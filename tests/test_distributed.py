"""Two processes under torchrun do what one does: the same statistics, the same steps, the same decisions."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import distributed_jobs
import pytest
import torch
from distributed_jobs import make_data, run_jobs
from torch.utils.data import DataLoader, DistributedSampler

from cleanai.calibration import ActivationStatistics
from cleanai.data import DataMissingError
from cleanai.distributed import (
    _portable,
    gather,
    is_main,
    merge_over_processes,
    run_on_main,
    share_batches,
    share_rows,
    start_processes,
    take_rows,
    world,
)
from cleanai.errors import InputError
from cleanai.training import Recipe, train_classifier

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results]:
    """What each of two processes gave."""
    output = tmp_path_factory.mktemp("pair") / "results"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-W", "error", "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*torchrun, str(Path(distributed_jobs.__file__)), str(output)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "" and done.stderr == ""
    first, second = (torch.load(f"{output}.{rank}", weights_only=True) for rank in (0, 1))
    return first, second


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What one process gives."""
    before = torch.get_num_threads()
    try:
        return run_jobs(tmp_path_factory.mktemp("single"))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("job", ["plain", "lists"])
def test_two_processes_take_the_steps_of_one(pair: tuple[Results, Results], single: Results, job: str) -> None:
    first, second = pair
    for name, expected in single[job]["weights"].items():
        assert torch.equal(first[job]["weights"][name], second[job]["weights"][name])
        torch.testing.assert_close(first[job]["weights"][name], expected, rtol=0, atol=1e-9)
    assert first[job]["history"] == second[job]["history"]
    for record, expected in zip(first[job]["history"], single[job]["history"], strict=True):
        assert record == pytest.approx(expected, rel=1e-9)


def test_two_processes_learn_and_end_with_the_same_statistics(pair: tuple[Results, Results]) -> None:
    first, second = (results["norms"] for results in pair)
    assert first["history"] == second["history"]
    assert first["history"][-1]["train_loss"] < 0.8 * first["history"][0]["train_loss"]
    for name, value in first["weights"].items():  # the buffers of BatchNorm among them
        assert torch.equal(value, second["weights"][name]), name


def test_two_processes_collect_the_statistics_of_one(pair: tuple[Results, Results], single: Results) -> None:
    expected = single["statistics"]
    for results in pair:
        found = results["statistics"]
        assert found["counts"] == expected["counts"] == [5, 40, 5, 40]
        for kind in ("sides", "squares"):
            assert found[kind].keys() == expected[kind].keys()
            torch.testing.assert_close(found[kind], expected[kind], rtol=0, atol=1e-10)


def test_two_processes_resume_exactly(pair: tuple[Results, Results], single: Results) -> None:
    for results in (*pair, single):
        assert results["resume"] == {"calls": [1, 2, 2, 3], "same": True}


def test_a_parameter_without_gradient_is_refused_where_it_matters(
    pair: tuple[Results, Results], single: Results
) -> None:
    assert single["unused"]["message"] == ""
    for results in pair:
        assert "the loss does not depend on unused" in results["unused"]["message"]


def test_processes_know_each_other(pair: tuple[Results, Results], single: Results) -> None:
    for rank, results in enumerate(pair):
        assert results["answers"] == {"world": (rank, 2), "all": [0, 1], "main": 0, "message": "refused by 0"}
    assert single["answers"] == {"world": (0, 1), "all": [0], "main": 0, "message": "refused by 0"}


def test_alone_everything_is_the_identity() -> None:
    statistics = ActivationStatistics({})
    with start_processes():
        assert world() == (0, 1) and is_main()
        assert gather(3) == [3] and run_on_main(lambda: 4) == 4
        assert merge_over_processes(statistics) is statistics


def test_processes_that_are_not_connected_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert world() == (1, 2) and not is_main()
    with pytest.raises(InputError, match="start_processes"):
        merge_over_processes(ActivationStatistics({}))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_a_partition(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of loaders without indices, whose shares can be drawn without a connection."""
    batches = [(torch.arange(5 * i, 5 * i + 5), torch.zeros(5)) for i in range(4)] + [(torch.arange(2), torch.zeros(2))]
    monkeypatch.setenv("WORLD_SIZE", str(size))
    whole: list[int] = []
    rows: list[int] = []
    for rank in range(size):
        monkeypatch.setenv("RANK", str(rank))
        share = share_batches(batches)
        assert len(share) == len(list(share))
        whole += [number for x, _ in share for number in x.tolist()]
        rows += [number for (x, _), _ in share_rows(batches) for number in x.tolist()]
    everything = sorted(number for x, _ in batches for number in x.tolist())
    assert sorted(whole) == everything
    kept = [x for x, _ in batches if len(x) >= size]  # smaller ones are left out of training
    assert sorted(rows) == sorted(number for x in kept for number in x.tolist())


def test_rows_are_taken_of_what_has_rows() -> None:
    batch = {"x": torch.arange(6).reshape(3, 2), "scale": torch.ones(2), "labels": torch.tensor([7, 8, 9])}
    taken = take_rows(batch, rows=3, first=1, step=2)
    assert taken["x"].tolist() == [[2, 3]] and taken["labels"].tolist() == [8] and taken["scale"].tolist() == [1, 1]


def test_a_loader_that_is_divided_already_is_refused() -> None:
    data = make_data()
    loader = DataLoader(data, batch_size=4, sampler=DistributedSampler(data, num_replicas=2, rank=0))
    with pytest.raises(InputError, match="DistributedSampler"):
        train_classifier(torch.nn.Linear(6, 3).double(), loader, Recipe(epochs=1))
    with pytest.raises(InputError, match="DistributedSampler"):
        share_batches(loader)


def test_errors_travel() -> None:
    error = InputError("too small")
    assert _portable(error) is error
    stubborn = DataMissingError("photos", [Path("here")], "get them")
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(stubborn))
    assert str(stubborn) in str(_portable(stubborn))
