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
        # A spinning thread pool burns a core between frames for 0.1 ms less latency.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = bundle.path(candidate.role)
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions share no base class but this
            raise ModelError(f"{path}: onnxruntime {ort.__version__} cannot read it: {error}") from error
        self._input = self._session.get_inputs()[0].name
        if missing := set(self._names) - {output.name for output in self._session.get_outputs()}:
            raise ModelError(f"{path}: outputs {sorted(missing)} of the manifest are not in the model")

    def infer(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Run (N, H, W, 3) uint8 BGR; see `Runtime`."""
        if len(images) > len(self._buffer):
            self._buffer = np.empty(tensor_shape(self._source, len(images)), np.float32)
        tensor = to_tensor(images, self._source, self._buffer[: len(images)])
        return [np.asarray(a, np.float32) for a in self._session.run(self._names, {self._input: tensor})]
