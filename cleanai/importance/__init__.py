"""Importance scores: one number per unit of a group, higher = keep.

A scorer is any callable that takes a `ScoredGroup` and returns a tensor with one score per unit, or None where it
cannot judge the group (which is then left alone and named). What must be collected before, it says in attributes:
see `Importance`.
"""

from __future__ import annotations

import functools

from cleanai.importance.activations import (
    COVERAGE,
    ActivationImportance,
    AdaptiveNeuronCoverageImportance,
    NeuronCoverageImportance,
    WandaImportance,
)
from cleanai.importance.gradients import HessianImportance, TaylorImportance
from cleanai.importance.group import (
    NORMALIZERS,
    REDUCTIONS,
    Criterion,
    Importance,
    MemberCriterion,
    ScoredGroup,
    normalize_scores,
)
from cleanai.importance.mixes import MixedImportance, WeightActivationImportance
from cleanai.importance.names import CRITERIA, add_criteria, find_importance
from cleanai.importance.reconstruction import ReconstructionImportance
from cleanai.importance.weights import (
    BNScaleImportance,
    FPGMImportance,
    LAMPImportance,
    MagnitudeImportance,
    RandomImportance,
)

add_criteria(
    {
        "l1": functools.partial(MagnitudeImportance, 1),
        "l2": functools.partial(MagnitudeImportance, 2),
        "magnitude": MagnitudeImportance,
        "bn_scale": BNScaleImportance,
        "fpgm": FPGMImportance,
        "lamp": LAMPImportance,
        "taylor": TaylorImportance,
        "hessian": HessianImportance,
        "reconstruction": ReconstructionImportance,
        "activation": ActivationImportance,
        "wanda": WandaImportance,
        "weight_activation": WeightActivationImportance,
        "coverage": NeuronCoverageImportance,
        "coverage_mean_absolute": functools.partial(NeuronCoverageImportance, "mean_absolute"),
        "coverage_frequency": functools.partial(NeuronCoverageImportance, "frequency"),
        "coverage_combined": functools.partial(NeuronCoverageImportance, "combined"),
        "adaptive_coverage": AdaptiveNeuronCoverageImportance,
        "random": RandomImportance,
    }
)

__all__ = [
    "COVERAGE",
    "CRITERIA",
    "NORMALIZERS",
    "REDUCTIONS",
    "ActivationImportance",
    "AdaptiveNeuronCoverageImportance",
    "BNScaleImportance",
    "Criterion",
    "FPGMImportance",
    "HessianImportance",
    "Importance",
    "LAMPImportance",
    "MagnitudeImportance",
    "MemberCriterion",
    "MixedImportance",
    "NeuronCoverageImportance",
    "RandomImportance",
    "ScoredGroup",
    "TaylorImportance",
    "WandaImportance",
    "WeightActivationImportance",
    "add_criteria",
    "find_importance",
    "normalize_scores",
]
