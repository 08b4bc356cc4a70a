"""Made-up faces to train an embedder on."""

import numpy as np

from converters.data.attributes import Label
from converters.data.identity import CONTEXT_PX, AlignedFaces


def made_up(count: int, *clips: str) -> AlignedFaces:
    """Noise faces, each a person of its own, and three frames of each clip."""
    rng = np.random.default_rng(5)
    people = tuple(f"utkface/{i}" for i in range(count)) + tuple(clip for clip in clips for _ in range(3))
    coarse = rng.integers(0, 256, (len(people), 14, 14, 3), np.uint8)
    pictures = coarse.repeat(10, axis=1).repeat(10, axis=2)
    labels = tuple(
        Label(str(i), "test" if i % 4 == 3 else "train", ages=(30, 30), gender=i % 2, race=0)
        for i in range(len(people))
    )
    assert pictures.shape[1] == CONTEXT_PX
    return AlignedFaces(pictures, people, people, labels, tuple(f"{i:064x}" for i in range(len(people))))
