"""Reconstruction error: what the best least-squares repair leaves over, chosen jointly."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cleanai.errors import InputError
from cleanai.importance.group import Criterion, ScoredGroup
from cleanai.matrices import LayerMatrix, LayerMoments


@dataclass
class _Reader:
    """One matrix that reads the group: the least-squares weights, the inverse moments, and each unit's columns.

    ``columns`` ([units, most]) are padded with ``empty`` columns, which hold nothing; ``reads`` says which units it
    reads at all.
    """

    weight: Tensor
    inverse: Tensor
    columns: Tensor
    reads: Tensor
    empty: Tensor

    def losses(self, units: Tensor) -> Tensor:
        """How much the error grows when each of some units goes alone, the rest repaired."""
        own = self.columns[units]
        inner = self.inverse[own[:, :, None], own[:, None, :]]
        weight = self.weight[:, own].permute(1, 2, 0)  # [units, columns, outputs]
        loss = (weight * torch.linalg.solve(inner, weight)).sum((1, 2))
        return torch.where(self.reads[units], loss, 0.0)

    def remove(self, unit: int) -> None:
        """Takes a unit away; the other columns take over what they can (Hassibi and Stork, 1993, eq. 5)."""
        if not self.reads[unit]:
            return
        own = self.columns[unit]
        share = torch.linalg.solve(self.inverse[own][:, own], self.inverse[own])
        self.weight -= self.weight[:, own] @ share
        self.inverse -= self.inverse[:, own] @ share
        self.inverse[self.empty, self.empty] = 1.0


@dataclass(frozen=True, repr=False)
class ReconstructionImportance(Criterion):
    """Reconstruction error: what is lost for the layers that read a unit, after the best repair of their weights.

    Units go one by one, each time the one whose loss is smallest given those that are gone: with H the inverse of the
    covariance of a reader's rows and W its repaired weights, removing columns g costs ``Σ_o d_o w_og H_gg⁻¹ w_ogᵀ``,
    then ``W -= W_g H_gg⁻¹ H_g`` and ``H -= H_:g H_gg⁻¹ H_g`` (Hassibi and Stork, "Second Order Derivatives for Network
    Pruning: Optimal Brain Surgeon", 1993, for whole channels). ``d_o`` says by what share of its variance an error in
    output o disturbs the output of the block around the reader, so that losses add up over readers and compare across
    layers. The score is the loss at a unit's turn, or an earlier one's if that was larger.

    The scores are comparable across groups (``normalizer="none"``) and best ranked by loss per cost (``cost_aware``).
    The repair itself is that of `cleanai.recover_model`.

    Args:
        ridge: what is added to the diagonal of each covariance, in shares of its mean; more where there are few rows
            for the columns, as in the repair.
        normalizer: see `cleanai.importance.Criterion`.

    Raises:
        InputError: ``ridge`` is not positive.

    Example:
        >>> from torch import nn
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():  # the first two units always do the same, so one of them can take over from the other
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])), net[2].weight.fill_(1.0)
        >>> pruner = StructuredPruner(net, torch.zeros(1, 2), ReconstructionImportance())
        >>> _ = pruner.collect_activations([torch.randn(512, 2)], progress=False)
        >>> scores = pruner.score_groups()["0"]
        >>> int(scores.argmin()) in (0, 1), bool(scores.min() < 0.01 * scores[2])
        (True, True)
    """

    ridge: float = 1e-3
    normalizer: str = field(default="none", kw_only=True)

    needs_activations = True
    needs_moments = True
    cost_aware = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.ridge, bool) or not isinstance(self.ridge, (int, float)) or not self.ridge > 0:
            raise InputError(f"ReconstructionImportance: ridge is {self.ridge!r}; it must be positive")

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        """The scores of a group: shape [size]; None where no layer with moments reads it."""
        readers = [reader for layer, seen in group.moments() for reader in self._list_readers(group, layer, seen)]
        if not readers:
            return None
        scores = torch.zeros(group.size, dtype=torch.float64)
        alive = torch.ones(group.size, dtype=torch.bool)
        floor = 0.0
        while alive.any():
            left = torch.nonzero(alive).flatten()
            losses = torch.stack([reader.losses(left) for reader in readers]).sum(0).clamp(min=0)
            # In large groups a few at a time: their losses hardly depend on each other.
            for place in losses.argsort(stable=True)[: max(1, len(left) // 64)].tolist():
                # Strictly ascending, so that equal scores do not undo the order.
                floor = max(float(losses[place]), floor * (1 + 1e-9))
                scores[left[place]] = floor
                alive[left[place]] = False
                for reader in readers:
                    reader.remove(int(left[place]))
        return scores

    def _list_readers(self, group: ScoredGroup, layer: str, seen: LayerMoments) -> list[_Reader]:
        units = group.units_read(layer)
        if units is None:
            return []
        module, covariance = group.modules[layer], seen.moments.covariance
        # What a block returns should be what it was: read by the identity.
        weights = LayerMatrix(module).weight if LayerMatrix.fits(module) else torch.eye(len(units))[None]
        groups, outputs, size = weights.shape
        if tuple(covariance.shape) != (groups, size, size) or tuple(seen.gain.shape) != (groups, outputs):
            raise InputError(
                f"the moments of {layer} are for other sizes than it has now: call collect_activations again"
            )
        found = []
        for number in range(groups):
            own = units.reshape(groups, -1)[number]
            if (own >= 0).any() and len(own) > 1:
                scaled = weights[number].double().cpu() * seen.gain[number].sqrt()[:, None]
                found.append(self._make_reader(scaled, covariance[number], own, seen, group.size))
        return found

    def _make_reader(
        self, weights: Tensor, covariance: Tensor, units: Tensor, seen: LayerMoments, size: int
    ) -> _Reader:
        count, taps = len(covariance), seen.taps
        places = [torch.nonzero(units == unit).flatten() for unit in range(size)]
        most = max(len(place) for place in places) * taps
        columns = torch.arange(count, count + most).repeat(size, 1)
        for unit, place in enumerate(places):
            own = (place[:, None] * taps + torch.arange(taps)).flatten()
            columns[unit, : len(own)] = own
        spread = covariance.diagonal()
        # What never changes is the bias's to make, however large the weights: the ridge would count them.
        weights = weights * (spread > 1e-12 * spread.mean())
        weight = torch.cat([weights, weights.new_zeros(len(weights), most)], 1)
        # With fewer rows than columns anything can be made from what is left, so far as the rows tell.
        lift = self.ridge * (1 + 100 * count / seen.moments.count) * covariance.diagonal().mean().clamp(min=1e-30)
        inverse = torch.eye(count + most, dtype=torch.float64)
        inverse[:count, :count] = torch.linalg.inv(covariance + lift * torch.eye(count, dtype=torch.float64))
        reads = torch.tensor([len(place) > 0 for place in places])
        return _Reader(weight, inverse, columns, reads, torch.arange(count, count + most))
