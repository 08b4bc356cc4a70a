"""SciPy's solver of the assignment problem, without the rest of SciPy: SORT is all that a box wants of it.

`import scipy.optimize` takes 44 MB and 0.2 s for one function of 20 kB (SciPy 1.16, x86-64). The extension module that
holds the function needs nothing but numpy, so it is loaded by itself; where that fails, SciPy is imported as usual.
"""

from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Solver = Callable[..., tuple[NDArray[np.intp], NDArray[np.intp]]]


def alone() -> Solver:
    """Load the solver from its own file.

    Raises:
        ImportError: SciPy is missing, or keeps it elsewhere.
    """
    spec = find_spec("scipy")  # looks, and imports nothing
    if spec is None or spec.origin is None:
        raise ImportError('scipy is not installed; pip install "facefleet[edge]"')
    folder = Path(spec.origin).parent / "optimize"
    for suffix in EXTENSION_SUFFIXES:
        if (file := folder / f"_lsap{suffix}").is_file():
            loader = ExtensionFileLoader("_lsap", str(file))
            own = spec_from_loader("_lsap", loader)
            assert own is not None
            module: Any = module_from_spec(own)
            loader.exec_module(module)
            solver: Solver = module.linear_sum_assignment
            return solver
    raise ImportError(f"no _lsap in {folder}")


def whole() -> Solver:
    """Import SciPy's public function."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment


def load() -> Solver:
    """Return `linear_sum_assignment(cost, maximize=False)`, the small way if it works."""
    try:
        return alone()
    except (ImportError, AttributeError):
        return whole()


linear_sum_assignment = load()
