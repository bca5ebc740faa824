"""Earlier versions of a model: those that write QCRD's self-adversarial negatives.

Implements the history of Wang et al., arXiv:2405.13014, Section 3: at iteration n the negatives are written
by the student of iteration ``max(0, n - j)``.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


class SnapshotBuffer:
    """The last j + 1 versions of a model's parameters, in the host's memory.

    ``earlier() = params of iteration max(0, n - j)``, n the iteration of the newest.

    Args:
        j: how many iterations back.
        dtype: what the snapshots are kept in; None: the parameters' own.

    Attributes:
        j: as given.
        dtype: as given.
        count: how many versions were pushed.

    Raises:
        ValueError: a negative j.

    Source:
        arXiv:2405.13014, Section 3 and the table of negative sources, where j = 5 is best.

    Example:
        >>> buffer = SnapshotBuffer(2)
        >>> for iteration in range(4):
        ...     buffer.push({"w": jnp.full(2, float(iteration))})
        >>> buffer.earlier()["w"].tolist()
        [1.0, 1.0]
    """

    def __init__(self, j: int, dtype: DTypeLike | None = jnp.bfloat16) -> None:
        if j < 0:
            raise ValueError(f"j: expected at least 0 iterations, got {j}")
        self.j, self.dtype, self.count = j, dtype, 0
        self._kept: list[Any] = []

    def push(self, params: Any) -> None:
        """Copies the parameters of a new iteration to the host; the oldest beyond j + 1 are forgotten."""

        def kept(leaf: Any) -> np.ndarray:
            array = jnp.asarray(leaf)
            if self.dtype is not None and jnp.issubdtype(array.dtype, jnp.floating):
                array = array.astype(self.dtype)
            return np.array(jax.device_get(array))

        self._kept = (
            [*self._kept[-self.j :], jax.tree.map(kept, params)] if self.j else [jax.tree.map(kept, params)]
        )
        self.count += 1

    def earlier(self) -> Any:
        """The parameters of iteration ``max(0, n - j)``.

        Raises:
            ValueError: nothing was pushed.
        """
        if not self._kept:
            raise ValueError("the buffer is empty: push the parameters of iteration 0 first")
        return self._kept[0]

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold: ``count``, and the kept versions, oldest first, by their place."""
        return {
            "count": np.asarray(self.count),
            "kept": {str(place): params for place, params in enumerate(self._kept)},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes up where a buffer of the same j was when `state` was called.

        Raises:
            ValueError: more versions than j + 1, or none where some were pushed.
        """
        kept, count = state["kept"], int(state["count"])
        if len(kept) != min(count, self.j + 1):
            raise ValueError(
                f"state: expected {min(count, self.j + 1)} versions after {count} iterations with"
                f" j = {self.j}, got {len(kept)}"
            )
        self._kept = [jax.tree.map(np.asarray, kept[str(place)]) for place in range(len(kept))]
        self.count = count
