"""How well similarities tell the same person from another: ROC, its area, and the rates at fixed false alarms."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FALSE_RATES = (0.5, 0.25, 0.1, 0.05, 0.01, 0.005, 0.001)
Scores = NDArray[np.floating]


def roc(genuine: Scores, impostor: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the false and true positive rates of every threshold, from (0, 0) to (1, 1).

    Args:
        genuine: (G,) similarities of pairs of one person.
        impostor: (I,) similarities of pairs of two people.
    """
    thresholds = np.unique(np.concatenate([genuine, impostor]))[::-1]
    false = (len(impostor) - np.searchsorted(np.sort(impostor), thresholds, side="left")) / len(impostor)
    true = (len(genuine) - np.searchsorted(np.sort(genuine), thresholds, side="left")) / len(genuine)
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], true])


def area(false: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """Return the area under a ROC: the chance that a genuine pair is more alike than an impostor pair."""
    return float(np.trapezoid(true, false))


def rate_at(false: NDArray[np.float64], true: NDArray[np.float64], allowed: float) -> float:
    """Return the true positive rate of the lowest threshold whose false positive rate is at most `allowed`.

    With fewer than 1 / `allowed` impostor pairs that is the rate without any false alarm at all.
    """
    return float(true[false <= allowed].max(initial=0.0))


@dataclass(frozen=True)
class Report:
    """One embedder on one set of pairs.

    Attributes:
        dataset: such as "london".
        pictures, left_out: pictures used, and pictures in which no face was found (their pairs are left out).
        genuine, impostor: number of pairs.
        auc: area under the ROC.
        tpr: true positive rate at each of `FALSE_RATES`.
        finest_fpr: one over the impostor pairs; below it a false positive rate cannot be told from none.
        genuine_mean, impostor_mean: mean similarity.
        threshold_1pct: similarity above which one impostor pair in a hundred lies.
    """

    dataset: str
    pictures: int
    left_out: int
    genuine: int
    impostor: int
    auc: float
    tpr: dict[str, float]
    finest_fpr: float
    genuine_mean: float
    impostor_mean: float
    threshold_1pct: float


def report(
    dataset: str,
    similarity: Scores,
    same: NDArray[np.bool_],
    *,
    pictures: int,
    left_out: int,
    rates: Sequence[float] = FALSE_RATES,
) -> Report:
    """Score (P,) similarities of pairs against whether they show one person."""
    genuine, impostor = similarity[same], similarity[~same]
    false, true = roc(genuine, impostor)
    return Report(
        dataset=dataset,
        pictures=pictures,
        left_out=left_out,
        genuine=len(genuine),
        impostor=len(impostor),
        auc=area(false, true),
        tpr={f"{rate:g}": rate_at(false, true, rate) for rate in rates},
        finest_fpr=1 / len(impostor),
        genuine_mean=float(genuine.mean()),
        impostor_mean=float(impostor.mean()),
        threshold_1pct=float(np.quantile(impostor, 0.99)),
    )
