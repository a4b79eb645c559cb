"""Experiments: a scenario from a trained model to a report, with one call or one command, resumable.

>>> from cleanai.experiments import make_config
>>> make_config("TS1", "smoke").data
'digits'
"""

from __future__ import annotations

from cleanai.experiments.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint
from cleanai.experiments.config import ExperimentConfig
from cleanai.experiments.cut_study import CutStudy, load_study
from cleanai.experiments.document import method_document, save_document, scenario_document
from cleanai.experiments.presentation import export_presentation, make_slides
from cleanai.experiments.results import ExperimentResults, load_results, load_stages
from cleanai.experiments.runner import run_experiment
from cleanai.experiments.scenarios import make_config
from cleanai.experiments.sweep import run_sweep

__all__ = [
    "CutStudy",
    "ExperimentConfig",
    "ExperimentResults",
    "export_presentation",
    "load_checkpoint",
    "load_results",
    "load_stages",
    "load_study",
    "make_config",
    "make_slides",
    "method_document",
    "read_checkpoint",
    "run_experiment",
    "run_sweep",
    "save_checkpoint",
    "save_document",
    "scenario_document",
]
