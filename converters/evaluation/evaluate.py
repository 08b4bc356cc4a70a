"""`facefleet-convert evaluate`: how good a bundle is on pictures it never saw, by its task."""

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from converters.errors import ConvertError
from edge.models.bundle import load_bundle

# Each has `evaluate(bundle, args) -> int`.
BY_TASK = {"classifier": "converters.evaluation.classifier", "detector": "converters.evaluation.detector"}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb `evaluation.evaluate`."""
    parser = subparsers.add_parser("evaluate", help="measure a bundle's accuracy and latency on a data folder")
    parser.add_argument("bundle", type=Path, help="folder with manifest.yaml")
    parser.add_argument("--data", type=Path, required=True, help="the data folder (its README names the sets)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--cache", type=Path, help="keep prepared pictures here between runs")
    parser.add_argument("--threads", type=int, default=1, help="inference threads (default %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the bundle and hand it to the evaluation of its task."""
    bundle = load_bundle(args.bundle)
    task = bundle.manifest.task
    if task not in BY_TASK:
        raise ConvertError(f"{args.bundle} is for {task}; evaluate knows {', '.join(BY_TASK)}")
    evaluate: Callable[..., int] = import_module(BY_TASK[task]).evaluate
    return evaluate(bundle, args)
