"""onnxruntime behind `Runtime`: the second choice on the CPU, and the reader of foreign ONNX files."""

import numpy as np
from numpy.typing import NDArray

from edge.errors import ModelError
from edge.models.bundle import Bundle
from edge.models.preprocess import tensor_shape, to_tensor
from edge.models.runtime import Candidate


class OnnxRuntime:
    """One session with its own input buffer."""

    def __init__(self, bundle: Bundle, candidate: Candidate, threads: int) -> None:
        """Read the model and fix its threads.

        Raises:
            ModelError: onnxruntime is not installed or refuses the model.
        """
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise ModelError('onnxruntime is not installed; pip install "facefleet[edge]"') from error
        self.device = candidate.device
        self.artefact = candidate.artefact
        self._source = bundle.manifest.input
        self._names = list(bundle.manifest.outputs)
        self._buffer: NDArray[np.float32] = np.empty(tensor_shape(self._source, max(1, self._source.batch)), np.float32)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3  # errors; the warnings are about how foreign models were exported
        # A pool that spins burns a core between frames, one that sleeps takes 20 µs to wake for each of 120 layers:
        # spin 50 µs within a run and never after it (YOLOv10n-ReLU INT8 320, 2 threads: 3.5 ms instead of 4.3 for 7 %
        # more CPU time). Versions that do not know the duration spin for the whole run.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        path = bundle.path(candidate.role)
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions share no base class but this
            raise ModelError(f"{path}: onnxruntime {ort.__version__} cannot read it: {error}") from error
        entrance = self._session.get_inputs()[0]
        self._input = entrance.name
        # The converters' INT8 detectors read pixels; anything else gets the floats it was trained on.
        self._pixels = entrance.type == "tensor(uint8)"
        if missing := set(self._names) - {output.name for output in self._session.get_outputs()}:
            raise ModelError(f"{path}: outputs {sorted(missing)} of the manifest are not in the model")

    def infer(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Run (N, H, W, 3) uint8 BGR; see `Runtime`."""
        if self._pixels:
            return self._run(np.ascontiguousarray(images))
        if len(images) > len(self._buffer):
            self._buffer = np.empty(tensor_shape(self._source, len(images)), np.float32)
        return self._run(to_tensor(images, self._source, self._buffer[: len(images)]))

    def _run(self, tensor: NDArray[np.uint8] | NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return [np.asarray(a, np.float32) for a in self._session.run(self._names, {self._input: tensor})]
