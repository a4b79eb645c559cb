"""The command line: ``cleanai demo``, ``cleanai run``, ``cleanai sweep``, ``cleanai settings``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from cleanai import __version__
from cleanai.errors import CleanAIError, InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and gives the exit status: 0, or 1 where CleanAI could not do what was asked.

    Example:
        >>> main(["--version"])  # doctest: +SKIP
        cleanai 0.1.0
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        options.act(options)
    except CleanAIError as error:
        print(f"cleanai: {_describe(error, options)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # what a shell reports for Ctrl-C
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands and options."""
    parser = argparse.ArgumentParser(
        prog="cleanai",
        description="Structured pruning for PyTorch, proven correct.",
        epilog="`cleanai COMMAND --help` says what a command does and what it takes; begin with `cleanai demo`.",
    )
    parser.add_argument("--version", action="version", version=f"cleanai {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    _add_demo(commands)
    _add_run(commands)
    _add_sweep(commands)
    settings = commands.add_parser("settings", help="list the settings of experiments, and what they start from")
    settings.set_defaults(act=_list_settings)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="prune a real network on real images and write a report",
        description="Prunes a trained network, proves the result, fine-tunes it, measures and reports.",
    )
    demo.add_argument(
        "--data",
        choices=("digits", "cifar10"),
        default="digits",
        help="digits: trains a small network first, needs no files (default). cifar10: a trained ResNet-20 and "
        "CIFAR-10, both from the data root (CLEANAI_DATA, or data/)",
    )
    demo.add_argument("--ratio", type=float, help="share of the MACs to remove (default: 0.5; 0.3 for cifar10)")
    demo.add_argument("--output", default="reports", metavar="DIR", help="where the report goes (default: reports)")
    demo.add_argument("--language", choices=("en", "tr"), default="en", help="of texts and report (default: en)")
    demo.add_argument("--seed", type=int, default=0, help="of training and data split (default: 0)")
    demo.set_defaults(act=_run_demo)


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="run a test scenario: prepare, prune, fine-tune, report",
        description="Runs a scenario: TS1 (ResNet-18, CIFAR-10), TS2, TS3, TS4 (ResNet-50, ImageNet). What is finished "
        "is not done again; what was interrupted goes on where it was. With several GPUs or machines: "
        "torchrun --nproc-per-node=4 -m cleanai run TS2",
    )
    _add_scenario(run, "checkpoints/ and reports/ go there (default: here)", ".")
    run.add_argument(
        "--method", nargs="+", metavar="NAME", help="coverage, wanda, magnitude, taylor, ... or all (default): the "
        "scenario's own"
    )  # fmt: skip
    run.add_argument(
        "--stage",
        choices=("prepare", "prune", "finetune", "report"),
        default="report",
        help="the last stage to run (default: report)",
    )
    run.add_argument("--prepared", metavar="DIR", help="use the preparation of the experiment in this folder")
    run.set_defaults(act=_run_scenario)


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep",
        help="run a scenario with every combination of methods, ratios and seeds",
        description="Every combination of methods, ratios and seeds in one table, with accuracy against cost. What is "
        "finished is not done again. On several machines: dask scheduler; dask worker ADDRESS --nthreads 1 on each; "
        "then --scheduler ADDRESS, with an output folder that all of them see.",
    )
    _add_scenario(sweep, "the table, the figures and a folder for each cell go there (default: sweeps)", "sweeps")
    sweep.add_argument("--method", "--methods", nargs="+", metavar="NAME", help="default: the scenario's own")
    sweep.add_argument("--ratios", nargs="+", type=float, metavar="RATIO", help="default: the scenario's own")
    sweep.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="default: 0")
    sweep.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask scheduler; default: run here")
    sweep.set_defaults(act=_run_sweep)


def _add_scenario(parser: argparse.ArgumentParser, output: str, default: str) -> None:
    parser.add_argument("scenario", help="TS1, TS2, TS3 or TS4")
    parser.add_argument(
        "--profile",
        default="full",
        help="full (default), quick (a smaller network or fewer images) or smoke (seconds, on scikit-learn's digits)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change settings, such as pruning_ratio=0.3 seed=1; `cleanai settings` lists them",
    )
    parser.add_argument("--output", default=default, metavar="DIR", help=output)
    parser.add_argument("--overwrite", action="store_true", help="do anew what is finished")
    parser.add_argument("--language", choices=("en", "tr"), help="of texts and reports (default: en)")


def _describe(error: CleanAIError, options: argparse.Namespace) -> str:
    from cleanai.data import DataMissingError

    language = getattr(options, "language", None) or "en"
    return error.describe(language) if isinstance(error, DataMissingError) else str(error)


def _run_demo(options: argparse.Namespace) -> None:
    from cleanai.demo import run_demo  # scikit-learn and plots are loaded only by those who need them

    run_demo(options.data, ratio=options.ratio, output=options.output, language=options.language, seed=options.seed)


def read_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, with those that have an option of their own."""
    from cleanai.experiments.config import parse_settings

    settings: dict[str, Any] = dict(parse_settings(options.set))
    methods = tuple(part for word in options.method or () for part in word.split(",") if part)
    for name, value in (("methods", methods if methods != ("all",) else ()), ("language", options.language)):
        if value and name in settings:
            raise InputError(f"{name} is given twice, by an option and by --set.")
        settings |= {name: value} if value else {}
    return settings


def _run_scenario(options: argparse.Namespace) -> None:
    from cleanai.experiments import run_experiment

    run_experiment(
        options.scenario,
        profile=options.profile,
        stage=options.stage,
        output=options.output,
        overwrite=options.overwrite,
        prepared=options.prepared,
        **read_settings(options),
    )


def _run_sweep(options: argparse.Namespace) -> None:
    from cleanai.experiments import make_config, run_sweep

    config = make_config(options.scenario, options.profile, **read_settings(options))
    run_sweep(
        config,
        ratios=options.ratios,
        seeds=options.seeds,
        output=options.output,
        scheduler=options.scheduler,
        overwrite=options.overwrite,
    )


def _list_settings(options: argparse.Namespace) -> None:
    from cleanai.experiments.config import describe_settings, write_setting
    from cleanai.experiments.scenarios import PROFILES, SCENARIOS

    for name, stage, default, meaning in describe_settings():
        print(f"{name:<26}{default:<17}{stage:<10}{meaning}")
    print()
    presets = {**SCENARIOS, **{f"{s} {p}": c for p, found in PROFILES.items() for s, c in found.items() if c}}
    for name, changes in presets.items():
        print(f"{name}: " + " ".join(f"{key}={write_setting(value)}" for key, value in changes.items()))


if __name__ == "__main__":
    sys.exit(main())
