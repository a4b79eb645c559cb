"""The table of the performance page is made of the kept results of the zoo, and says what they say."""

from __future__ import annotations

import json

import pytest

from benchmarks import performance_page
from benchmarks.performance_page import MARKED, PAGES, RESULTS, SHOWN, STEPS, find_upper, list_rows, make_table


@pytest.mark.parametrize("language", PAGES)
def test_the_pages_show_the_kept_results(language: str) -> None:
    found = MARKED.search(PAGES[language].read_text(encoding="utf-8"))
    assert found is not None and found[0] == make_table(language), "run python -m benchmarks.performance_page"


def test_every_line_has_every_step() -> None:
    head, _, *lines = make_table("en").splitlines()
    assert all(line.count("|") == head.count("|") == len(STEPS) + 4 for line in lines)
    assert [line.split("`")[1] for line in lines[: len(SHOWN)]] == list(SHOWN)
    assert len(lines) == len(SHOWN) + 2 * len(performance_page.SUITES)


def test_networks_that_were_not_finished_do_not_count() -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    assert 0 < len(list_rows(rows)) < len(rows)
    assert all(row["status"] == "verified" for row in list_rows(rows))


def test_nine_of_ten_lie_below() -> None:
    assert find_upper([5.0]) == 5.0
    assert find_upper(range(100)) == 89
