"""The solver is SciPy's own, only loaded by itself."""

import subprocess
import sys

import numpy as np
import pytest

from edge.track import assignment


def test_solver_loaded_alone_answers_as_scipy_does() -> None:
    rng = np.random.default_rng(5)
    solve, reference = assignment.alone(), assignment.whole()
    for shape in ((1, 1), (3, 7), (20, 20), (40, 9)):
        for weights in (rng.random(shape), rng.integers(0, 3, shape).astype(float)):  # the second is full of ties
            for found, expected in zip(solve(weights, maximize=True), reference(weights, maximize=True), strict=True):
                assert found.tolist() == expected.tolist()


def test_tracker_does_not_bring_the_rest_of_scipy_into_memory() -> None:
    code = "import sys, edge.track.sort; print('scipy.optimize' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_scipy_that_keeps_its_solver_elsewhere_is_imported_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "EXTENSION_SUFFIXES", [".nowhere"])
    with pytest.raises(ImportError, match="no _lsap in"):
        assignment.alone()
    assert assignment.load()(np.eye(2))[0].tolist() == [0, 1]
