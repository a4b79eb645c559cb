"""`benchmarks.peers`: its oracle finds planted mistakes, and its pages say what was measured. No peer is needed."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import peers, peers_page
from benchmarks.peers_nets import NETWORKS, build_case, make_distinct
from benchmarks.peers_oracle import UnlikeError, find_kept, judge, make_plan, measure_difference
from benchmarks.peers_worker import (
    RefusedError,
    TimeUp,
    cut_network,
    find_ratio,
    limit_seconds,
    list_tensors,
    renew_statistics,
)
from benchmarks.suites import randomise
from cleanai.verify import random_inputs

DOCS = Path(peers.__file__).parent.parent / "docs"


class Tiny(nn.Module):
    """Two convolutions and a norm between them."""

    def __init__(self, width: int = 8, groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.head = nn.Conv2d(width, 6, 3, padding=1, groups=groups), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x))))))


def make_tiny(groups: int = 1) -> Any:
    model = randomise(Tiny(groups=groups))
    make_distinct(model)
    return model


INPUTS = torch.randn(2, 3, 6, 6)


def cut_tiny(model: Any, rows: list[int], norm: list[int] | None = None, columns: list[int] | None = None) -> Any:
    """The network with these channels between its convolutions; other ones in the norm or the second one if asked."""
    small = copy.deepcopy(model)
    small.conv1.weight = nn.Parameter(model.conv1.weight.detach()[rows])
    small.conv1.bias = nn.Parameter(model.conv1.bias.detach()[rows])
    for name in ("weight", "bias"):
        setattr(small.norm, name, nn.Parameter(getattr(model.norm, name).detach()[norm or rows]))
    for name in ("running_mean", "running_var"):
        setattr(small.norm, name, getattr(model.norm, name)[norm or rows])
    small.conv2.weight = nn.Parameter(model.conv2.weight.detach()[:, columns or rows])
    small.conv1.out_channels = small.norm.num_features = small.conv2.in_channels = len(rows)
    return small


def verdict_on(model: Any, small: Any) -> Any:
    outputs = [copy.deepcopy(small).double()(random_inputs(INPUTS, 0, torch.float64)).detach()]
    return judge(model, INPUTS, list_tensors(small), outputs)


# ---------------------------------------------------------------------------------------------------------- the oracle


def test_a_right_cut_is_accepted_in_any_order() -> None:
    model = make_tiny()
    verdict = verdict_on(model, cut_tiny(model, [0, 3, 4, 7]))
    assert verdict.status == "equal" and verdict.error < 1e-12
    verdict = verdict_on(model, cut_tiny(model, [4, 0, 7, 3]))
    assert verdict.status == "equal" and "order" in verdict.note
    assert verdict_on(model, copy.deepcopy(model)).status == "left alone"


@pytest.mark.parametrize(
    "mistake", [{"columns": [0, 3, 5, 7]}, {"columns": [0, 4, 3, 7]}, {"norm": [0, 3, 4, 6]}, {"norm": [3, 0, 4, 7]}]
)
def test_a_planted_wrong_cut_is_found(mistake: dict[str, list[int]]) -> None:
    """Another slice or another order in the next layer, or in the norm; the network runs all the same."""
    model = make_tiny()
    assert verdict_on(model, cut_tiny(model, [0, 3, 4, 7], **mistake)).status == "wrong"


def test_values_that_are_not_the_originals_are_found() -> None:
    model = make_tiny()
    small = cut_tiny(model, [0, 3, 4, 7])
    with torch.no_grad():
        small.conv1.weight[0, 0, 0, 0] += 0.5
    verdict = verdict_on(model, small)
    assert verdict.status == "wrong" and verdict.note.startswith("conv1.weight")
    missing = {name: tensor for name, tensor in list_tensors(model).items() if name != "conv1.bias"}
    with pytest.raises(UnlikeError, match=r"conv1\.bias is missing"):
        make_plan(list_tensors(model), missing)


@pytest.mark.parametrize(("right", "status"), [(True, "equal"), (False, "wrong")])
def test_groups_of_a_convolution_may_keep_other_columns(right: bool, status: str) -> None:
    model = make_tiny(groups=2)
    small = cut_tiny(model, [0, 3, 4, 5], columns=[0, 1])
    weight = model.conv2.weight.detach()
    second = [0, 1] if right else [0, 2]
    small.conv2.weight = nn.Parameter(torch.cat([weight[:3][:, [0, 3]], weight[3:][:, second]]))
    assert verdict_on(model, small).status == status


def test_find_kept_on_many_values() -> None:
    """More than NumPy's buffer holds, in a shape that ends in ones: its own unravel_index is wrong there."""
    weight = torch.randn(300, 200, 1, 1)
    rows, columns = list(range(0, 300, 2)), list(range(10, 190))
    assert find_kept(weight, weight[rows][:, columns])[:2] == (tuple(rows), tuple(columns))
    with pytest.raises(UnlikeError):
        find_kept(weight, torch.randn(10, 10, 1, 1))


def test_differences() -> None:
    one = [torch.ones(2)]
    assert measure_difference(one, [torch.tensor([1.0, 2.0])]) == 0.5
    assert measure_difference(one, [torch.tensor([1.0, torch.nan])]) == float("inf")
    assert measure_difference([torch.tensor([1.0, torch.nan])], one) == float("inf")
    assert measure_difference([], one) == float("inf")


# ---------------------------------------------------------------------------------------------------------- the worker


def test_the_worker_and_the_judge_agree_on_cleanai() -> None:
    result, tensors = cut_network("cleanai", NETWORKS["grouped"], 0.5, 60)
    row = peers.describe_cut("grouped", result, tensors)
    assert row["status"] == "equal" and row["parameters_kept"] < 0.8


@pytest.mark.parametrize(
    ("error", "status"), [(RefusedError("no"), "refused"), (ValueError("oh"), "crash"), (TimeUp(), "time-out")]
)
def test_every_fate_of_a_cut_is_told(error: BaseException, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> nn.Module:
        raise error

    monkeypatch.setitem(peers_worker_prune(), "cleanai", fail)
    result, tensors = cut_network("cleanai", NETWORKS["flip"], 0.5, 60)
    assert result["status"] == status and not tensors
    assert peers.describe_cut("flip", result, tensors)["status"] == status


def peers_worker_prune() -> dict[str, Any]:
    from benchmarks import peers_worker

    return peers_worker.PRUNE


def test_the_limit_counts_processor_time() -> None:
    def work() -> None:
        with limit_seconds(0.05):
            while True:
                pass

    with pytest.raises(TimeUp):
        work()


def test_a_ratio_is_found_by_halving() -> None:
    def cut(ratio: float) -> Any:
        return nn.Linear(max(1, round(1000 * (1 - ratio))), 1)

    found: Any = find_ratio(cut, lambda layer: sum(p.numel() for p in layer.parameters()) / 1001, 0.37)
    assert found.in_features == pytest.approx(370, abs=2)


def test_statistics_are_taken_anew() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5))
    renew_statistics(model, [torch.tensor([[0.0, 2.0], [2.0, 4.0]]), torch.tensor([[2.0, 4.0], [4.0, 6.0]])])
    norm: Any = model[0]
    assert norm.running_mean.tolist() == [2.0, 4.0] and not model.training


def test_networks_have_distinct_values_and_named_outputs() -> None:
    for name, network in NETWORKS.items():
        if network.is_hard:
            model = build_case(name).model
            modules = dict(model.named_modules())
            assert set(network.outputs) | set(network.heads) <= set(modules)
            assert all(p.unique().numel() == p.numel() for p in model.parameters() if p.dim() == 1)


def test_a_network_counts_by_its_worst_ratio() -> None:
    for worse, better in zip(peers.OUTCOMES, peers.OUTCOMES[1:], strict=False):
        assert peers.merge_outcomes({"0.3": {"status": better}, "0.6": {"status": worse}}) == worse


# ----------------------------------------------------------------------------------------------------------- the pages


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return json.loads(peers.RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", ["en", "tr"])
def test_the_pages_say_what_was_measured(results: dict[str, Any], language: str) -> None:
    assert peers_page.PAGES[language].read_text(encoding="utf-8") == peers_page.make_page(results, language)


def test_the_results_say_how_they_came_about(results: dict[str, Any]) -> None:
    assert set(results["versions_of_tools"]) == set(peers.TOOLS)
    assert {"command", "machine", "measured", "versions"} <= set(results)
    assert "/" not in results["command"].replace("docs/results/peers.json", "")
    for tool in peers_page.MEASURED:
        for hard in (True, False):
            expected = [name for name, network in NETWORKS.items() if network.is_hard == hard]
            assert list(peers_page.list_outcomes(results, tool, hard=hard)) == expected


def test_cleanai_is_never_wrong(results: dict[str, Any]) -> None:
    outcomes = {row["status"] for rows in results["correctness"]["cleanai"].values() for row in rows.values()}
    assert outcomes <= {"equal", "left alone", "refused"}


@pytest.mark.parametrize("language", ["en", "tr"])
def test_the_table_for_the_readme(results: dict[str, Any], language: str) -> None:
    table = peers_page.readme_table(language, results)
    rows = [line.split("|")[1:-1] for line in table.splitlines()]
    assert len({len(row) for row in rows}) == 1 and len(rows[0]) == 1 + len(peers_page.MEASURED)
    assert table in peers_page.make_page(results, language)


def test_both_languages_have_the_same_rows_and_links(results: dict[str, Any]) -> None:
    english, turkish = (peers_page.make_page(results, language) for language in ("en", "tr"))
    assert english.count("\n|") == turkish.count("\n|") and english.count("\n#") == turkish.count("\n#")
    links = [set(re.findall(r"\((https[^)]+)\)", page)) for page in (english, turkish)]
    assert links[0] == links[1]
