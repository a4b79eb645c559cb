"""The command line: ``cleanai demo``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cleanai import __version__
from cleanai.errors import CleanAIError


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
        _run_demo(options)
    except CleanAIError as error:
        print(f"cleanai: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # what a shell reports for Ctrl-C
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands and options."""
    parser = argparse.ArgumentParser(prog="cleanai", description="Structured pruning for PyTorch, proven correct.")
    parser.add_argument("--version", action="version", version=f"cleanai {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
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
    return parser


def _run_demo(options: argparse.Namespace) -> None:
    from cleanai.demo import run_demo  # scikit-learn and plots are loaded only by those who need them

    run_demo(options.data, ratio=options.ratio, output=options.output, language=options.language, seed=options.seed)


if __name__ == "__main__":
    sys.exit(main())
