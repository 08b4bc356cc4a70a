"""The pictures an evaluation leaves on disk: curves, distributions, tables of confusions. PNG, drawn off screen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Curve = tuple[NDArray[np.floating], NDArray[np.floating]]
INK, GENUINE, IMPOSTOR = "#333333", "#2a7f9e", "#c8553d"


def _figure(columns: int = 1, rows: int = 1, width: float = 5.0, height: float = 4.2) -> tuple[Any, Any]:
    """Return a figure and its (rows, columns) axes; the Agg canvas needs no display and leaves pyplot's state alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # 0.5 s, and only plotting needs it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def precision_recall(path: Path, title: str, curves: Mapping[str, Mapping[str, Curve]]) -> None:
    """Draw one panel per set of pictures: precision over recall for each artefact.

    Args:
        path: the PNG.
        title: above all panels.
        curves: by set and artefact, (recall, precision) with falling score.
    """
    figure, axes = _figure(len(curves))
    for axis, (name, artefacts) in zip(axes[0], curves.items(), strict=True):
        for artefact, (recall, precision) in artefacts.items():
            axis.plot(recall, precision, label=artefact, linewidth=1.4)
        axis.set(title=name, xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axis.grid(alpha=0.3)
        axis.legend(loc="lower left", fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def confusions(path: Path, title: str, labels: Sequence[str], tables: Mapping[str, NDArray[np.integer]]) -> None:
    """Draw one panel per set: rows are truth, columns answers, shades the share of the row, numbers the faces."""
    figure, axes = _figure(len(tables), width=1.4 + 0.55 * len(labels), height=1.6 + 0.5 * len(labels))
    for axis, (name, counts) in zip(axes[0], tables.items(), strict=True):
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            axis.text(
                column, row, str(count), ha="center", va="center", fontsize=8,
                color="white" if share[row, column] > 0.6 else INK,
            )  # fmt: skip
        axis.set(title=name, xlabel="answer", ylabel="truth")
        axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
        axis.set_yticks(range(len(labels)), labels)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def roc_curves(path: Path, title: str, curves: Mapping[str, Curve], finest: Mapping[str, float]) -> None:
    """Draw the true over the false positive rate of each set, the latter on a logarithmic axis.

    Args:
        path: the PNG.
        title: above the plot.
        curves: by set, (false, true positive rate).
        finest: by set, one over its impostor pairs: the curve begins there, for finer rates cannot be told from none.
    """
    figure, ((axis,),) = _figure(width=6.0, height=4.8)
    for name, (false, true) in curves.items():
        shown = false >= finest[name]
        axis.step(np.append(finest[name], false[shown]), np.append(true[~shown].max(initial=0), true[shown]),
                  where="post", label=name)  # fmt: skip
    chance = np.geomspace(1e-3, 1, 50)
    axis.plot(chance, chance, color=INK, linestyle=":", label="chance")
    axis.set(
        title=title,
        xlabel="false positive rate",
        ylabel="true positive rate",
        xscale="log",
        xlim=(1e-3, 1),
        ylim=(0, 1.02),
    )
    axis.grid(alpha=0.3, which="both")
    axis.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110)


def similarities(path: Path, title: str, sets: Mapping[str, tuple[NDArray[np.floating], NDArray[np.bool_]]]) -> None:
    """Draw per set how alike pairs of one person and of two people are.

    Args:
        path: the PNG.
        title: above all panels.
        sets: (P,) similarities and (P,) whether a pair shows one person.
    """
    figure, axes = _figure(len(sets))
    for axis, (name, (similarity, same)) in zip(axes[0], sets.items(), strict=True):
        bins = np.linspace(min(-0.2, float(similarity.min())), 1, 41)
        parts = (("one person", same, GENUINE), ("two people", ~same, IMPOSTOR))
        for label, part, colour in parts:
            weights = np.full(int(part.sum()), 1 / max(int(part.sum()), 1))
            axis.hist(similarity[part], bins, weights=weights, alpha=0.6, color=colour, label=f"{label} ({part.sum()})")
        axis.set(title=name, xlabel="similarity (cosine)", ylabel="share of pairs")
        axis.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def cumulative_errors(path: Path, title: str, sets: Mapping[str, NDArray[np.floating]]) -> None:
    """Draw per set the share of faces whose error, in eye distances, is at most the value on the axis."""
    figure, ((axis,),) = _figure(width=6.0, height=4.4)
    for name, errors in sets.items():
        axis.plot(np.sort(errors), (np.arange(len(errors)) + 1) / len(errors), label=f"{name} ({len(errors)})")
    axis.axvline(0.04, color=INK, linestyle=":", label="4 %")
    axis.set(
        title=title,
        xlabel="mean error of a face, eye distances",
        ylabel="share of faces",
        xlim=(0, 0.2),
        ylim=(0, 1.02),
    )
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110)
