"""Criteria compared: laws of agreement and overlap, and choices that are those of the pruner itself."""

from __future__ import annotations

import math

import nets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.stats import spearmanr
from torch import Tensor, nn

from cleanai import (
    CriteriaComparison,
    InputError,
    ScoredGroup,
    StructuredPruner,
    WeightActivationImportance,
    compare_criteria,
    measure_criteria,
)
from cleanai.comparison import COVERAGE_CRITERIA, REPAIRS, STANDARD_CRITERIA, CutAccuracies, Overlap, label_criterion
from cleanai.comparison_plot import (
    plot_contrast,
    plot_cut_accuracy,
    plot_overlap,
    plot_rank_agreement,
    plot_removed_shares,
    plot_score_comparison,
)
from cleanai.importance import COVERAGE
from cleanai.models import digits_resnet

Batches = list[tuple[Tensor, Tensor]]


class Known:
    """A criterion that gives known scores, the same numbers to every group of that size."""

    normalizer = "none"

    def __init__(self, *scores: float) -> None:
        self.scores = scores

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        return torch.tensor(self.scores[: group.size], dtype=torch.float64)


class Drawn:
    """Random scores, drawn anew for every seed and group."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, group: ScoredGroup) -> Tensor:
        return torch.rand(group.size, generator=torch.Generator().manual_seed(100 * self.seed + group.group.index))


def blind(group: ScoredGroup) -> Tensor | None:
    """A criterion that sees only the first group."""
    return torch.arange(group.size) if group.group.index == 0 else None


def make_batches(seed: int = 0) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 10) for _ in range(2)]


@pytest.fixture(scope="module")
def pruner() -> StructuredPruner:
    torch.manual_seed(0)
    model = digits_resnet(8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 2)
            nn.init.normal_(module.bias)
    pruner = StructuredPruner(model, torch.zeros(1, 1, 8, 8))
    pruner.collect_activations(make_batches(), progress=False)
    pruner.collect_gradients(make_batches(), progress=False)
    return pruner


@pytest.fixture(scope="module")
def comparison(pruner: StructuredPruner) -> CriteriaComparison:
    return compare_criteria(pruner)


def compare_known(size: int = 4, **criteria: tuple[float, ...]) -> CriteriaComparison:
    """One group of so many units under criteria that give known scores."""
    net = nn.Sequential(nn.Linear(3, size), nn.ReLU(), nn.Linear(size, 2))
    pruner = StructuredPruner(net, torch.zeros(1, 3))
    return compare_criteria(pruner, {name: Known(*scores) for name, scores in criteria.items()})


# ------------------------------------------------------------------------------------------------------------- scores


def test_the_standard_set_is_what_the_criteria_say(pruner: StructuredPruner, comparison: CriteriaComparison) -> None:
    assert comparison.names == STANDARD_CRITERIA and set(COVERAGE_CRITERIA) == set(COVERAGE)
    assert comparison.groups == tuple(group.name for group in pruner.groups)
    for name in STANDARD_CRITERIA:
        alone = pruner.vary(importance=name).score_groups()
        for group, scores in alone.items():
            assert scores is not None
            torch.testing.assert_close(comparison.scores[name][group], scores, rtol=0, atol=0)


def test_the_frame_holds_every_unit(comparison: CriteriaComparison) -> None:
    frame = comparison.to_frame()
    assert len(frame) == sum(comparison.sizes.values())
    last = frame[frame["group"] == comparison.groups[-1]]
    scores = comparison.scores["wanda"][comparison.groups[-1]]
    assert scores is not None and last["wanda"].tolist() == scores.tolist()


def test_a_mix_of_compared_criteria_is_the_criterion_itself(pruner: StructuredPruner) -> None:
    comparison = compare_criteria(pruner, ["magnitude", "activation", "random"])
    for alpha in (0, 0.3, 1):
        mixed = comparison.mix("mix", {"magnitude": alpha, "activation": 1 - alpha})
        expected = pruner.vary(importance=WeightActivationImportance(alpha, 1 - alpha)).score_groups()
        for group, scores in expected.items():
            torch.testing.assert_close(mixed.scores["mix"][group], scores)
        assert "mix" not in comparison.names  # a comparison does not change


def test_a_mix_of_that_name_is_chosen_from_anew(pruner: StructuredPruner) -> None:
    comparison = compare_criteria(pruner, ["magnitude", "random"])
    first = comparison.mix("mix", {"magnitude": 1})
    second = (first.choose("mix", 0.5), first.mix("mix", {"random": 1}).choose("mix", 0.5))
    for group in comparison.groups:
        assert second[0][group].tolist() == comparison.choose("magnitude", 0.5)[group].tolist()
        assert second[1][group].tolist() == comparison.choose("random", 0.5)[group].tolist()


# ---------------------------------------------------------------------------------------------------------- agreement


def test_agreement_by_hand() -> None:
    # Ranks 1 2 3 4 and 1 3 2 4: ρ = 1 - 6·(0 + 1 + 1 + 0) / (4·15) = 0.8.
    comparison = compare_known(a=(1, 2, 3, 4), b=(10, 30, 20, 40), tied=(1, 1, 2, 2), constant=(5, 5, 5, 5))
    assert comparison.rank_agreement("a", "b", "0") == pytest.approx(0.8)
    # Ranks 1.5 1.5 3.5 3.5 against 1 2 3 4: 4 / sqrt(4·5).
    assert comparison.rank_agreement("a", "tied") == pytest.approx(4 / math.sqrt(20))
    assert math.isnan(comparison.rank_agreement("a", "constant"))


@given(st.lists(st.integers(-50, 50), min_size=4, max_size=4), st.lists(st.integers(-50, 50), min_size=4, max_size=4))
def test_agreement_is_scipys(first: list[int], second: list[int]) -> None:
    found = compare_known(a=tuple(first), b=tuple(second)).rank_agreement("a", "b")
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(spearmanr(first, second).statistic)


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=4, unique=True))
def test_agreement_with_itself_its_negation_and_a_rescaling(scores: list[float]) -> None:
    rescaled = tuple(3 * score - 7 for score in scores)
    if len(set(rescaled)) < 4:
        return  # apart by less than rounding
    comparison = compare_known(
        a=tuple(scores), negated=tuple(-score for score in scores), rescaled=rescaled, other=(3, 1, 4, 2)
    )
    assert comparison.rank_agreement("a", "a") == pytest.approx(1)
    assert comparison.rank_agreement("a", "negated") == pytest.approx(-1)
    assert comparison.rank_agreement("a", "other") == pytest.approx(comparison.rank_agreement("rescaled", "other"))


def test_overall_agreement_weighs_groups_by_their_units(comparison: CriteriaComparison) -> None:
    each = [comparison.rank_agreement("wanda", "taylor", group) for group in comparison.groups]
    expected = np.average(each, weights=list(comparison.sizes.values()))
    assert comparison.rank_agreement("wanda", "taylor") == pytest.approx(expected)
    matrix = comparison.agreement_matrix()
    np.testing.assert_allclose(matrix, matrix.T)
    np.testing.assert_allclose(np.diag(matrix), 1)
    names = comparison.names
    assert matrix[names.index("wanda"), names.index("taylor")] == pytest.approx(expected)


def test_groups_that_a_criterion_does_not_see_do_not_count(pruner: StructuredPruner) -> None:
    comparison = compare_criteria(pruner, {"blind": blind, "wanda": "wanda"})
    seen, unseen = comparison.groups[0], comparison.groups[1]
    assert comparison.rank_agreement("blind", "wanda") == comparison.rank_agreement("blind", "wanda", seen)
    assert math.isnan(comparison.rank_agreement("blind", "wanda", unseen))
    assert comparison.removed_shares("blind", 0.5)[unseen] == 0
    assert np.isnan(comparison.to_frame()["blind"]).sum() == sum(list(comparison.sizes.values())[1:])


# ----------------------------------------------------------------------------------------------------------- choosing


@pytest.mark.parametrize("global_pruning", [False, True], ids=["local", "global"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("name", STANDARD_CRITERIA)
def test_what_is_chosen_is_what_the_pruner_plans(
    pruner: StructuredPruner, comparison: CriteriaComparison, name: str, ratio: float, global_pruning: bool
) -> None:
    plan = pruner.vary(importance=name, pruning_ratio=ratio, global_pruning=global_pruning).make_plan()
    chosen = comparison.choose(name, ratio, global_pruning=global_pruning)
    assert {cut.name: cut.dropped for cut in plan.groups} == {g: tuple(units.tolist()) for g, units in chosen.items()}
    shares = comparison.removed_shares(name, ratio, global_pruning=global_pruning)
    assert shares == {cut.name: len(cut.dropped) / cut.size for cut in plan.groups}


@pytest.mark.parametrize("global_pruning", [False, True], ids=["local", "global"])
def test_the_pruners_other_settings_hold(pruner: StructuredPruner, global_pruning: bool) -> None:
    limited = StructuredPruner(
        pruner.model,
        torch.zeros(1, 1, 8, 8),
        target="macs",
        round_to=2,
        max_pruning_ratio=0.6,
        layer_pruning_ratios={"block3.conv1": 0.25},
    )
    limited.collect_activations(make_batches(), progress=False)
    chosen = compare_criteria(limited, ["wanda"]).choose("wanda", 0.4, global_pruning=global_pruning)
    plan = limited.vary(importance="wanda", pruning_ratio=0.4, global_pruning=global_pruning).make_plan()
    assert {cut.name: cut.dropped for cut in plan.groups} == {g: tuple(units.tolist()) for g, units in chosen.items()}
    assert len(chosen["block3.conv1"]) == 4  # a quarter of 16


def test_nothing_of_the_pruner_changes(pruner: StructuredPruner) -> None:
    before = pruner.make_plan()
    weights = {name: tensor.clone() for name, tensor in pruner.model.state_dict().items()}
    comparison = compare_criteria(pruner, ["wanda", "random"])
    comparison.overlap("wanda", "random", 0.9, global_pruning=True)
    measure_criteria(pruner, make_batches(), ["random"], ratios=[0.5], repairs=["least_squares"], progress=False)
    assert pruner.make_plan() == before and pruner.plan is None
    assert all(torch.equal(tensor, weights[name]) for name, tensor in pruner.model.state_dict().items())


# ------------------------------------------------------------------------------------------------------------ overlap


def test_overlap_by_hand() -> None:
    # Half of four units: {0, 1} and {0, 2} share one of three. Two random pairs of four share 0, 1 or 2 with the
    # probabilities 1/6, 4/6, 1/6, whose indices are 0, 1/3 and 1.
    comparison = compare_known(a=(1, 2, 3, 4), b=(1, 3, 2, 4))
    overlap = comparison.overlap("a", "b", 0.5)
    assert (overlap.first, overlap.second, overlap.shared) == (2, 2, 1)
    assert overlap.jaccard == pytest.approx(1 / 3)
    assert overlap.expected == pytest.approx(4 / 6 / 3 + 1 / 6)
    assert comparison.overlap("a", "b", 0.0) == Overlap(0, 0, 0, 1.0)
    assert comparison.overlap("a", "b", 0.0).jaccard == 1


@pytest.mark.parametrize("global_pruning", [False, True], ids=["local", "global"])
def test_overlap_is_symmetric_and_whole_with_itself(comparison: CriteriaComparison, global_pruning: bool) -> None:
    table = comparison.overlaps(0.4, global_pruning=global_pruning)
    values = np.array([[each.jaccard for each in row] for row in table])
    np.testing.assert_array_equal(values, values.T)
    np.testing.assert_array_equal(np.diag(values), 1)
    assert ((values >= 0) & (values <= 1)).all()
    assert table[0][4] == comparison.overlap(
        comparison.names[0], comparison.names[4], 0.4, global_pruning=global_pruning
    )


def test_random_choices_overlap_as_chance_says(pruner: StructuredPruner) -> None:
    seeds = {f"seed {seed}": Drawn(seed) for seed in range(14)}
    table = compare_criteria(pruner, seeds).overlaps(0.5)
    pairs = [table[a][b] for a in range(14) for b in range(a)]
    # 64 units, 91 pairs (correlated, of 14 draws): the mean has a standard error of about 0.01.
    assert np.mean([pair.jaccard for pair in pairs]) == pytest.approx(pairs[0].expected, abs=0.03)
    assert pairs[0].expected == pytest.approx(1 / 3, abs=0.01)  # half in common, of one and a half


def test_a_contrast_says_what_its_parts_say(comparison: CriteriaComparison) -> None:
    contrast = comparison.contrast("wanda", "taylor", 0.3, global_pruning=True)
    assert contrast.overlap == comparison.overlap("wanda", "taylor", 0.3, global_pruning=True)
    assert contrast.agreement == comparison.rank_agreement("wanda", "taylor")
    chosen = comparison.choose("taylor", 0.3, global_pruning=True)
    assert all(contrast.chosen["taylor"][g].tolist() == units.tolist() for g, units in chosen.items())
    text = contrast.describe("tr")
    assert text.startswith("WANDA ile Taylor: sıralama uyumu 0,") and repr(contrast).startswith("Contrast(WANDA and")
    assert comparison.contrast("wanda", "wanda", 0.3).overlap.jaccard == 1


# ----------------------------------------------------------------------------------------------------------- accuracy


@pytest.fixture(scope="module")
def accuracies(pruner: StructuredPruner) -> CutAccuracies:
    return measure_criteria(pruner, make_batches(1), ["magnitude", "random"], ratios=[0.25, 0.5], progress=False)


def test_accuracy_is_that_of_the_pruned_model(pruner: StructuredPruner, accuracies: CutAccuracies) -> None:
    assert accuracies.repairs == REPAIRS and accuracies.ratios == (0.25, 0.5) and accuracies.samples == 32
    assert len(accuracies.points) == len(accuracies.to_frame()) == 8
    asked = pruner.vary(importance="magnitude", pruning_ratio=0.5, recover="least_squares")
    model, batches = asked.prune().eval(), make_batches(1)
    with torch.no_grad():
        correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    point = accuracies.point("magnitude", 0.5, "least_squares")
    assert point.accuracy == pytest.approx(100 * correct / 32)
    assert asked.plan is not None
    assert point.units == pytest.approx(1 - asked.plan.dropped_units / asked.plan.units)
    assert 0.2 < point.macs < 0.6  # half of the channels on both sides of most layers


def test_accuracies_as_a_table(accuracies: CutAccuracies) -> None:
    table = accuracies.to_table("tr")
    assert table.columns[0] == "ölçüt" and table.columns[1].startswith("%25") and len(table.columns) == 5
    assert [row[0] for row in table.rows] == ["ağırlık büyüklüğü", "rastgele"]
    assert (
        table.rows[1][4].lstrip("%").replace(",", ".")
        == f"{accuracies.point('random', 0.5, 'least_squares').accuracy:.1f}"
    )
    assert "32" in table.notes[0] and accuracies._repr_html_().count("<tr") == 3
    best = accuracies.best(0.5)
    assert best.accuracy == max(accuracies.point(name, 0.5).accuracy for name in accuracies.criteria)


# ------------------------------------------------------------------------------------------------------------ figures


def cell_texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def title_of(figure: Figure) -> str:
    return " ".join(figure.get_suptitle().split())


def test_score_histograms_count_every_unit(comparison: CriteriaComparison) -> None:
    group = comparison.groups[-1]
    figure = plot_score_comparison(comparison, group, ["wanda", "taylor"], ratio=0.25)
    assert len(figure.axes) == 2
    for axes in figure.axes:
        heights = [patch.get_height() for patch in axes.patches if isinstance(patch, Rectangle)]
        assert sum(heights) == comparison.sizes[group]
    first, second = (comparison.choose(name, 0.25)[group] for name in ("wanda", "taylor"))
    both, either = len(np.intersect1d(first, second)), len(np.union1d(first, second))
    assert f"all 2 criteria remove {both} and none removes {comparison.sizes[group] - either}" in title_of(figure)


def test_the_agreement_map_writes_the_numbers(comparison: CriteriaComparison) -> None:
    figure = plot_rank_agreement(comparison, language="tr")
    wanted = comparison.agreement_matrix()
    numbers = [float(text.replace(",", ".").replace("−", "-")) for text in cell_texts(figure)]
    np.testing.assert_allclose(np.reshape(numbers, wanted.shape), wanted, atol=0.00501)
    assert "en benzer" in title_of(figure)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()][1] == label_criterion(
        "coverage_frequency", "tr"
    )


def test_the_overlap_map_writes_overlap_and_chance(comparison: CriteriaComparison) -> None:
    figure = plot_overlap(comparison, 0.4, global_pruning=True)
    table = comparison.overlaps(0.4, global_pruning=True)
    assert cell_texts(figure)[0] == "100"
    assert cell_texts(figure)[1] == f"{100 * table[0][1].jaccard:.0f}\n({100 * table[0][1].expected:.0f})"
    assert title_of(figure).startswith("Ratio 40 %, global: most alike")


def test_the_map_of_shares_is_layer_by_layer(comparison: CriteriaComparison) -> None:
    figure = plot_removed_shares(comparison, 0.5)
    image = figure.axes[0].images[0].get_array()
    assert image is not None and image.shape == (len(comparison.groups), len(comparison.names))
    shares = [comparison.removed_shares(name, 0.5, global_pruning=True) for name in comparison.names]
    np.testing.assert_allclose(image, [[100 * share[group] for share in shares] for group in comparison.groups])
    even = plot_removed_shares(comparison, 0.5, ["wanda", "random"], global_pruning=False)
    assert "every criterion takes the same share" in title_of(even)


def test_a_contrast_is_drawn_with_its_shares(comparison: CriteriaComparison) -> None:
    contrast = comparison.contrast("wanda", "random", 0.5, global_pruning=True)
    figure = plot_contrast(comparison, contrast, comparison.groups[2])
    bars = [round(patch.get_width(), 6) for patch in figure.axes[1].patches if isinstance(patch, Rectangle)]
    wanted = [
        100 * share
        for name in contrast.chosen
        for share in comparison.removed_shares(name, 0.5, global_pruning=True).values()
    ]
    assert bars == [round(share, 6) for share in wanted]
    assert title_of(figure) == contrast.describe().replace("-", "−")


def test_a_group_that_is_not_seen_says_so(pruner: StructuredPruner) -> None:
    comparison = compare_criteria(pruner, {"blind": blind, "random": "random"})
    group = comparison.groups[1]
    figure = plot_contrast(comparison, comparison.contrast("blind", "random", 0.5), group)
    assert figure.axes[0].texts[0].get_text() == f"blind does not see {group}"
    assert len(plot_score_comparison(comparison, group).axes) == 1
    with pytest.raises(InputError, match="none of the criteria sees"):
        plot_score_comparison(comparison, group, ["blind"])


def test_accuracy_lines_hold_the_points(accuracies: CutAccuracies) -> None:
    figure = plot_cut_accuracy(accuracies)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["no repair", "least squares"]
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in figure.axes[1].lines}
    assert lines["magnitude"] == [
        accuracies.point("magnitude", ratio, "least_squares").accuracy for ratio in (0.25, 0.5)
    ]
    best = accuracies.best(0.5)
    assert f"no repair: {best.criterion} ({best.accuracy:.1f} %)" in title_of(figure)


def test_figures_draw_on_axes_that_are_given(comparison: CriteriaComparison, accuracies: CutAccuracies) -> None:
    figure = Figure(figsize=(8, 6))
    axes = figure.subplots()
    assert plot_rank_agreement(comparison, comparison.groups[0], ax=axes) is figure
    assert axes.get_title(loc="left").startswith(comparison.groups[0])
    for draw in (plot_overlap, plot_removed_shares):
        figure = Figure(figsize=(8, 6))
        axes = figure.subplots()
        assert draw(comparison, ax=axes) is figure and axes.get_title(loc="left").startswith("Ratio 50 %")
    figure = Figure(figsize=(8, 6))
    axes = figure.subplots()
    assert plot_cut_accuracy(accuracies, ax=axes) is figure and len(axes.lines) == 3
    assert plot_score_comparison(comparison, comparison.groups[0], ax=figure.add_subplot()) is figure


# ----------------------------------------------------------------------------------------------------------- mistakes


def test_mistakes_say_what_to_do(pruner: StructuredPruner, comparison: CriteriaComparison) -> None:
    with pytest.raises(InputError, match=r"no criterion named 'wnda' was compared; there are coverage, "):
        comparison.rank_agreement("wanda", "wnda")
    with pytest.raises(InputError, match=r"no group is named 'conv9'; there are conv1, "):
        comparison.rank_agreement("wanda", "taylor", "conv9")
    with pytest.raises(InputError, match=r"pruning_ratio is 1"):
        comparison.choose("wanda", 1)
    with pytest.raises(InputError, match="no criterion named 'activation' was compared"):
        comparison.mix("mix", {"magnitude": 0.5, "activation": 0.5})
    with pytest.raises(InputError, match="criteria is the name 'wanda'"):
        compare_criteria(pruner, "wanda")
    with pytest.raises(InputError, match="criteria is empty"):
        compare_criteria(pruner, {})
    with pytest.raises(InputError, match="pruner is a DigitsResNet; give a StructuredPruner"):
        compare_criteria(pruner.model)  # ty: ignore[invalid-argument-type]
    fresh = StructuredPruner(nets.PlainCnn(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match=r"needs activations: call collect_activations\(loader\)"):
        compare_criteria(fresh)
    with pytest.raises(InputError, match="no cut to draw"):
        plot_cut_accuracy(CutAccuracies((), 90.0, 10))
