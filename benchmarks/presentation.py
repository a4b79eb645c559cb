"""What the presentation shows of criteria and strategies: cuts of a trained ResNet-20, measured on all of CIFAR-10.

    CLEANAI_DATA=/path/to/data python -m benchmarks.presentation --threads 1
    python -m benchmarks.presentation --test-images 500 --output x.json    # a quick try

Nothing is trained. Every cut removes a share of the MACs and is proven; scores and repairs see calibration images
(training images) only. It takes 20 to 30 minutes of one core. Each cut is stored as it is measured and not measured
again, so a run can be interrupted. `notebooks/05_presentation_figures.ipynb` draws the figures.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from benchmarks.subjects import SUBJECTS, Amounts, Subject
from cleanai.errors import InputError
from cleanai.evaluate import count_macs, count_parameters, evaluate_model
from cleanai.experiments.cut_study import Cut, CutSetting, CutStudy, ScoreExample
from cleanai.experiments.results import Environment
from cleanai.experiments.runner import describe_machine, list_versions
from cleanai.importance import Importance, RandomImportance, ScoredGroup, find_importance
from cleanai.pruner import StructuredPruner

if TYPE_CHECKING:
    from torch.utils.data import TensorDataset

RESULTS = Path(__file__).parent.parent / "data" / "results" / "presentation" / "resnet20_cifar10.json"
MODEL = "resnet20"
CRITERIA = ("coverage", "wanda", "weight_activation", "magnitude", "taylor", "random")
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
FEW_RATIOS = (0.3, 0.6)  # of what takes long
WRONG_RATIOS = (0.1, 0.2, 0.3)
STRATEGIES = ("coverage", "wanda")  # whose global and local, one-shot and iterative cuts are compared
STEPS = 5
SEEDS = 3
CALIBRATION_IMAGES = 512
BATCH = 125  # of the evaluation; this size is the fastest on one core
EXAMPLE = ("coverage", "layer3.0.conv1", 0.2)


class Adapted:
    """A criterion that is told to collect afresh before every step, or whose sign is turned round by mistake."""

    def __init__(self, criterion: Importance, inverted: bool) -> None:
        self._criterion = criterion
        self._sign = -1 if inverted else 1
        self.recollect = bool(getattr(criterion, "needs_activations", False))

    def __call__(self, group: ScoredGroup) -> Tensor | None:
        """The scores of the criterion, negated where it is inverted."""
        scores = self._criterion(group)
        return None if scores is None else self._sign * scores

    def __getattr__(self, name: str) -> Any:
        return getattr(self._criterion, name)


def list_settings() -> list[CutSetting]:
    """All cuts to measure, the quick ones first."""
    plain = [CutSetting(criterion=name, ratio=ratio) for name, ratio in product(CRITERIA, RATIOS)]
    wrong = [CutSetting(criterion=EXAMPLE[0], ratio=ratio, inverted=True) for ratio in WRONG_RATIOS]
    seeds = [replace(each, seed=seed) for each, seed in product(plain, range(1, SEEDS)) if each.criterion == "random"]
    compared = [CutSetting(criterion=name, ratio=ratio) for name, ratio in product(STRATEGIES, FEW_RATIOS)]
    local = [replace(each, scope="local") for each in compared]
    steps = [
        replace(each, steps=count, recovery=recovery)
        for each, count, recovery in product(compared, (1, STEPS), ("none", "batchnorm"))
        if (count, recovery) != (1, "none")
    ]
    renewed = [replace(each, recovery="batchnorm") for each in (*plain, *local) if each.ratio in FEW_RATIOS]
    solved = [replace(each, recovery="least_squares") for each in compared]
    wrong += [each for each in seeds if each.ratio in WRONG_RATIOS]  # what the wrong sign is compared with
    return list(dict.fromkeys([*plain, *wrong, *local, *steps, *renewed, *solved]))


def make_pruner(subject: Subject, setting: CutSetting) -> StructuredPruner:
    """The pruner of a cut, with what its criterion and its repair look at."""
    criterion = RandomImportance(setting.seed) if setting.criterion == "random" else find_importance(setting.criterion)
    pruner = StructuredPruner(
        subject.model,
        subject.example,
        importance=Adapted(criterion, setting.inverted) if setting.inverted or setting.steps > 1 else criterion,
        pruning_ratio=setting.ratio,
        target="macs",
        global_pruning=setting.scope == "global",
        iterative_steps=setting.steps,
        recover=setting.recovery,
    )
    if getattr(criterion, "needs_activations", False) or setting.recovery != "none":
        pruner.collect_activations(subject.calibration, progress=False)
    if getattr(criterion, "needs_gradients", False):
        pruner.collect_gradients(subject.calibration, progress=False)
    return pruner


def measure_cut(subject: Subject, setting: CutSetting) -> Cut:
    """Makes, proves, repairs and measures a cut."""
    start = time.perf_counter()
    pruned = make_pruner(subject, setting).prune()
    seconds = time.perf_counter() - start
    return Cut(
        **asdict(setting),
        accuracy=measure_accuracy(pruned, subject),
        macs_kept=round(count_macs(pruned, subject.example) / count_macs(subject.model, subject.example), 5),
        parameters_kept=round(count_parameters(pruned) / count_parameters(subject.model), 5),
        seconds=round(seconds, 2),
    )


def measure_accuracy(model: torch.nn.Module, subject: Subject) -> float:
    """Top-1 on the test images, in percent."""
    images, labels = cast("TensorDataset", subject.test.dataset).tensors
    accuracy = evaluate_model(model, zip(images.split(BATCH), labels.split(BATCH), strict=True)).accuracy
    if accuracy is None:
        raise InputError(f"{subject.name}: the test images have no class labels")
    return round(accuracy, 3)


def score_example(subject: Subject, criterion: str, group: str, ratio: float) -> ScoreExample:
    """A group's scores, and what goes from it when each layer gives its share: as it should be, and inverted."""
    found = {}
    for inverted in (False, True):
        pruner = make_pruner(subject, CutSetting(criterion=criterion, ratio=ratio, scope="local", inverted=inverted))
        if not inverted:
            scores = pruner.score_groups()[group]
        found[inverted] = next(cut.dropped for cut in pruner.make_plan().groups if cut.name == group)
    if scores is None:
        raise InputError(f"{criterion} does not score the group {group}")
    rounded = tuple(float(f"{score:.6g}") for score in scores)
    return ScoreExample(criterion, group, ratio, rounded, found[False], found[True])


def start_study(subject: Subject) -> CutStudy:
    """The untouched network, measured."""
    return CutStudy(
        model="ResNet-20",
        data=subject.data,
        accuracy=measure_accuracy(subject.model, subject),
        macs=count_macs(subject.model, subject.example),
        parameters=count_parameters(subject.model),
        test_images=subject.test_images,
        calibration_images=subject.calibration_images,
        environment=describe_run(),
        examples=(score_example(subject, *EXAMPLE),),
    )


def describe_run() -> Environment:
    """On what, when and with which command this is measured; paths shortened to names."""
    arguments = [Path(part).name if os.path.isabs(part) else part for part in sys.argv[1:]]
    return Environment(
        versions=list_versions(),
        machine=describe_machine(),
        device="cpu",
        threads=torch.get_num_threads(),
        processes=1,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "benchmarks.presentation", *arguments]),
    )


def continue_study(study: CutStudy, subject: Subject, settings: Sequence[CutSetting], path: Path) -> CutStudy:
    """Measures what the study lacks, stored cut by cut.

    Raises:
        InputError: the study was measured on other amounts of data.
    """
    amounts = subject.test_images, subject.calibration_images
    if (study.test_images, study.calibration_images) != amounts:
        raise InputError(f"{path} was measured on other amounts of data than {amounts}; give another --output.")
    measured = {cut.setting: cut for cut in study.cuts}
    for setting in settings:
        if setting not in measured:
            measured[setting] = cut = measure_cut(subject, setting)
            study = replace(study, cuts=tuple(measured[each] for each in settings if each in measured))
            study.save(path)
            print(f"{cut.accuracy:6.2f} %  MACs {cut.macs_kept:.3f}  {cut.seconds:5.1f} s  {setting}", flush=True)
    return study


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the study, or what it lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="a JSON file; what it has already is skipped")
    parser.add_argument("--test-images", type=int, help="default: all 10,000")
    parser.add_argument("--threads", type=int, help="of torch")
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    subject = SUBJECTS[MODEL](MODEL, Amounts(CALIBRATION_IMAGES, args.test_images, mirror=False))
    study = CutStudy.load(args.output) if args.output.is_file() else start_study(subject)
    continue_study(study, subject, list_settings(), args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
