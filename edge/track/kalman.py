"""The motion model of SORT: a constant-velocity Kalman filter per track, all tracks at once. Driven by `sort.py`.

State of the paper: [u, v, s, r, u̇, v̇, ṡ] with (u, v) the box centre in pixels, s its area in pixels², r its aspect
ratio (width / height), velocities per frame. F couples only (u, u̇), (v, v̇) and (s, ṡ); H, Q, R and the first P are
diagonal. So P never fills the blocks between them, and the 7 × 7 filter is exactly four small ones in closed form:
position and velocity for u, v and s, and for r the same filter with a velocity that is 0 and known to be 0.

Source: Bewley et al. 2016, Simple Online and Realtime Tracking, section 3.2; the noise levels are those of the
authors' published implementation.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

# One column vector per matrix diagonal, order u, v, s, r.
P0_POSITION: Final = np.full((4, 1), 10.0)
P0_VELOCITY: Final = np.array([[1e4], [1e4], [1e4], [0.0]])  # a new track has an unknown velocity, except that of r
Q_POSITION: Final = np.ones((4, 1))
Q_VELOCITY: Final = np.array([[1e-2], [1e-2], [1e-4], [0.0]])
R: Final = np.array([[1.0], [1.0], [10.0], [10.0]])

# Rows of `Kalman.state`: mean (position, velocity), then the covariance of the two.
X, DX, P00, P01, P11 = range(5)
S = 2  # row of the area among u, v, s, r


class Kalman:
    """The filters of N boxes; the caller knows which track each column is.

    Attributes:
        state: (5, 4, N) float64. First axis: position, velocity, var(position), cov(position, velocity),
            var(velocity). Second axis: u, v, s, r.
    """

    def __init__(self) -> None:
        self.state: NDArray[np.float64] = np.empty((5, 4, 0))

    def __len__(self) -> int:
        return len(self.state[X, S])

    def birth(self, z: NDArray[np.float64]) -> None:
        """Append one filter at rest per measurement z, (4, N) u, v, s, r."""
        born = np.zeros((5, 4, z.shape[1]))
        born[X], born[P00], born[P11] = z, P0_POSITION, P0_VELOCITY
        self.state = np.concatenate((self.state, born), axis=2)

    def keep(self, index: NDArray[np.intp]) -> None:
        """Drop every filter but those at `index`, in that order."""
        self.state = self.state.take(index, axis=2)

    def predict(self) -> None:
        """Advance all filters by one frame: x = F x, P = F P Fᵀ + Q."""
        x, dx, p00, p01, p11 = self.state
        # A shrinking box must not reach an area of 0: it has no width to draw and no IoU to match.
        shrunk = x[S] + dx[S] <= 0
        if shrunk.any():
            dx[S, shrunk] = 0.0
        x += dx
        p00 += p01
        p01 += p11
        p00 += p01
        p00 += Q_POSITION
        p11 += Q_VELOCITY

    def update(self, index: NDArray[np.intp], z: NDArray[np.float64]) -> None:
        """Correct the filters at `index` (M,), each once, with measurements z, (4, M) u, v, s, r."""
        state = self.state.take(index, axis=2)
        K = state[P00 : P01 + 1] / (state[P00] + R)  # gains of position and velocity, (2, 4, M)
        state[X : DX + 1] += K * (z - state[X])
        state[P11] -= K[1] * state[P01]
        np.multiply(K, R, out=state[P00 : P01 + 1])  # (1 - K) P = K R for the two entries H sees
        self.state[:, :, index] = state

    def xyxy(self) -> NDArray[np.float64]:
        """Return the (N, 4) boxes of all filters' positions, pixels."""
        u_v, s, r = self.state[X, :S], self.state[X, S], self.state[X, S + 1]
        half = np.empty_like(u_v)
        w = np.sqrt(s * r)
        half[0] = w
        np.divide(s, w, out=half[1])
        half *= 0.5
        return np.concatenate((u_v - half, u_v + half)).T


def measure(xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the measurement z, (4, N) u, v, s, r, of (N, 4) boxes, each with an area."""
    lt, rb = xyxy.T[:2], xyxy.T[2:]
    z = np.empty((4, len(xyxy)))
    wh = rb - lt
    np.multiply(lt + rb, 0.5, out=z[:2])
    np.multiply(wh[0], wh[1], out=z[S])
    np.divide(wh[0], wh[1], out=z[S + 1])
    return z
