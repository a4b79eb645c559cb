"""Search: the Pareto front of what was tried, plans that make it again, and studies that processes share."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleanai import InputError, SearchResult, SearchSpace, StructuredPruner, search_plans
from cleanai.evaluate import count_macs, count_parameters
from cleanai.models import digits_resnet
from cleanai.plan import Plan
from cleanai.search import SearchTrial

optuna: Any = pytest.importorskip("optuna")


def make_net() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    return net, torch.randn(2, 4)


def width(model: Any) -> float:
    """An accuracy that falls with the first layer only: the second is free to go."""
    return float(model[0].out_features)


def run(objectives: tuple[str, ...] = ("accuracy", "macs"), n_trials: int = 12, **options: Any) -> SearchResult:
    net, x = make_net()
    options = {"seed": 0, "progress": False, **options}
    return search_plans(net, x, width, objectives=objectives, n_trials=n_trials, **options)


def test_values_are_those_of_the_model_that_the_plan_makes() -> None:
    net, x = make_net()
    result = run(("accuracy", "macs", "params"))
    assert len(result.trials) == 12
    for trial in result.trials:
        pruned = trial.apply(net)
        values = {"accuracy": width(pruned), "macs": count_macs(pruned, x), "params": count_parameters(pruned)}
        assert dict(trial.values) == values
    assert net[0].out_features == 20


def test_the_search_begins_with_equal_ratios_everywhere() -> None:
    first = [dict(trial.choices) for trial in run(n_trials=3).trials]
    assert [(each["ratio 0"], each["ratio 2"]) for each in first] == [(0.0, 0.0), (0.25, 0.25), (0.5, 0.5)]


def made(number: int, accuracy: float, macs: float) -> SearchTrial:
    return SearchTrial(number, {"accuracy": accuracy, "macs": macs}, Plan(), {})


def test_the_front_holds_what_nothing_else_beats() -> None:
    trials = (made(0, 90, 100), made(1, 80, 50), made(2, 85, 100), made(3, 80, 60))
    trials += (made(4, 95, 200), made(5, 80, 50))
    result = SearchResult(trials, ("accuracy", "macs"), "by hand", None)  # ty: ignore[invalid-argument-type]
    assert [trial.number for trial in result.pareto] == [4, 0, 1]  # 5 is as good as 1 and came later
    assert result.best("macs", accuracy=85).number == 0
    assert result.best("accuracy", macs=150).number == 0
    assert result.best("accuracy").number == 4
    with pytest.raises(InputError, match="none of 6 trials keeps"):
        result.best("macs", accuracy=99)
    with pytest.raises(InputError, match="'latency' was not searched for"):
        result.best("latency")
    assert result.to_frame()["pareto"].tolist() == [True, True, False, False, True, False]
    assert repr(result) == "SearchResult('by hand', 6 trials, 3 on the Pareto front)"
    assert result._repr_html_().count("<tr") == 4


def test_the_front_is_that_of_optuna() -> None:
    result = run(n_trials=20)
    assert {trial.number for trial in result.pareto} <= {trial.number for trial in result.study.best_trials}
    values = {tuple(trial.values.values()) for trial in result.pareto}
    assert values == {tuple(trial.values or ()) for trial in result.study.best_trials}


def test_the_same_seed_tries_the_same() -> None:
    first, second = (run(seed=3).trials for _ in range(2))
    assert [dict(trial.choices) for trial in first] == [dict(trial.choices) for trial in second]


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_study_goes_on_where_it_was_stored(storage: str, tmp_path: Path) -> None:
    where = f"sqlite:///{tmp_path}/study.db" if storage == "sqlite" else str(tmp_path / "study.log")
    first = run(n_trials=4, storage=where, study_name="shared")
    second = run(n_trials=3, storage=where, study_name="shared", seed=1)
    assert len(first.trials) == 4 and len(second.trials) == 7
    for before, after in zip(first.trials, second.trials, strict=False):
        assert before.plan == after.plan and dict(before.values) == dict(after.values)
    with pytest.raises(InputError, match="'shared' has the objectives accuracy, macs, not accuracy, params"):
        run(("accuracy", "params"), storage=where, study_name="shared")


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    code = textwrap.dedent(
        """
        import sys
        sys.path.insert(0, {tests!r})
        from test_search import run
        run(n_trials=3, storage={where!r}, study_name="both", seed=int(sys.argv[1]))
        """
    ).format(tests=str(Path(__file__).parent), where=str(tmp_path / "both.log"))
    workers = [subprocess.Popen([sys.executable, "-c", code, str(seed)]) for seed in (1, 2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    result = run(n_trials=1, storage=str(tmp_path / "both.log"), study_name="both")
    assert len(result.trials) == 7 and len({trial.number for trial in result.trials}) == 7


def test_criteria_and_scopes_can_be_chosen_too() -> None:
    torch.manual_seed(0)
    model, x = digits_resnet().eval(), torch.randn(2, 1, 8, 8)
    prepared: list[str] = []

    def prepare(pruner: StructuredPruner) -> None:
        prepared.append(pruner.importance_name)
        pruner.collect_activations([x], progress=False)

    space = SearchSpace("stage", 0.6, 0.2, ("wanda", "l1"), ("local", "global", "isomorphic"))
    options: dict[str, Any] = {"verify": False, "min_channels": 4, "ignored_layers": ["block3"]}

    def evaluate(pruned: nn.Module) -> float:
        return float(count_parameters(pruned) % 97)

    result = search_plans(
        model, x, evaluate, n_trials=10, space=space, prepare=prepare, seed=0, progress=False, **options
    )
    assert prepared == [trial.choices["importance"] for trial in result.trials]
    assert {trial.choices["scope"] for trial in result.trials} == {"local", "global", "isomorphic"}
    for trial in result.trials:
        pruned: Any = trial.apply(model)
        assert pruned.conv1.out_channels >= 4
        assert torch.equal(pruned.block3.conv1.weight, model.block3.conv1.weight)
        local = trial.choices["scope"] == "local"
        assert ("ratio" in trial.choices) != local
        assert all(value <= 0.6 + 1e-9 for name, value in trial.choices.items() if name.startswith("ratio"))
        assert trial.plan.settings["global_pruning"] == (trial.choices["scope"] == "global")


def test_latency_can_be_an_objective_and_evaluation_may_train() -> None:
    net, x = make_net()
    before = copy.deepcopy(net.state_dict())

    def evaluate(model: nn.Module) -> float:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        return 1.0

    result = search_plans(net, x, evaluate, objectives=("accuracy", "latency"), n_trials=2, progress=False)
    assert all(trial.values["latency"] > 0 for trial in result.trials)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"objectives": ("accuracy",)}, "give two or more of accuracy, params, macs, latency"),
        ({"objectives": ("accuracy", "size")}, "give two or more of"),
        ({"objectives": ("macs", "macs")}, "give two or more of"),
        ({"n_trials": 0}, "n_trials is 0"),
        ({"evaluate": 3}, "evaluate is 3; give a function"),
        ({"evaluate": lambda model: None}, "evaluate returned None"),
        ({"prepare": 3}, "prepare is 3"),
        ({"pruning_ratio": 0.5}, "pruning_ratio is chosen by the search"),
        ({"ignored_layers": ["9"]}, "no layer named '9'"),
        ({"ignored_layers": [nn.Linear]}, "no group that can be pruned"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], words: str) -> None:
    net, x = make_net()
    arguments = {"evaluate": width, "n_trials": 1, "progress": False, **arguments}
    with pytest.raises(InputError, match=words):
        search_plans(net, x, arguments.pop("evaluate"), **arguments)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"by": "layer"}, "by is 'layer'"),
        ({"max_ratio": 1.0}, "max_ratio is 1.0"),
        ({"step": 0.0}, "step is 0.0"),
        ({"scopes": ("local", "all")}, "scopes is"),
        ({"importances": ()}, "at least one criterion"),
    ],
)
def test_bad_spaces_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        SearchSpace(**fields)


def test_without_optuna_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'cleanai\[search\]'"):
        run()
