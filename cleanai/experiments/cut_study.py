"""Many cuts of one trained network, measured and stored: what the slides about criteria and strategies are drawn from.

Shares are fractions, accuracies percent.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cleanai.errors import InputError
from cleanai.experiments.results import Environment, find_stored, to_plain
from cleanai.serialize import format_json, many, read_record, write_text

FORMAT = "cleanai-cut-study"


@dataclass(frozen=True, kw_only=True)
class CutSetting:
    """How a network was cut.

    Attributes:
        criterion: the name of the importance.
        ratio: the share of the MACs that was to go.
        scope: "global" where the channels of all layers were ranked together, "local" where each layer gave its share.
        steps: in how many steps; in several, scores were collected afresh before each.
        recovery: how it was repaired without training, after every step.
        inverted: the scores were negated, so that the most important channels went: the mistake that a slide shows.
        seed: of random scores.
    """

    criterion: str
    ratio: float
    scope: str = "global"
    steps: int = 1
    recovery: str = "none"
    inverted: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Cut(CutSetting):
    """What a cut gave: accuracy on the test images, and the shares of MACs and parameters that are left.

    Attributes:
        criterion: the name of the importance.
        ratio: the share of the MACs that was to go, 0 to 1.
        scope: "global" where the channels of all layers were ranked together, "local" where each layer gave its share.
        steps: in how many steps; in several, scores were collected afresh before each.
        recovery: how it was repaired without training, after every step.
        inverted: the scores were negated, so that the most important channels went: the mistake that a slide shows.
        seed: of random scores.
        accuracy: on the test images, in percent.
        macs_kept: the share of the MACs that is left, 0 to 1.
        parameters_kept: the share of the parameters that is left.
        seconds: of scoring, cutting, proof and repair, by the clock, whatever else the machine did.

    Example:
        >>> cut = Cut(criterion="l2", ratio=0.5, accuracy=46.0, macs_kept=0.5, parameters_kept=0.6, seconds=2.0)
        >>> cut.scope, cut.steps, cut.recovery
        ('global', 1, 'none')
    """

    accuracy: float
    macs_kept: float
    parameters_kept: float
    seconds: float

    @property
    def setting(self) -> CutSetting:
        """How it was made."""
        return CutSetting(**{part.name: getattr(self, part.name) for part in dataclasses.fields(CutSetting)})


@dataclass(frozen=True)
class ScoreExample:
    """The scores of one group, and which of its channels go when the lowest, or by mistake the highest, are removed.

    Attributes:
        criterion: the name of the importance.
        group: the group's name.
        ratio: the share of the MACs that was to go from the network.
        scores: one number per channel, higher = keep.
        removed: the channels that go.
        removed_inverted: those that go where the scores are negated.

    Example:
        >>> example = ScoreExample("l2", "conv1", 0.5, scores=(0.1, 0.9, 0.5), removed=(0,), removed_inverted=(1,))
        >>> [example.scores[channel] for channel in example.removed]
        [0.1]
    """

    criterion: str
    group: str
    ratio: float
    scores: tuple[float, ...]
    removed: tuple[int, ...]
    removed_inverted: tuple[int, ...]


@dataclass(frozen=True)
class CutStudy:
    """A trained network, its cuts, and where they were measured; `load_study` reads a stored one.

    Attributes:
        model: its name.
        data: the name of the data.
        accuracy: of the untouched network on the test images, in percent.
        macs: of the untouched network, for one image.
        parameters: of the untouched network.
        test_images: how many every accuracy was measured on.
        calibration_images: what scores and repairs looked at; none of them is a test image.
        environment: where and how it was measured.
        cuts: what was measured.
        examples: scores of single groups.

    Example:
        From the study that the repository holds:

        >>> study = load_study()
        >>> study.model, study.test_images, study.macs
        ('ResNet-20', 10000, 40551040)
    """

    model: str
    data: str
    accuracy: float
    macs: int
    parameters: int
    test_images: int
    calibration_images: int
    environment: Environment
    cuts: tuple[Cut, ...] = ()
    examples: tuple[ScoreExample, ...] = ()

    def find(self, **settings: Any) -> list[Cut]:
        """The cuts with these settings, by ratio.

        Args:
            settings: fields of `Cut`. One that is not named is the usual one; only criterion and ratio may be any.

        Example:
            >>> [cut.ratio for cut in load_study().find(criterion="wanda", recovery="least_squares")]
            [0.3, 0.6]
        """
        wanted = {"scope": "global", "steps": 1, "recovery": "none", "inverted": False, **settings}
        found = [cut for cut in self.cuts if all(getattr(cut, name) == value for name, value in wanted.items())]
        return sorted(found, key=lambda cut: cut.ratio)

    def save(self, path: str | Path) -> Path:
        """Writes the study as JSON."""
        write_text(Path(path), format_json({"format": FORMAT, **to_plain(self)}))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> CutStudy:
        """Reads what `save` wrote; executes no code.

        Raises:
            InputError: the file is missing or something else.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data.pop("format", None) != FORMAT:
                raise ValueError(f'its "format" is not "{FORMAT}"')
            return read_record(cls, data, **_PARTS)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path} holds no study of cuts: {error}") from error


def load_study(name: str = "resnet20_cifar10") -> CutStudy:
    """A study of the nearest ``data/results/presentation`` at or above the working folder, by its name.

    Args:
        name: the file's name without its ending.

    Raises:
        InputError: there is none of that name.

    Example:
        >>> load_study("resnet20_cifar10").test_images
        10000
    """
    return CutStudy.load(find_stored().parent / "presentation" / f"{name}.json")


def _read_example(data: dict[str, Any]) -> ScoreExample:
    return read_record(ScoreExample, data, scores=tuple, removed=tuple, removed_inverted=tuple)


_PARTS = {
    "environment": lambda data: read_record(Environment, data),
    "cuts": many(lambda data: read_record(Cut, data)),
    "examples": many(_read_example),
}
