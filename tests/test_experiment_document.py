"""Documents of experiments: their numbers, their two languages, and their two forms, PDF and HTML."""

from __future__ import annotations

import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pypdf
import pytest
from experiment_factory import CREATED, make_four_methods, make_large_results, make_result, make_results
from PIL import Image

from cleanai.errors import InputError
from cleanai.experiments.config import ExperimentConfig
from cleanai.experiments.document import method_document, scenario_document
from cleanai.experiments.figures import find_best, plot_method_accuracies, plot_stage_costs
from cleanai.experiments.pages import (
    Document,
    Facts,
    Grid,
    Paragraph,
    Picture,
    Section,
    compile_pages,
    list_texts,
    plain_content,
    render_html,
    render_pdf,
    save_document,
)
from cleanai.experiments.results import FINETUNED, ORIGINAL, PRUNED, ExperimentResults
from cleanai.experiments.tables import (
    BEST,
    SETTING_NAMES,
    comparison_table,
    methods_table,
    preparation_table,
    settings_tables,
    summarize,
    summary_table,
)
from cleanai.rendering import Table
from cleanai.texts import MISSING

HOSTILE = "#a$b*c_d<e>@f\"g'h\\i`j~[k]{{l}}//m%n &amp;ğüşıöçİĞÜŞÖÇ \x1b[31m"
SHOWN = HOSTILE.replace("\x1b", "\\x1b")
LONG = "a_module.with_a_name.that_never_ends." * 6


def read_pdf(content: bytes) -> tuple[pypdf.PdfReader, str]:
    """A PDF and its text, spaces and line ends made one space."""
    reader = pypdf.PdfReader(io.BytesIO(content))
    return reader, " ".join(" ".join(page.extract_text() for page in reader.pages).split())


class _Page(HTMLParser):
    """The text of a page outside of its style, its tags, and every address that it names."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.pieces: list[str] = []
        self.feed(content.decode("utf-8"))
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]

    def handle_data(self, data: str) -> None:
        if self.lasttag != "style":
            self.pieces.append(data)


def list_sections(document: Document) -> list[str]:
    return [section.heading for section in document.sections]


def squeeze(text: str) -> str:
    """The text without spaces, which line ends in a PDF add and drop."""
    return re.sub(r"\s+", "", text)


def column(table: Table, at: int) -> list[str]:
    return [row[at] for row in table.rows]


def read_rows(table: Table) -> dict[str, str]:
    """The first cell of each row with the second."""
    return {row[0]: row[1] for row in table.rows}


def replace_method(results: ExperimentResults, **changes: Any) -> ExperimentResults:
    """The results with parts of coverage's report replaced."""
    found = results.methods["coverage"]
    report = dataclasses.replace(found.report, **changes)
    return dataclasses.replace(results, methods={"coverage": dataclasses.replace(found, report=report)})


# ------------------------------------------------------------------------------------------------------------- numbers


def test_summary_is_what_one_computes_by_hand() -> None:
    result = make_result()
    stages = result.report.metrics
    summary = summarize(result)
    assert summary.pruning_drop == pytest.approx(91.73 - 60.5)
    assert summary.final_drop == pytest.approx(91.73 - 90.25)
    assert summary.recovery == pytest.approx((90.25 - 60.5) / (91.73 - 60.5))
    assert summary.speedup == pytest.approx(2.0 / 1.25)
    assert summary.parameters == pytest.approx(1 - stages[PRUNED].parameters / stages[ORIGINAL].parameters)
    assert summary.flops == pytest.approx(1 - stages[PRUNED].macs / stages[ORIGINAL].macs)
    assert summary.size == pytest.approx(1 - stages[FINETUNED].size_mb / stages[ORIGINAL].size_mb)


def test_comparison_table_says_what_was_measured() -> None:
    results = make_results()
    stages = results.methods["coverage"].report.metrics
    table = comparison_table(results, "coverage", "en")
    assert table.columns == ("quantity", "Original (FT)", "After pruning", "After pruning + FT")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["Accuracy (%)"] == ("91.73", "60.50", "90.25")
    assert rows["Inference time (ms)"] == ("2.00 ± 0.040", "1.25 ± 0.025", "1.25 ± 0.025")
    measured = [stages[stage] for stage in (ORIGINAL, PRUNED, FINETUNED)]
    for number, metrics in enumerate(measured):
        assert float(rows["Size (MB)"][number]) == pytest.approx(metrics.size_mb, rel=1e-3)
        assert float(rows["Parameters (M)"][number]) == pytest.approx(metrics.parameters / 1e6, rel=1e-3)
        assert float(rows["FLOPs (M)"][number]) == pytest.approx(2 * metrics.macs / 1e6, rel=1e-3)
    assert any("batch size 1, CPU threads 1" in note for note in table.notes)
    assert any("450 samples" in note for note in table.notes)


def test_large_models_are_counted_in_millions_and_billions() -> None:
    results = make_results()
    stages = {
        stage: dataclasses.replace(metrics, parameters=25_557_032, macs=4_089_184_256, size_mb=102.4)
        for stage, metrics in results.methods["coverage"].report.metrics.items()
    }
    rows = {row[0]: row[1] for row in comparison_table(replace_method(results, metrics=stages), "coverage", "tr").rows}
    assert rows["Parametre (M)"] == "25,56"
    assert rows["FLOP (G)"] == "8,178"
    assert rows["Boyut (MB)"] == "102,4"


def test_summary_table_in_both_languages() -> None:
    results = make_results()
    english = read_rows(summary_table(results, "coverage", "en"))
    turkish = read_rows(summary_table(results, "coverage", "tr"))
    assert english["Speed-up"] == "1.60×" and turkish["Hızlanma"] == "1,60×"
    assert english["Recovery by fine-tuning"] == "95.3 %" and turkish["İnce ayarla geri kazanılan"] == "%95,3"
    assert english["Final drop in accuracy"] == "1.48 points" and turkish["Son doğruluk kaybı"] == "1,48 puan"


def test_a_stage_that_was_not_run_is_a_dash() -> None:
    results = make_results(make_result(final=None))
    assert column(comparison_table(results, "coverage", "en"), 3) == [MISSING] * 5
    rows = read_rows(summary_table(results, "coverage", "en"))
    assert rows["Recovery by fine-tuning"] == rows["Final drop in accuracy"] == MISSING
    assert rows["Accuracy lost by pruning"] == "31.23 points"
    text = " ".join(list_texts(plain_content(method_document(results, "coverage", "en"))[0]))
    assert "The pruned model was not fine-tuned." in text
    assert "Fine-tuning" not in list_sections(method_document(results, "coverage", "en"))


def test_what_gains_accuracy_has_a_negative_drop_and_says_so() -> None:
    table = summary_table(make_results(make_result(final=92.0)), "coverage", "tr")
    rows = read_rows(table)
    assert rows["Son doğruluk kaybı"] == "-0,27 puan"
    assert rows["İnce ayarla geri kazanılan"] == "%100,9"
    assert "Eksi kayıp, kazanç demektir." in table.notes


def test_nothing_is_recovered_where_nothing_was_lost() -> None:
    assert summarize(make_result(pruned=91.73)).recovery is None
    assert summarize(make_result(pruned=95.0)).recovery is None


def test_no_speed_up_from_a_disturbed_machine() -> None:
    results = make_results()
    stages = dict(results.methods["coverage"].report.metrics)
    latency = stages[FINETUNED].latency
    assert latency is not None
    stages[FINETUNED] = dataclasses.replace(stages[FINETUNED], latency=dataclasses.replace(latency, disturbed=True))
    disturbed = replace_method(results, metrics=stages)
    assert summarize(disturbed.methods["coverage"]).speedup is None
    table = comparison_table(disturbed, "coverage", "en")
    assert table.rows[-1][3] == "1.25 ± 0.025*" and any(note.startswith("* ") for note in table.notes)
    assert methods_table(disturbed, "en").rows[0][7] == MISSING


def test_preparation_table_before_and_after() -> None:
    table = preparation_table(make_results(), "tr")
    assert table.columns == ("büyüklük", "İnce ayardan önce", "İnce ayardan sonra")
    assert table.rows[0] == ("Doğruluk (%)", "10,22", "91,73")
    assert table.rows[1] == ("Kayıp", "2,345", "0,5000")


def test_an_original_that_was_not_trained_is_not_called_fine_tuned() -> None:
    results = make_results(epochs=0)
    assert preparation_table(results, "en").columns == ("quantity", "Original")
    assert comparison_table(results, "coverage", "en").columns[1] == "Original"
    assert "Original (FT)" not in list(list_texts(plain_content(scenario_document(results))[0]))


def test_the_best_method_is_marked_in_each_column_where_they_differ() -> None:
    table = methods_table(make_four_methods(), "en")
    assert column(table, 0) == ["neuron coverage", "WANDA", "magnitude", "Taylor"]
    assert column(table, 3) == ["90.25", "91.90" + BEST, "89.00", "90.25"]
    assert column(table, 8) == ["1.48", "-0.17" + BEST, "2.73", "1.48"]
    assert all(text == "91.73" for text in column(table, 1))
    assert not any(text.endswith(BEST) for at in (1, 2, 4, 5, 6, 7) for text in column(table, at))
    assert "†: the best value of the column." in table.notes


def test_methods_that_are_best_together_are_marked_together() -> None:
    table = methods_table(
        make_results(make_result("coverage"), make_result("wanda"), make_result("taylor", final=80.0)), "en"
    )
    assert column(table, 3) == ["90.25" + BEST, "90.25" + BEST, "80.00"]


@pytest.mark.parametrize(("milliseconds", "marked"), [(1.25, False), (1.24, False), (0.9, True)])
def test_a_speed_up_within_the_spread_of_the_times_is_not_better(milliseconds: float, marked: bool) -> None:
    fast = make_result("wanda")
    stages = dict(fast.report.metrics)
    latency = stages[FINETUNED].latency
    assert latency is not None
    stages[FINETUNED] = dataclasses.replace(
        stages[FINETUNED], latency=dataclasses.replace(latency, median_ms=milliseconds)
    )
    fast = dataclasses.replace(fast, report=dataclasses.replace(fast.report, metrics=stages))
    speedups = column(methods_table(make_results(make_result(), fast), "en"), 7)
    assert [text.endswith(BEST) for text in speedups] == [False, marked]


def test_unknown_method_names_those_that_there_are() -> None:
    with pytest.raises(InputError, match="coverage, wanda, magnitude, taylor"):
        method_document(make_four_methods(), "hessian")
    with pytest.raises(InputError, match="'de'"):
        scenario_document(make_results(), language="de")


def test_every_setting_has_a_name_and_keeps_the_one_to_set_it_by() -> None:
    settings = ExperimentConfig().to_dict()
    assert set(SETTING_NAMES) == set(settings)
    for language in ("en", "tr"):
        tables = settings_tables(ExperimentConfig(methods=("coverage", "wanda")), language)
        shown = {name: value for table in tables for _, name, value in table.rows}
        assert set(shown) == set(settings)
        assert ExperimentConfig().replace(**shown) == ExperimentConfig(methods=("coverage", "wanda"))


# ------------------------------------------------------------------------------------------------------------- figures


def test_figures_state_the_finding() -> None:
    results = make_four_methods()
    assert find_best(results, ["coverage", "taylor", "wanda"]) == ("wanda", FINETUNED, 91.9)
    bars = plot_method_accuracies(results, "tr")
    title = bars.get_suptitle()
    assert title == "İnce ayardan sonra en iyisi: WANDA, %91,90 (özgün: %91,73)"
    assert {text.get_text() for text in bars.axes[0].texts} == {"60,50", "90,25", "91,90", "89,00"}
    stages = results.methods["wanda"].report.metrics
    share = 100 * stages[FINETUNED].macs / stages[ORIGINAL].macs
    costs = plot_stage_costs(results, language="en").get_suptitle()
    assert costs == f"WANDA, fine-tuned: 91.90 % at {share:.1f} % of the FLOPs (original: 91.73 %)"


def test_figures_of_unmeasured_models_are_refused_and_left_out() -> None:
    results = make_results(make_result(final=None))
    stages = results.methods["coverage"].report.metrics
    blind = {stage: dataclasses.replace(metrics, accuracy=None) for stage, metrics in stages.items()}
    results = replace_method(results, metrics=blind)
    with pytest.raises(InputError, match="accuracy"):
        plot_stage_costs(results)
    with pytest.raises(InputError, match="accuracy"):
        plot_method_accuracies(results)
    assert "Accuracy against cost" not in list_sections(method_document(results, "coverage"))
    assert render_html(scenario_document(results))


# ----------------------------------------------------------------------------------------------------------- documents

_SECTIONS = {
    "en": ["Summary", "Comparison", "Accuracy against cost", "Preparation of the original model", "Pruning", "Scores",
           "Frozen", "Proof", "Fine-tuning", "Configuration", "Environment and seeds", "Files"],
    "tr": ["Özet", "Karşılaştırma", "Maliyete karşı doğruluk", "Özgün modelin hazırlanması", "Budama", "Puanlar",
           "Dondurulanlar", "Doğruluk kanıtı", "İnce ayar", "Yapılandırma",
           "Çalışma ortamı ve rastgelelik", "Dosyalar"],
}  # fmt: skip


@pytest.mark.parametrize("language", ["en", "tr"])
def test_a_method_document_says_everything_in_both_forms(language: str, tmp_path: Path) -> None:
    document = method_document(make_results(), "coverage", language)
    assert list_sections(document) == _SECTIONS[language]
    pdf = save_document(document, tmp_path / "reports" / "coverage.pdf").read_bytes()
    page = save_document(document, tmp_path / "reports" / "coverage.HTML").read_bytes()
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == ["coverage.HTML", "coverage.pdf"]
    in_pdf, in_html = squeeze(read_pdf(pdf)[1]), squeeze(_Page(page).text)
    content = plain_content(document)[0]
    said = [text for part in ("facts", "opening", "sections") for text in list_texts(content[part])]
    words = {"r", "l", "table", "figure", "facts", "verdict", "paragraph", "plain", "quiet", "warning", "proven"}
    for text in said:
        if text not in words:
            assert squeeze(text) in in_html, text
            assert squeeze(text) in in_pdf or not text.strip(), text
    assert len(pdf) < 2_000_000 and len(page) < 3_000_000


def test_the_pdf_knows_its_title_language_and_date_and_its_text_is_turkish() -> None:
    document = method_document(
        make_results(data=dataclasses.replace(make_results().data, name="ğüşıöçİ")), "coverage", "tr"
    )
    reader, text = read_pdf(render_pdf(document))
    assert reader.metadata is not None
    assert reader.metadata.title == document.title == "TS1 budama deneyi: nöron kapsaması"
    assert reader.metadata.creation_date is not None
    assert reader.metadata.creation_date.isoformat() == CREATED
    assert str(reader.trailer["/Root"]["/Lang"]) == "tr"  # ty: ignore[not-subscriptable]
    assert "ğüşıöçİ" in text and "91,73" in text and "%95,3" in text and "1,60×" in text
    assert "Budama sonrası" in text  # also in the legend of a figure, whose words are text
    assert f"1 / {len(reader.pages)}" in text


def test_a_long_document_has_a_table_of_contents_and_a_short_one_has_none() -> None:
    words = Paragraph("There is much to say. " * 200)
    for count, wanted in ((6, False), (14, True)):
        sections = tuple(Section(f"Part {number}", (words,)) for number in range(count))
        document = Document("Title", "Subtitle", "en", CREATED, Facts((("a", "b"),)), (), sections)
        reader, text = read_pdf(render_pdf(document))
        assert (len(reader.pages) > 8) == wanted
        assert ("Contents" in text) == wanted


@pytest.mark.parametrize("make", [render_pdf, render_html])
def test_equal_results_give_equal_bytes(make: Any) -> None:
    results = make_results()
    again = ExperimentResults.from_dict(results.to_dict())
    document = method_document(results, "coverage", "tr")
    assert make(document) == make(method_document(again, "coverage", "tr"))
    small = dataclasses.replace(document, sections=document.sections[1:2])
    assert make(small) == make(small)  # its figures are drawn anew each time


def test_the_page_needs_nothing_and_runs_nothing() -> None:
    page = _Page(render_html(scenario_document(make_results())))
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"url\(|@import|https?://", page.text)


def make_hostile() -> ExperimentResults:
    """Results in which every name a user gives holds what markup could trip over."""
    results = make_results()
    report = results.methods["coverage"].report
    groups = (dataclasses.replace(report.groups[0], name=HOSTILE + LONG), *report.groups[1:])
    frozen = (dataclasses.replace(report.frozen[0], layers=(HOSTILE, LONG), reason=HOSTILE),)
    results = replace_method(results, groups=groups, frozen=frozen, warnings=[HOSTILE + " warned"])
    found = dataclasses.replace(results.methods["coverage"], files={HOSTILE: LONG})
    return dataclasses.replace(
        results,
        name=HOSTILE,
        methods={"coverage": found},
        config=results.config.replace(model=HOSTILE, scenario=HOSTILE),
        data=dataclasses.replace(results.data, name=HOSTILE, note=HOSTILE + " noted"),
        environment=dataclasses.replace(
            results.environment, command=HOSTILE, machine=HOSTILE, versions={HOSTILE: LONG}
        ),
    )


def test_names_are_never_markup() -> None:
    document = method_document(make_hostile(), "coverage", "tr")
    text = squeeze(read_pdf(render_pdf(document))[1])
    page = _Page(render_html(document))
    name = squeeze(SHOWN)
    for said in (text, squeeze(page.text)):
        for wanted in (name + "noted", name + "warned", name + LONG, name + "buda", name + "," + LONG):
            assert wanted in said, wanted
        assert said.count(name) >= 12
    assert "e" not in page.tags and "script" not in page.tags
    assert "\u200b" not in text  # a command that is copied from the page must run


def test_long_names_stay_on_the_page() -> None:
    document = method_document(make_hostile(), "coverage", "en")
    tables = [
        Section(section.heading, tuple(block for block in section.blocks if not isinstance(block, Picture)))
        for section in document.sections
    ]
    pages = compile_pages(dataclasses.replace(document, sections=tuple(tables)), "png", ppi=60)
    assert len(pages) > 2
    for page in pages:
        pixels = np.asarray(Image.open(io.BytesIO(page)).convert("L"))
        margin = int(1.6 / 21 * pixels.shape[1])  # of 1.8 cm
        assert (pixels[:, -margin:] == 255).all() and (pixels[:, :margin] == 255).all()


def test_what_must_be_known_stands_before_the_numbers() -> None:
    results = make_results(make_result("coverage"), make_result("wanda"), warnings=["Few.", "The run was cut short."])
    results = dataclasses.replace(
        results, data=dataclasses.replace(results.data, note="These photos are no test set.; Few.")
    )
    document = scenario_document(results)
    warnings = [block.text for block in document.opening if isinstance(block, Paragraph) and block.kind == "warning"]
    assert warnings == ["These photos are no test set.", "Few.", "The run was cut short."]
    said = list(list_texts(plain_content(document)[0]))
    assert said.index("These photos are no test set.") < said.index("1. Summary")


def test_a_warning_of_several_methods_is_said_once_with_their_names() -> None:
    results = make_results(*(make_result(method) for method in ("coverage", "wanda", "taylor")))
    warned = {"coverage": ["a", "b"], "wanda": ["b"], "taylor": ["b"]}
    methods = {
        name: dataclasses.replace(found, report=dataclasses.replace(found.report, warnings=warned[name]))
        for name, found in results.methods.items()
    }
    document = scenario_document(dataclasses.replace(results, methods=methods))
    assert [block.text for block in document.opening if isinstance(block, Paragraph)] == ["neuron coverage: a", "b"]


def test_a_scenario_document_has_every_method_and_its_table() -> None:
    results = make_four_methods()
    document = scenario_document(results, "en")
    titles = [block.table.title for section in document.sections for block in section.blocks if isinstance(block, Grid)]
    for method in ("neuron coverage", "WANDA", "magnitude", "Taylor"):
        assert f"Method: {method}" in list_sections(document)
        assert f"Comparison of the stages: {method}" in titles
    assert titles[0] == "The methods compared"
    text = read_pdf(render_pdf(document))[1]
    assert "Best after fine-tuning: WANDA with 91.90 % (original: 91.73 %)." in text
    assert "91.90 †" in text and "−0.17 †" in text


def test_the_language_is_that_of_the_configuration_unless_told() -> None:
    results = make_results()
    turkish = dataclasses.replace(results, config=results.config.replace(language="tr"))
    assert method_document(turkish, "coverage").language == "tr"
    assert method_document(turkish, "coverage", "en").title == method_document(results, "coverage").title


def test_a_document_is_a_pdf_or_a_page(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.pdf or \.html"):
        save_document(method_document(make_results(), "coverage"), tmp_path / "report.docx")
    assert not list(tmp_path.iterdir())


def test_a_large_network_fits_its_pages() -> None:
    results = make_large_results()
    document = method_document(results, "magnitude", "en")
    pdf = render_pdf(document)
    reader, text = read_pdf(pdf)
    assert len(pdf) < 2_000_000 and len(reader.pages) <= 9
    groups = results.methods["magnitude"].report.groups
    assert len(groups) > 30 and all(group.name in text for group in groups)
