"""The figures show the report's numbers, leave matplotlib as it was, and draw whatever a layer is called."""

from __future__ import annotations

import io
import warnings

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from report_factory import HOSTILE, make_group, make_report

from cleanai import plots
from cleanai.errors import InputError
from cleanai.report import Report


def _draw(figure: Figure) -> bytes:
    """The figure's PNG; a warning, a missing glyph or a failed layout say, is an error."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(buffer, format="png", dpi=50)
    return buffer.getvalue()


def _widths(figure: Figure, label: str) -> list[float]:
    (bars,) = [bars for bars in figure.axes[0].containers if bars.get_label() == label]
    return [bar.get_width() for bar in bars]


def _points(line: Line2D) -> list[tuple[float, float]]:
    return list(zip(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist(), strict=True))


def _all_figures(report: Report) -> list[Figure]:
    return [
        plots.plot_metrics(report),
        plots.plot_kept_channels(report),
        plots.plot_score_distributions(report),
        plots.plot_training(report.history or [], report.language),
    ]


def _inside(figure: Figure) -> bool:
    """Whether everything drawn, to a hundredth of an inch, lies inside the figure."""
    figure.draw_without_rendering()
    drawn = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    return min(drawn.x0, drawn.y0) > -0.01 and drawn.x1 < width + 0.01 and drawn.y1 < height + 0.01


def test_metric_bars_are_shares_of_the_original() -> None:
    figure = plots.plot_metrics(make_report())
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["Parameters", "MACs", "Accuracy"]  # one stage has no latency
    assert _widths(figure, "original") == pytest.approx([100, 100, 91.7])
    assert _widths(figure, "pruned") == pytest.approx([25, 25, 80.2])
    assert figure.get_suptitle() == "MACs −75.0 %, accuracy −0.50 points"


def test_kept_bars_are_the_kept_shares() -> None:
    figure = plots.plot_kept_channels(make_report())
    assert _widths(figure, "kept") == pytest.approx([62.5, 50])
    assert "5/8" in [text.get_text() for text in figure.axes[0].texts]
    assert figure.get_suptitle() == "Removed per group: 37.5 % to 50.0 %; most in block.conv2"


def test_kept_title_says_when_nothing_went_and_when_all_groups_are_alike() -> None:
    whole = plots.plot_kept_channels(make_report(groups=(make_group(removed=()),)))
    alike = plots.plot_kept_channels(make_report(groups=(make_group(), make_group("b"))))
    assert whole.get_suptitle() == "No group lost a unit"
    assert alike.get_suptitle() == "Every group keeps 62.5 % of its units"


def test_many_groups_are_numbered() -> None:
    groups = tuple(make_group(f"g{index}") for index in range(200))
    axes = plots.plot_kept_channels(make_report(groups=groups)).axes[0]
    assert axes.get_xlabel() == "group, in the order of the table"
    assert len(axes.containers[1]) == 200


def test_histograms_count_every_unit_on_its_side_of_the_cut() -> None:
    report = make_report()
    axes = plots.plot_score_distributions(report).axes[0]
    group = plots.scored_groups(report)[0]
    removed, kept = axes.containers
    assert sum(bar.get_height() for bar in removed) == len(group.removed) == 8
    assert sum(bar.get_height() for bar in kept) == group.units_after == 8
    assert group.cut is not None
    (line,) = axes.lines
    cut = _points(line)[0][0]
    assert cut == pytest.approx(sum(group.cut) / 2)
    assert all(bar.get_x() + bar.get_width() <= cut + 1e-9 for bar in removed if bar.get_height())
    assert all(bar.get_x() >= cut - 1e-9 for bar in kept if bar.get_height())


def test_overlapping_scores_are_said_and_shaded() -> None:
    overlap = make_group(units=4, removed=(0, 1), scores=(0.1, 3.0, 1.0, 4.0))
    figure = plots.plot_score_distributions(make_report(groups=(overlap, make_group("b"))))
    assert figure.get_suptitle() == "In 1 of 2 groups a unit was removed though a kept one scored lower"
    clean, crossed = sorted(figure.axes, key=lambda axes: len(axes.lines), reverse=True)
    assert len(clean.lines) == 1 and len(crossed.lines) == 0


@pytest.mark.parametrize("scores", [(1.0,) * 8, (0.0,) * 8, (1e-9, 1e-9, 1e-8, 1.0, 1.0, 2.0, 1e6, 5.0)])
def test_odd_scores_are_drawn(scores: tuple[float, ...]) -> None:
    group = make_group(units=8, removed=(0, 1, 2), scores=scores)
    figure = plots.plot_score_distributions(make_report(groups=(group,)))
    assert sum(bar.get_height() for bars in figure.axes[0].containers for bar in bars) == 8
    assert _draw(figure)


def test_only_the_largest_groups_get_a_panel() -> None:
    groups = tuple(make_group(f"g{index}", units=8 + index) for index in range(20))
    figure = plots.plot_score_distributions(make_report(groups=groups))
    assert len(figure.axes) == plots.SCORE_PANELS
    assert figure.axes[0].get_title(loc="left").startswith("g19")
    assert figure.legends[0].get_title().get_text() == "12 largest of 20 scored and pruned groups."


def test_training_curves_are_the_history() -> None:
    figure = plots.plot_training([{"loss": 0.7, "val_accuracy": 85.0}, {"loss": 0.3, "val_accuracy": 91.2}])
    loss, accuracy = figure.axes
    assert _points(loss.lines[0]) == [(1, 0.7), (2, 0.3)]
    assert _points(accuracy.lines[0]) == [(1, 85.0), (2, 91.2)]
    assert accuracy.get_title(loc="left") == "Accuracy (val): 85.0 % → 91.2 %"


def test_nothing_to_draw_is_an_error_that_says_so() -> None:
    empty = make_report(groups=(), metrics={})
    for plot in (plots.plot_metrics, plots.plot_kept_channels, plots.plot_score_distributions):
        with pytest.raises(InputError, match=plot.__name__):
            plot(empty)
    with pytest.raises(InputError, match="plot_training"):
        plots.plot_training([{"epoch": 1}])


def test_given_axes_are_drawn_on() -> None:
    report = make_report()
    own = Figure(figsize=(10, 8), layout="constrained")
    panels = own.subplots(2, 2).flat
    assert plots.plot_metrics(report, ax=panels[0]) is own
    assert plots.plot_kept_channels(report, ax=panels[1]) is own
    assert plots.plot_score_distributions(report, ax=panels[2]) is own
    assert plots.plot_training(report.history or [], ax=panels[3]) is own
    assert all(axes.has_data() for axes in own.axes) and own.get_suptitle() == ""
    assert _draw(own)


def test_matplotlib_is_left_as_it_was() -> None:
    plt.get_backend()  # settles a setting that matplotlib leaves open until someone asks
    settings, open_figures = mpl.rcParams.copy(), plt.get_fignums()
    for figure in _all_figures(make_report()):
        assert _draw(figure)
    assert mpl.rcParams == settings
    assert plt.get_fignums() == open_figures


def test_figures_do_not_depend_on_the_callers_style() -> None:
    plain = plots.plot_metrics(make_report())
    with mpl.rc_context({"axes.facecolor": "black", "font.size": 30, "axes.grid": False}):
        styled = plots.plot_metrics(make_report())
    assert styled.axes[0].get_facecolor() == plain.axes[0].get_facecolor()


@pytest.mark.parametrize("language", ["en", "tr"])
def test_no_text_is_clipped(language: str) -> None:
    name = "encoder.layers.encoder_layer_{}.self_attention.projection.output"
    groups = [
        make_group(name.format(index), 12, tuple(range(index % 5 + 1)), kind="head dimensions") for index in range(12)
    ]
    groups += [
        make_group(f"encoder.layers.encoder_layer_{index}.mlp.0", 3072, tuple(range(900))) for index in range(12)
    ]
    for figure in _all_figures(make_report(groups=tuple(groups), language=language)):
        assert _inside(figure)


def test_hostile_names_are_drawn_as_text() -> None:
    report = make_report(model_name=HOSTILE, groups=(make_group(HOSTILE), make_group("$x^2$", 6, (0,))))
    for figure in _all_figures(report):
        assert _draw(figure)
    assert plots.label_text("$x^2$") == r"\$x^2\$"
    assert plots.label_text("卷") == "?"


def test_long_names_keep_their_end() -> None:
    assert plots.label_text("encoder.layers.encoder_layer_3.mlp", 24) == "…encoder_layer_3.mlp"
    assert plots.label_text("a" * 50, 10) == "…" + "a" * 9


def test_a_notebook_shows_a_figure_by_itself() -> None:
    figure = plots.plot_metrics(make_report())
    assert isinstance(figure, plots.ReportFigure)
    assert figure._repr_png_().startswith(b"\x89PNG")
