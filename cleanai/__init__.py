"""CleanAI: structured pruning of trained PyTorch models by real tensor slicing, proven and reported."""

from __future__ import annotations

from cleanai.analysis import analyze_model
from cleanai.calibration import ActivationStatistics, collect_statistics
from cleanai.comparison import CriteriaComparison, CutAccuracies, compare_criteria, measure_criteria
from cleanai.coverage import CoverageAnalyzer, CoveragePruner
from cleanai.errors import CleanAIError, InputError, PlanError, TraceError, VerificationError
from cleanai.evaluate import ModelMetrics, count_macs, evaluate_model, measure_latency, measure_model
from cleanai.export import Export, export_onnx, export_program, export_torchscript
from cleanai.gradients import GradientStatistics, collect_gradients
from cleanai.history import History, HistoryEntry, hash_architecture, history_of
from cleanai.importance import (
    ActivationImportance,
    AdaptiveNeuronCoverageImportance,
    BNScaleImportance,
    FPGMImportance,
    HessianImportance,
    Importance,
    LAMPImportance,
    MagnitudeImportance,
    MixedImportance,
    NeuronCoverageImportance,
    RandomImportance,
    ReconstructionImportance,
    ScoredGroup,
    TaylorImportance,
    WandaImportance,
    WeightActivationImportance,
)
from cleanai.optimizers import migrate_optimizer
from cleanai.plan import Plan
from cleanai.pruner import StructuredPruner
from cleanai.recover import Recovery, recover_model
from cleanai.report import Report
from cleanai.rules import register_rule, unregister_rule
from cleanai.search import SearchResult, SearchSpace, search_plans
from cleanai.sensitivity import Sensitivity, analyze_sensitivity, auto_ratio
from cleanai.slicing import slice_model
from cleanai.state import load_pruned, read_history, replay_history, save_pruned
from cleanai.steps import PruningStep
from cleanai.trace import trace_model
from cleanai.undo import rollback
from cleanai.verify import Verification, verify_pruning

__version__ = "0.1.0"

__all__ = [
    "ActivationImportance",
    "ActivationStatistics",
    "AdaptiveNeuronCoverageImportance",
    "BNScaleImportance",
    "CleanAIError",
    "CoverageAnalyzer",
    "CoveragePruner",
    "CriteriaComparison",
    "CutAccuracies",
    "Export",
    "FPGMImportance",
    "GradientStatistics",
    "HessianImportance",
    "History",
    "HistoryEntry",
    "Importance",
    "InputError",
    "LAMPImportance",
    "MagnitudeImportance",
    "MixedImportance",
    "ModelMetrics",
    "NeuronCoverageImportance",
    "Plan",
    "PlanError",
    "PruningStep",
    "RandomImportance",
    "ReconstructionImportance",
    "Recovery",
    "Report",
    "ScoredGroup",
    "SearchResult",
    "SearchSpace",
    "Sensitivity",
    "StructuredPruner",
    "TaylorImportance",
    "TraceError",
    "Verification",
    "VerificationError",
    "WandaImportance",
    "WeightActivationImportance",
    "analyze_model",
    "analyze_sensitivity",
    "auto_ratio",
    "collect_gradients",
    "collect_statistics",
    "compare_criteria",
    "count_macs",
    "evaluate_model",
    "export_onnx",
    "export_program",
    "export_torchscript",
    "hash_architecture",
    "history_of",
    "load_pruned",
    "measure_criteria",
    "measure_latency",
    "measure_model",
    "migrate_optimizer",
    "read_history",
    "recover_model",
    "register_rule",
    "replay_history",
    "rollback",
    "save_pruned",
    "search_plans",
    "slice_model",
    "trace_model",
    "unregister_rule",
    "verify_pruning",
]
