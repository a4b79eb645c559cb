"""What a pruning run did, as the records of its report."""

from __future__ import annotations

from collections.abc import Sequence

from cleanai.coupling import Group
from cleanai.evaluate import ModelMetrics
from cleanai.latency import LatencyRatio
from cleanai.plan import GroupCut, Plan
from cleanai.report import BudgetRecord, GroupRecord, LayerRecord, ProofRecord
from cleanai.select import is_within
from cleanai.verify import Verification


def make_group_record(cut: GroupCut, groups: Sequence[Group], plan: Plan) -> GroupRecord:
    """What went from one group, layer by layer."""
    sizes = {(c.parameter, c.dim): c for c in plan.cuts}
    layers = []
    for group in groups:
        if group.name == cut.name:
            for member in group.members:
                change = sizes.get((member.parameter, member.dim))
                gone = any(is_within(member.layer, path) for path in plan.dropped_blocks)
                after = 0 if gone else change.kept_size if change is not None else member.size
                layers.append(LayerRecord(member.layer, member.parameter, member.dim, member.role, member.size, after))
    return GroupRecord(
        name=cut.name,
        kind=cut.kind,
        layers=tuple(layers),
        units_before=cut.size,
        units_after=cut.kept_size,
        removed=cut.dropped,
        scores=cut.scores,
        asked_ratio=cut.asked_ratio,
        note=cut.note,
    )


def make_proof_record(verification: Verification | None) -> ProofRecord:
    """The proof as the report shows it; one that says so where there was none."""
    if verification is None:
        return ProofRecord(None, None, None, "", 0, 0.0, "verification was switched off")
    return ProofRecord(
        verification.passed,
        verification.max_relative_error,
        verification.tolerance,
        verification.dtype,
        verification.runs,
        verification.seconds,
    )


def make_budget_record(plan: Plan, metrics: Sequence[ModelMetrics], measured: LatencyRatio | None) -> BudgetRecord:
    """What was asked and what was reached, in all measures, and why they differ."""
    original, pruned = metrics[0], metrics[min(1, len(metrics) - 1)]
    latency = None
    if original.latency is not None and pruned.latency is not None:
        latency = 1 - pruned.latency.median_ms / original.latency.median_ms
    if measured is not None:  # timed in turns, which is what was asked for
        latency = 1 - measured.ratio
    reached = {
        "channels": plan.dropped_units / plan.units if plan.units else 0.0,
        "params": 1 - pruned.parameters / original.parameters if original.parameters else 0.0,
        "macs": 1 - pruned.macs / original.macs if original.macs else 0.0,
    }
    settings = plan.settings
    target, asked = str(settings["target"]), float(settings["pruning_ratio"])
    found = reached.get(target, latency or 0.0)
    causes = []
    if measured is not None:
        causes.append(f"latency timed in {measured.pairs} pairs with the original, IQR {measured.spread:.3f}")
    if abs(found - asked) > 0.01:
        causes += ["groups shrink by whole units only" if plan.units else "no group can be pruned"]
        causes += ["layer_pruning_ratios ask for other shares"] if settings["layer_pruning_ratios"] else []
        causes += ["max_pruning_ratio holds groups back"] if settings["max_pruning_ratio"] < 1 else []
        causes += ["min_channels holds groups back"] if settings["min_channels"] > 1 else []
        causes += ["round_to keeps multiples"] if settings["round_to"] > 1 else []
        causes += ["residual blocks were dropped whole"] if plan.dropped_blocks else []
        causes += ["some groups were not scored"] if any(group.scores is None for group in plan.groups) else []
    return BudgetRecord(target, asked, found, **reached, latency=latency, note="; ".join(causes))
