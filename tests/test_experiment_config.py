"""The settings of experiments: typed, in range, saved and read back; scenarios, profiles, methods and commands."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleanai import InputError
from cleanai.experiments.checkpoints import Names
from cleanai.experiments.config import STAGES, ExperimentConfig, describe_settings, parse_settings, stage_of
from cleanai.experiments.scenarios import PROFILES, SCENARIOS, find_method, make_config, write_command
from cleanai.importance import NeuronCoverageImportance


def test_scenarios_are_what_the_brief_says() -> None:
    facts = {
        name: (c.model, c.data, c.pruning_ratio, c.global_pruning, c.methods)
        for name, c in ((name, make_config(name)) for name in SCENARIOS)
    }
    two, four = ("coverage", "wanda"), ("coverage", "wanda", "magnitude", "taylor")
    assert facts == {
        "TS1": ("resnet18", "cifar10", 0.2, False, two),
        "TS2": ("resnet50", "auto", 0.3, False, two),
        "TS3": ("resnet50", "auto", 0.1, False, four),
        "TS4": ("resnet50", "auto", 0.1, True, four),
    }
    first = make_config("TS1")
    assert (first.iterative_steps, first.calibration_batches, first.max_batches) == (5, 50, None)
    assert (first.prepare_epochs, first.finetune_epochs, make_config("TS2").finetune_epochs) == (20, 30, 10)


def test_settings_of_the_user_come_last() -> None:
    config = make_config("TS1", "smoke", prepare_epochs="2", model="resnet20", data="cifar10")
    assert (config.prepare_epochs, config.model, config.iterative_steps) == (2, "resnet20", 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ratio": 0.3}, ["no setting 'ratio'", "pruning_ratio", "seed"]),
        ({"pruning_ration": 0.3}, ["did you mean 'pruning_ratio'"]),
        ({"pruning_ratio": 1}, ["pruning_ratio is 1", "below 1"]),
        ({"pruning_ratio": "nan"}, ["pruning_ratio is nan"]),
        ({"pruning_ratio": "much"}, ["pruning_ratio is 'much'", "a number"]),
        ({"seed": 1.5}, ["seed is 1.5", "whole number"]),
        ({"seed": True}, ["seed is True"]),
        ({"target": "flops"}, ["channels or params or macs or latency"]),
        ({"global_pruning": "maybe"}, ["true or false"]),
        ({"methods": "coverage,coverage"}, ["each once"]),
        ({"methods": ""}, ["methods"]),
        ({"train_images": 0}, ["train_images is 0", "at least 1"]),
        ({"distillation_weight": 1.5}, ["at most 1"]),
        ({"model": ""}, ["model"]),
    ],
)
def test_what_cannot_be_used_is_named(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        make_config("TS1", **settings)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(("scenario", "profile"), [("TS9", "full"), ("TS1", "fast")])
def test_choices_are_listed(scenario: str, profile: str) -> None:
    with pytest.raises(InputError, match=r"TS1, TS2, TS3, TS4|full, quick, smoke"):
        make_config(scenario, profile)


def test_texts_become_values() -> None:
    config = ExperimentConfig().replace(
        **parse_settings(["seed=3", "global_pruning=true", "round_to=none", "clip_norm=1.5", "methods=taylor, wanda"])
    )
    assert (config.seed, config.global_pruning, config.round_to) == (3, True, None)
    assert (config.clip_norm, config.methods) == (1.5, ("taylor", "wanda"))
    with pytest.raises(InputError, match="key=value"):
        parse_settings(["seed"])


def test_saved_settings_are_read_back(tmp_path: Path) -> None:
    config = make_config("TS4", "quick", pruning_ratio=0.15, patience=3)
    assert ExperimentConfig.load(config.save(tmp_path / "config.json")) == config
    (tmp_path / "other.json").write_text("{}")
    for name in ("other.json", "missing.json"):
        with pytest.raises(InputError, match=name):
            ExperimentConfig.load(tmp_path / name)
    data = {**json.loads((tmp_path / "config.json").read_text()), "speed": 1}
    (tmp_path / "other.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="speed"):
        ExperimentConfig.load(tmp_path / "other.json")


@given(
    scenario=st.sampled_from(sorted(SCENARIOS)),
    profile=st.sampled_from(sorted(PROFILES)),
    ratio=st.floats(0, 0.99),
    seed=st.integers(0, 9),
    methods=st.lists(st.sampled_from(["coverage", "wanda", "fpgm"]), min_size=1, unique=True),
)
def test_the_command_written_down_makes_the_same_settings(
    scenario: str, profile: str, ratio: float, seed: int, methods: list[str]
) -> None:
    config = make_config(scenario, profile, pruning_ratio=ratio, seed=seed, methods=tuple(methods))
    words = shlex.split(write_command(config))
    assert words[:3] == ["cleanai", "run", scenario]
    named = words[words.index("--profile") + 1] if "--profile" in words else "full"
    pairs = words[words.index("--set") + 1 :] if "--set" in words else []
    assert make_config(scenario, named, **parse_settings(pairs)) == config


def test_a_stage_depends_on_its_settings_and_those_before() -> None:
    config = ExperimentConfig()
    sizes = [len(config.settings_until(stage)) for stage in STAGES]
    assert sizes == sorted(set(sizes))
    assert "pruning_ratio" not in config.settings_until("prepare")
    assert {"seed", "pruning_ratio"} <= set(config.settings_until("prune"))
    assert not {"device", "language", "workers"} & set(config.settings_until("report"))
    assert {stage_of(field.name) for field in dataclasses.fields(config)} == {*STAGES, "machine"}


def test_the_docstring_says_of_every_setting_what_the_command_line_says() -> None:
    text = " ".join((ExperimentConfig.__doc__ or "").split())
    for field in dataclasses.fields(ExperimentConfig):
        assert f" {field.name}: {field.metadata['help']}. " in text, field.name


def test_every_setting_is_described() -> None:
    described = describe_settings()
    assert [name for name, *_ in described] == [field.name for field in dataclasses.fields(ExperimentConfig)]
    assert all(meaning for *_, meaning in described)


def test_methods_have_the_codes_of_the_file_names() -> None:
    codes = {name: find_method(name).code for name in ("coverage", "wanda", "magnitude", "taylor")}
    assert codes == {"coverage": "NC", "wanda": "W", "magnitude": "M", "taylor": "T"}
    assert find_method("coverage_combined").code not in codes.values()
    with pytest.raises(InputError, match="did you mean 'wanda'"):
        find_method("wandaa")


def test_coverage_is_measured_as_the_settings_say() -> None:
    config = make_config("TS1", metric="frequency", threshold=0.5)
    made = find_method("coverage").make(config)
    assert isinstance(made, NeuronCoverageImportance)
    assert (made.metric, made.threshold) == ("frequency", 0.5)


def test_files_have_the_names_of_the_brief() -> None:
    names = Names("TS1", "ResNet18", "CIFAR10")
    states = ("pretrained", "FT_epoch5", "FT_final")
    assert [str(names.checkpoint(state)) for state in states] == [
        f"checkpoints/TS1/ResNet18_CIFAR10_{state}.safetensors" for state in states
    ]
    assert str(names.checkpoint("pruned_W", "WANDA")) == (
        "checkpoints/TS1_WANDA_ResNet18_CIFAR10/ResNet18_CIFAR10_pruned_W.safetensors"
    )
    assert str(names.report(".pdf", "Coverage")) == "reports/TS1_Coverage_ResNet18_CIFAR10.pdf"
    assert str(names.report(".pdf")) == "reports/TS1_ResNet18_CIFAR10.pdf"
