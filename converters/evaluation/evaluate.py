"""`facefleet-convert evaluate`: how good a bundle is on pictures it never saw, by its task."""

import argparse
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from rich.console import Console

from converters.errors import ConvertError
from edge.models.bundle import load_bundle

# Each has `evaluate(bundle, args) -> figures`: prints its tables, draws its pictures into `args.out`.
BY_TASK = {
    "classifier": "converters.evaluation.classifier",
    "detector": "converters.evaluation.detector",
    "embedder": "converters.evaluation.embedder",
    "landmarks": "converters.evaluation.landmarks",
}
FIGURES = "figures.json"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb `evaluation.evaluate`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a bundle's accuracy and latency on pictures it never saw",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure every artefact of a bundle through the runtimes and crops of a box. By task:\n\n"
        "  detector    AP50, AP50-95, AP by size of face, recall and precision at the threshold; PR curves\n"
        "  classifier  accuracy, recall per class, error per group of people, abstentions; confusion matrices\n"
        "  embedder    TPR at fixed FPR, ROC-AUC on pairs of pictures; ROC and similarities of both kinds\n"
        "  landmarks   distance from YuNet's points in eye distances; its distribution\n\n"
        f"Tables go to the screen, {FIGURES} and PNGs into --out.",
        epilog="--data is the project's data folder, or your own pictures: for a detector images/ and labels/ (YOLO\n"
        "txt), for a classifier one folder of face crops per label, for an embedder a pairs.csv (columns a, b:\n"
        "pictures, same: 1 or 0).",
    )
    parser.add_argument("bundle", type=Path, help="folder with manifest.yaml")
    parser.add_argument("--data", type=Path, required=True, help="the data folder, or pictures of your own (see below)")
    parser.add_argument("--out", type=Path, help=f"folder for {FIGURES} and PNGs (default out/evaluation/<bundle>)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--cache", type=Path, help="keep prepared pictures here between runs")
    parser.add_argument("--threads", type=int, default=1, help="inference threads (default %(default)s)")
    parser.add_argument(
        "--detector", type=Path, help="embedder: the bundle that finds faces (default: YuNet in --data)"
    )
    parser.add_argument(
        "--landmarks",
        type=Path,
        help="embedder: the bundle it aligns by (default: landmarks-student beside it)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the bundle, hand it to the evaluation of its task, keep the figures."""
    bundle = load_bundle(args.bundle)
    task = bundle.manifest.task
    if task not in BY_TASK:
        raise ConvertError(f"{args.bundle} is for {task}; evaluate knows {', '.join(BY_TASK)}")
    args.out = args.out or Path("out/evaluation") / bundle.manifest.name
    args.out.mkdir(parents=True, exist_ok=True)
    evaluate: Callable[..., Mapping[str, object]] = import_module(BY_TASK[task]).evaluate
    text = json.dumps(evaluate(bundle, args), indent=1) + "\n"
    for path in filter(None, (args.out / FIGURES, args.json)):
        path.write_text(text, encoding="utf-8")
    drawn = ", ".join(sorted(path.name for path in args.out.glob("*.png")))
    Console().print(f"{args.out}: {FIGURES}, {drawn}", soft_wrap=True)
    return 0
