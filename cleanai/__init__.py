"""CleanAI: structured pruning of trained PyTorch models by real tensor slicing, proven and reported."""

from __future__ import annotations

from cleanai.calibration import ActivationStatistics, collect_statistics
from cleanai.errors import CleanAIError, InputError, PlanError, TraceError, VerificationError
from cleanai.evaluate import ModelMetrics, count_macs, evaluate_model, measure_latency, measure_model
from cleanai.importance import (
    ActivationImportance,
    Importance,
    MagnitudeImportance,
    RandomImportance,
    ScoredGroup,
    WandaImportance,
    WeightActivationImportance,
)
from cleanai.plan import Plan
from cleanai.pruner import StructuredPruner, analyze_model
from cleanai.report import Report
from cleanai.rules import register_rule, unregister_rule
from cleanai.slicing import slice_model
from cleanai.trace import trace_model
from cleanai.verify import Verification, verify_pruning

__version__ = "0.1.0"

__all__ = [
    "ActivationImportance",
    "ActivationStatistics",
    "CleanAIError",
    "Importance",
    "InputError",
    "MagnitudeImportance",
    "ModelMetrics",
    "Plan",
    "PlanError",
    "RandomImportance",
    "Report",
    "ScoredGroup",
    "StructuredPruner",
    "TraceError",
    "Verification",
    "VerificationError",
    "WandaImportance",
    "WeightActivationImportance",
    "analyze_model",
    "collect_statistics",
    "count_macs",
    "evaluate_model",
    "measure_latency",
    "measure_model",
    "register_rule",
    "slice_model",
    "trace_model",
    "unregister_rule",
    "verify_pruning",
]
