"""Experiments: a scenario from a trained model to a report, with one call or one command, resumable.

>>> from cleanai.experiments import make_config
>>> make_config("TS1", "smoke").data
'digits'
"""

from __future__ import annotations

from cleanai.experiments.checkpoints import Checkpoint, load_checkpoint, read_checkpoint, save_checkpoint
from cleanai.experiments.config import ExperimentConfig
from cleanai.experiments.cut_slides import matrix_table, mean_accuracies
from cleanai.experiments.cut_study import Cut, CutStudy, ScoreExample, load_study
from cleanai.experiments.document import facts_table, method_document, scenario_document
from cleanai.experiments.figures import plot_method_accuracies, plot_removed_shares, plot_stage_costs
from cleanai.experiments.pages import Document, draw_pages, save_document
from cleanai.experiments.presentation import export_presentation, make_slides
from cleanai.experiments.results import (
    DataFacts,
    Environment,
    ExperimentResults,
    MethodResult,
    ModelState,
    Preparation,
    PruneResult,
    TuneResult,
    load_results,
    load_stages,
)
from cleanai.experiments.runner import run_experiment
from cleanai.experiments.scenarios import make_config, write_command
from cleanai.experiments.sweep import run_sweep
from cleanai.experiments.tables import (
    agreement_table,
    comparison_table,
    methods_table,
    overview_table,
    settings_tables,
)

__all__ = [
    "Checkpoint",
    "Cut",
    "CutStudy",
    "DataFacts",
    "Document",
    "Environment",
    "ExperimentConfig",
    "ExperimentResults",
    "MethodResult",
    "ModelState",
    "Preparation",
    "PruneResult",
    "ScoreExample",
    "TuneResult",
    "agreement_table",
    "comparison_table",
    "draw_pages",
    "export_presentation",
    "facts_table",
    "load_checkpoint",
    "load_results",
    "load_stages",
    "load_study",
    "make_config",
    "make_slides",
    "matrix_table",
    "mean_accuracies",
    "method_document",
    "methods_table",
    "overview_table",
    "plot_method_accuracies",
    "plot_removed_shares",
    "plot_stage_costs",
    "read_checkpoint",
    "run_experiment",
    "run_sweep",
    "save_checkpoint",
    "save_document",
    "scenario_document",
    "settings_tables",
    "write_command",
]
