"""The report says what the data says: in a terminal, in Markdown, in HTML, in JSON, in both languages."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from report_factory import HOSTILE, make_group, make_report
from torch import nn

from cleanai import StructuredPruner, rendering, texts
from cleanai.errors import InputError
from cleanai.evaluate import ModelMetrics
from cleanai.report import FrozenRecord, GroupRecord, ProofRecord, Report


class _Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


# ---------------------------------------------------------------- data and JSON


def test_json_round_trip_is_equal(tmp_path: Path) -> None:
    report = make_report(language="tr")
    assert Report.load(report.save(tmp_path / "report.json")) == report
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_json_is_standard_and_keeps_numbers_it_lacks(tmp_path: Path) -> None:
    group = make_group(units=3, removed=(0,), scores=(-math.inf, math.nan, 2.0))
    proof = ProofRecord(False, math.inf, 1e-9, "float64", 1, 0.1)
    history = [{"epoch": 1, "loss": math.nan}]
    path = make_report(groups=(group,), proof=proof, history=history).save(tmp_path / "report.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    loaded = Report.load(path)
    scores = loaded.groups[0].scores
    assert scores is not None and scores[0] == -math.inf and math.isnan(scores[1]) and scores[2] == 2.0
    assert loaded.proof.max_relative_error == math.inf
    assert loaded.history is not None and math.isnan(loaded.history[0]["loss"])


def test_names_survive_json_as_they_are(tmp_path: Path) -> None:
    report = make_report(model_name="[\n1,\n 2]", groups=(make_group(HOSTILE),))
    assert Report.load(report.save(tmp_path / "report.json")) == report


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "not JSON"),
        ("[]", "not a CleanAI report"),
        ('{"format": "cleanai-report", "format_version": 99}', "version 99"),
        ('{"format": "cleanai-report", "format_version": 1, "model_name": "x"}', "damaged"),
        ('{"format": "cleanai-report", "format_version": 1, "__class__": "x"}', "damaged.*__class__"),
    ],
)
def test_load_refuses_other_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        Report.load(path)


def test_load_names_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"reads \.json files"):
        Report.load(tmp_path / "report.pkl")
    with pytest.raises(InputError, match="no report at"):
        Report.load(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("removed", "scores"),
    [((1, 1), None), ((0,), None), ((0, 9), None), ((0, -1), None), ((0, 1), (1.0, 2.0))],
)
def test_groups_that_contradict_themselves_are_refused(removed: tuple[int, ...], scores: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="'g'"):
        GroupRecord("g", "channels", (), 4, 2, removed=removed, scores=scores)


def test_group_knows_its_cut() -> None:
    group = make_group(units=4, removed=(1,), scores=(3.0, 0.5, 0.7, 2.0))
    assert group.cut == (0.5, 0.7)
    assert group.removed_share == 0.25
    assert make_group(units=4, removed=()).cut is None
    assert make_group(scores=None).cut is None


def test_unknown_language_lists_the_choices() -> None:
    with pytest.raises(InputError, match="'en', 'tr'"):
        make_report(language="de")


# ---------------------------------------------------------------- numbers


def _rows(table: rendering.Table) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in table.rows}


def test_every_number_of_the_metrics_table_is_the_measured_one() -> None:
    report = make_report()
    table = rendering.metrics_table(report)
    assert table.columns == ("quantity", "original", "pruned", "change", "fine-tuned", "change")
    assert _rows(table) == {
        "Parameters": ("20,000", "5,000", "-75.0 %", "5,000", "-75.0 %"),
        "Size": ("0.08010 MB", "0.02010 MB", "-74.9 %", "0.02010 MB", "-74.9 %"),
        "MACs": ("400.0 k", "100.0 k", "-75.0 %", "100.0 k", "-75.0 %"),
        "FLOPs": ("800.0 k", "200.0 k", "-75.0 %", "200.0 k", "-75.0 %"),
        "Latency": ("2.00 ± 0.10 ms", "0.500 ± 0.050 ms*", "—", "—", "—"),
        "Accuracy": ("91.70 %", "80.20 %", "-11.50 points", "91.20 %", "-0.50 points"),
        "Loss": ("0.2500", "0.7500", "+0.500", "0.3000", "+0.050"),
    }
    notes = " ".join(table.notes)
    assert "batch size 4, CPU threads 1; original: 500 runs, pruned: 900 runs" in notes
    assert "disturbed" in notes
    assert "1,000 samples (original, pruned, fine-tuned)" in notes


def test_quantities_nobody_measured_have_no_row() -> None:
    report = make_report(metrics={"original": ModelMetrics(10, 0.1, 5), "pruned": ModelMetrics(5, 0.05, 2)})
    assert list(_rows(rendering.metrics_table(report))) == ["Parameters", "Size", "MACs", "FLOPs"]


def _report_with_latency(**changes: Any) -> Report:
    """A report of two stages, the second one's latency measured in peace unless changed."""
    metrics = make_report().metrics
    latency = metrics["pruned"].latency
    assert latency is not None
    calm = dataclasses.replace(latency, **{"disturbed": False, **changes})
    pruned = dataclasses.replace(metrics["pruned"], latency=calm)
    budget = dataclasses.replace(make_report().budget, latency=0.75)
    return make_report(metrics={"original": metrics["original"], "pruned": pruned}, budget=budget)


def test_latencies_are_compared_only_where_that_means_something() -> None:
    def change_of(report: Report) -> tuple[str, str]:
        """The change of the latency in the first table, and its reached share in the second."""
        return _rows(rendering.metrics_table(report))["Latency"][2], _rows(rendering.budget_table(report))["Latency"][1]

    assert change_of(_report_with_latency()) == ("-75.0 %", "75.0 %")
    assert change_of(_report_with_latency(disturbed=True)) == ("—", "—")
    different = _report_with_latency(batch_size=8)
    assert change_of(different) == ("—", "—")
    assert any("different conditions" in note for note in rendering.metrics_table(different).notes)


def test_asked_against_reached_for_every_measure() -> None:
    table = rendering.budget_table(make_report())
    assert _rows(table) == {
        "Channels": ("—", "45.8 %", "—"),
        "Parameters": ("—", "75.0 %", "—"),
        "MACs": ("70.0 %", "75.0 %", "+5.0 points"),
        "Latency": ("—", "—", "—"),
    }
    assert table.notes == ("steps are coarse",)


def test_groups_table_says_which_units_went() -> None:
    kept = make_group("idle", 4, (), note="why")
    table = rendering.groups_table(
        make_report(groups=(make_group(), kept, make_group("w", 64, tuple(range(0, 64, 2)))))
    )
    assert table.rows == (
        ("1", "conv1", "channels", "8", "5", "37.5 %", "40.0 %", "1–2, 5"),
        ("3", "w", "channels", "64", "32", "50.0 %", "40.0 %", "0, 2, 4, 6, … (32 in all)"),
    )
    assert "2 of 3 groups were pruned." in table.notes
    assert "Unpruned groups: 1 (why)." in table.notes


def test_frozen_layers_are_merged_by_reason() -> None:
    assert rendering.frozen_table(make_report()).rows == (
        ("the output of the model", "fc", "10"),
        ("my reason", "a, b, c", "7"),
    )


def test_long_lists_in_a_terminal_are_cut_and_counted() -> None:
    groups = tuple(make_group(f"g{index}") for index in range(60))
    frozen = tuple(FrozenRecord((f"f{index}",), 1, f"reason {index}") for index in range(30))
    text = str(make_report(groups=groups, frozen=frozen))
    assert "20 more pruned groups" in text and "18 more reasons" in text
    assert "g39" in text and "g40" not in text


@pytest.mark.parametrize(
    ("passed", "word"),
    [(True, "proven"), (False, "failed"), (None, "not verified")],
)
def test_proof_verdict_is_said_everywhere(passed: bool | None, word: str) -> None:
    proof = ProofRecord(passed, None if passed is None else 0.42, 1e-9, "float64", 2, 0.1, note="group conv1")
    report = make_report(proof=proof)
    for text in (str(report), rendering.render_markdown(report), report._repr_html_()):
        assert word in text and "group conv1" in text
        assert ("4.2e-01" in text) == (passed is not None)


def test_number_formats() -> None:
    assert [texts.scaled(value) for value in (0, 999, 5120, 11_173_962, 4_089_184_256, 999_999)] == [
        "0", "999", "5,120", "11.17 M", "4.089 G", "1.000 M",
    ]  # fmt: skip
    assert texts.signed_percent(-0.5) == "-50.0 %"
    assert texts.signed_percent(-0.5, "tr") == "-%50,0"
    assert texts.signed_percent(0.0) == "0.0 %"
    assert texts.signed_percent(-0.0002) == "-0.02 %"
    assert texts.percent(-0.0) == "0.0 %"
    assert texts.short_number(None) == texts.percent(None) == "—"


def test_indices_as_runs_hold_every_index() -> None:
    indices = (9, 0, 1, 2, 5, 7, 8)
    assert rendering.short_indices(indices, "en", runs=None) == "0–2, 5, 7–9"
    assert rendering.short_indices((), "en") == "none"


# ---------------------------------------------------------------- the four forms


def test_terminal_text_has_the_parts() -> None:
    text = str(make_report())
    assert text == repr(make_report())
    for part in ("tiny", "20,000", "-75.0 %", "70.0 %", "1–2, 5", "my reason", "a, b, c", "3.1e-13", "calibration"):
        assert part in text


def test_markdown_has_every_removed_index_with_its_score() -> None:
    report = make_report()
    document = rendering.render_markdown(report)
    assert "1: 0.1, 2: 0.2, 5: 0.3" in document
    assert "| conv1 | conv1.weight | 0 | output | 8 | 5 |" in document
    columns = [line.count("|") for line in document.splitlines() if line.startswith("| Parameters")]
    assert columns == [7, 5]


def test_page_is_self_contained_and_complete(tmp_path: Path) -> None:
    source = make_report().save(tmp_path / "report.html").read_text(encoding="utf-8")
    page = _Page(source)
    assert page.tags.count("img") == 4
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert all(value.startswith("data:image/png;base64,") for name, value in page.attributes if name in ("src", "href"))
    for part in ("20,000", "−75.0 %", "8 → 5", "1: 0.1, 2: 0.2, 5: 0.3", "conv1.weight", "a, b, c", "3.1e-13"):
        assert part in page.text


def test_page_without_data_for_figures_has_none(tmp_path: Path) -> None:
    report = make_report(metrics={}, groups=(), history=None, frozen=(), warnings=[], settings={})
    page = _Page(report.save(tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "img" not in page.tags
    assert "No group was found that can be pruned." in page.text and "Nothing was frozen." in page.text


def test_notebook_view_is_the_same_every_time_and_has_no_figure() -> None:
    first, second = make_report()._repr_html_(), make_report()._repr_html_()
    assert first == second
    page = _Page(first)
    assert "img" not in page.tags and not any(name == "id" for name, _ in page.attributes)
    assert "20,000" in page.text and "details" in page.tags


def test_hostile_names_are_shown_not_run(tmp_path: Path) -> None:
    report = make_report(
        model_name=HOSTILE,
        groups=(make_group(HOSTILE, note=HOSTILE, kind=HOSTILE),),
        frozen=(FrozenRecord((HOSTILE,), 1, HOSTILE),),
        settings={HOSTILE: HOSTILE},
        warnings=[HOSTILE],
        versions={HOSTILE: HOSTILE},
        metrics={HOSTILE: make_report().metrics["original"], "pruned": make_report().metrics["pruned"]},
        proof=ProofRecord(True, 1e-12, 1e-9, HOSTILE, 1, 0.1, note=HOSTILE),
        history=[{"epoch": 1, HOSTILE + "loss": 1.0, "loss": 1.0}],
    )
    source = report.save(tmp_path / "report.html").read_text(encoding="utf-8")
    page = _Page(source)
    assert "script" not in page.tags and "<script" not in page.text.replace(rendering.printable(HOSTILE), "")
    assert html.escape("<script>alert(") in source
    document = report.save(tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script" not in document
    rows = [line for line in document.splitlines() if line.startswith("| 1 ")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [9]
    assert all("\x1b" not in form for form in (str(report), document, source, report._repr_html_()))


def test_large_report_stays_small_and_readable(tmp_path: Path) -> None:
    units = 2048
    removed = tuple(range(0, units, 2))
    groups = tuple(make_group(f"block.{index}.conv", units, removed) for index in range(200))
    report = make_report(groups=groups)
    path = report.save(tmp_path / "report.html")
    assert path.stat().st_size < 2_000_000
    text = path.read_text(encoding="utf-8")
    assert "block.199.conv" in text and "(1024 in all)" in text
    assert "the JSON report has them whole" in text
    assert len(report._repr_html_()) < 400_000


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("name", ["report.pdf", "report", "report.pkl"])
def test_unknown_suffix_lists_the_choices(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"\.html, \.md, \.json"):
        make_report().save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["report.html", "report.md", "report.json", "REPORT.HTML"])
def test_save_makes_the_folder_and_leaves_one_file(tmp_path: Path, name: str) -> None:
    path = make_report().save(tmp_path / "new" / name)
    assert path == tmp_path / "new" / name
    assert list(path.parent.iterdir()) == [path]


def test_failed_rendering_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_report().save(tmp_path / "report.md")
    old = path.read_text(encoding="utf-8")

    def fail(report: Report) -> str:
        raise RuntimeError("rendering broke")

    monkeypatch.setattr(rendering, "markdown", fail)
    with pytest.raises(RuntimeError, match="rendering broke"):
        make_report(model_name="other").save(path)
    assert path.read_text(encoding="utf-8") == old
    assert list(tmp_path.iterdir()) == [path]


def test_failed_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = make_report().save(tmp_path / "report.md")
    old = path.read_text(encoding="utf-8")
    with pytest.raises(UnicodeEncodeError):
        make_report(model_name="\ud800 cannot be written").save(path.with_suffix(".json"))
    assert path.read_text(encoding="utf-8") == old
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- Turkish

_ENGINE = ("coupling", "fields", "fitting", "analysis")  # with the rules, the files that say why something is frozen

# Words of the report that are the same in both languages.
_SHARED_WORDS = {"tiny", "model", "parametre", "json", "block", "weight"}  # "block" and "weight" are in names of groups


def _turkish_report() -> Report:
    """A report in Turkish whose own data holds no English word."""
    return make_report(
        language="tr",
        settings={"criterion": "x", "pruning_ratio": 0.5, "verify": True},
        frozen=(FrozenRecord(("fc",), 10, "add orders it"),),
        warnings=["Uyarı."],
        budget=dataclasses.replace(make_report().budget, note=""),
    )


def test_turkish_forms_have_no_english_words(tmp_path: Path) -> None:
    report = _turkish_report()
    path = report.save(tmp_path / "report.html")
    style = re.compile(r"<style>.*?</style>", re.DOTALL)
    forms = [
        str(report),
        _Page(rendering.render_markdown(report)).text,
        _Page(style.sub("", path.read_text(encoding="utf-8"))).text,
        _Page(style.sub("", report._repr_html_())).text,
    ]
    english = {
        word for phrase in texts._TURKISH for word in re.findall(r"[a-z]{4,}", re.sub(r"{\w+}", "", phrase).lower())
    }
    turkish = {word for phrase in texts._TURKISH.values() for word in re.findall(r"\w{4,}", phrase.lower())}
    for form in forms:
        words = set(re.findall(r"\w+", form.lower()))
        left = words & (english - turkish - _SHARED_WORDS)
        assert not left, left
        assert "İstenen ve ulaşılan" in form and "add işlemi onu sıralıyor" in form


def test_languages_have_the_same_placeholders() -> None:
    for english, turkish in {**texts._TURKISH, **texts._REASONS}.items():
        assert set(re.findall(r"{\w+}", english)) == set(re.findall(r"{\w+}", turkish)), english


@pytest.mark.parametrize(
    ("english", "turkish"),
    [
        (
            "Convolution in conv1 reads the input of the model",
            "conv1 içindeki Convolution işlemi modelin girdisini okuyor",
        ),
        ("the vocabulary of Embedding in words", "words içindeki Embedding işleminin sözlüğü"),
        (
            "the forward does not follow a cut of it: View in a: its result has the shape (1, 8), (1, 6) was expected",
            "ileri geçiş bu eksenin kesilmesine uymuyor: a içindeki View: sonucunun biçimi (1, 8), beklenen (1, 6)",
        ),
        (
            "the forward does not follow a cut of it: Slice: the forward took another path (Cat); "
            "it computes with other numbers",
            "ileri geçiş bu eksenin kesilmesine uymuyor: Slice: ileri geçiş başka bir yol izledi (Cat); "
            "başka sayılarla hesaplıyor",
        ),
        ("it reaches the ignored layer fc", "dokunulmayan fc katmanına ulaşıyor"),
    ],
)
def test_reasons_of_the_engine_are_translated_with_their_places(english: str, turkish: str) -> None:
    assert texts.term("tr", english) == turkish


def test_every_reason_in_the_engine_has_a_translation() -> None:
    """The reasons are sentences in the engine's source; each must match a pattern, whatever is filled in."""
    package = Path(texts.__file__).parent
    paths = [*(package / f"{name}.py" for name in _ENGINE), *(package / "rules").glob("*.py")]
    given = re.compile(r"""(?:freeze\w*|keep_whole)\(.*?,\s*(f?"[^"]+")|(?:return|=) (f"{op.where} [^"]+")""")
    code = [re.sub(r"^ *(>>>|\.\.\.) .*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE) for path in paths]
    found = [found for text in code for found in given.findall(text)]
    written = {direct or named for direct, named in found} - {'f"{self.where}: {reason}"'}  # a user's own words
    assert len(written) > 25
    for literal in written:
        reason = re.sub(r"{[\w.]*partner}", "the input of the model", literal.removeprefix("f").strip('"'))
        reason = re.sub(r"{[^}]*}", "Some in place", reason)
        assert texts.term("tr", reason) != reason, reason


def test_turkish_numbers_have_a_decimal_comma() -> None:
    written = str(make_report(language="tr"))
    assert "20.000" in written and "%91,70" in written and "-11,50 puan" in written and "400,0 k" in written
    assert not re.search(r"%\d+\.\d", written)


def test_unknown_words_are_left_as_they_are() -> None:
    assert texts.term("tr", "my own reason") == "my own reason"
    assert texts.term("tr", "heads") == "dikkat başı"
    with pytest.raises(KeyError):
        texts.say("tr", "a phrase nobody translated")


# ------------------------------------------------------------------------------------------------------------ recovery


@pytest.mark.parametrize("language", ["en", "tr"])
def test_a_report_tells_what_was_repaired(language: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    pruner = StructuredPruner(net, torch.randn(1, 6), pruning_ratio=0.5, recover="least_squares")
    pruner.collect_activations(torch.randn(192, 6).split(32), progress=False)
    pruner.prune()
    report = pruner.report(language=language)
    record = report.recovery
    assert record is not None and record.method == "least_squares" and record.samples == 192
    assert [block.path for block in record.blocks] == ["2"] and record.blocks[0].after < record.blocks[0].before
    title, number = {"en": ("Recovery", "."), "tr": ("Onarım", ",")}[language]
    after = f"{record.blocks[0].after:.3f}".replace(".", number)
    for suffix in ("html", "md"):
        text = report.save(tmp_path / f"report.{suffix}").read_text(encoding="utf-8")
        assert title in text and after in text, suffix
    proven_before = {"en": "proven after the cut", "tr": "kesimden sonra kanıtlandı"}[language]
    assert proven_before in " ".join(str(report).split())
    assert title in str(report) and after in " ".join(str(report).split())
    assert Report.load(report.save(tmp_path / "report.json")) == report


def test_a_report_without_a_repair_says_nothing_of_one() -> None:
    pruner = StructuredPruner(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 4))
    pruner.prune()
    assert pruner.report().recovery is None
    assert "Recovery" not in str(pruner.report())


@pytest.mark.parametrize("reason", ["not called exactly once in a forward", "its weight is shared with another layer"])
def test_reasons_for_not_repairing_are_said_in_turkish(reason: str) -> None:
    assert texts.term("tr", reason) != reason
