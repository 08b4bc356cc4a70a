"""What happens to pixels before the network, stated once in numpy; OpenVINO compiles the same steps into its graph.

The converters calibrate with this very code, onnxruntime runs it on every frame.
"""

import numpy as np
from numpy.typing import NDArray

from edge.models.manifest import Input

# ITU-R BT.601 luma of B, G, R, as cv2.cvtColor and OpenVINO's PrePostProcessor use.
LUMA_BGR = np.array([0.114, 0.587, 0.299], np.float32)


def tensor_shape(source: Input, count: int) -> tuple[int, int, int, int]:
    """Return the shape of the network's input for `count` images."""
    channels = 1 if source.color == "GRAY" else 3
    if source.layout == "NCHW":
        return count, channels, source.height, source.width
    return count, source.height, source.width, channels


def to_tensor(images: NDArray[np.uint8], source: Input, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Turn pixels into what the network eats: colour order, `(x - mean) / scale`, layout.

    Args:
        images: (N, H, W, 3) uint8 BGR of the network's input size.
        source: colour order, mean, scale and layout.
        out: a buffer of `tensor_shape(source, N)` to write into (0.4 ms instead of 1.5 ms at 640×640).

    Returns:
        (N, C, H, W) or (N, H, W, C) float32; `out` if it was given.
    """
    if out is None:
        out = np.empty(tensor_shape(source, len(images)), np.float32)
    planes = out if source.layout == "NCHW" else np.moveaxis(out, 3, 1)
    for channel in range(planes.shape[1]):
        plane = planes[:, channel]
        mean = source.mean[channel % len(source.mean)]
        if source.color == "GRAY":
            np.matmul(images, LUMA_BGR, out=plane)
            plane -= np.float32(mean)
        else:
            pixels = images[..., channel if source.color == "BGR" else 2 - channel]
            np.subtract(pixels, np.float32(mean), out=plane)
        plane *= np.float32(1.0 / source.scale[channel % len(source.scale)])
    return out
