"""Mondrian: multidimensional k-anonymity by splitting at medians.

LeFevre, DeWitt and Ramakrishnan 2006, doi:10.1109/ICDE.2006.101, strict partitioning. All parts of one depth
are split at once.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxneg.fairness.arguments import Data, known, row_weight


def mondrian(
    Xnum: Float[Data, "rows columns"],
    k: int,
    weight: Float[Data, " rows"] | None = None,
) -> Int[Array, " rows"]:
    """The part of each row, parts having at least k rows and no acceptable split.

    A column's width is ``(max - min in the part) / (max - min in the table)``. Columns are tried by
    descending width, the first of equal ones; none of width 0. The lower median m,
    ``sorted[(size - 1) // 2]``, splits the part into
    ``<= m`` and ``> m``; the split is accepted if both sides have k rows.

    Args:
      Xnum: Numeric columns.
      k: Least number of rows of a part, at least 1.
      weight: 1 for rows of the table; rows of weight 0 count nowhere and are put into the part where their
        values fall, as rows of a test set. All 1 by default.

    Returns:
      Numbers of the parts from 0, in depth-first order, left sides first. A table of fewer than 2 k rows is
      one part.

    Raises:
      ValueError: If a known value is not finite, k is below 1, or shapes differ.

    Source:
      LeFevre et al. 2006, Figure 6.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import mondrian
      >>> mondrian(np.array([[1.0], [9.0], [2.0], [8.0]]), 2).tolist()
      [0, 1, 0, 1]
    """
    Xnum = jnp.asarray(Xnum)
    if Xnum.ndim != 2 or 0 in Xnum.shape:
        raise ValueError(f"Xnum: expected rows and columns, none of them empty, got shape {Xnum.shape}")
    if not jnp.issubdtype(Xnum.dtype, jnp.floating):
        Xnum = Xnum * 1.0
    if known(Xnum) and not np.isfinite(np.asarray(Xnum)).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(np.asarray(Xnum)))[0])
        raise ValueError(
            f"Xnum: expected finite numbers, got {np.asarray(Xnum)[row, column]} at ({row}, {column})"
        )
    if known(k) and k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    return _mondrian(Xnum, jnp.asarray(k), row_weight("weight", weight, Xnum.shape[0]) > 0)


@jax.jit
def _mondrian(x: Array, k: Array, counts: Array) -> Array:
    n = x.shape[0]
    over_parts: Any = partial(jax.ops.segment_sum, num_segments=n)

    def extent(part: Array) -> Array:
        high = jax.ops.segment_max(jnp.where(counts[:, None], x, -jnp.inf), part, n)
        low = jax.ops.segment_min(jnp.where(counts[:, None], x, jnp.inf), part, n)
        return jnp.maximum(high - low, 0)

    span = extent(jnp.zeros(n, jnp.int32))[0]
    span = jnp.where(span > 0, span, 1)

    def median(column: Array, part: Array, start: Array, size: Array) -> Array:
        # Rows that do not count lie behind the others of their part.
        _, _, ordered = lax.sort((part, (~counts).astype(jnp.int32), column), num_keys=3)
        return ordered[jnp.minimum(start + jnp.maximum(size - 1, 0) // 2, n - 1)]

    def split(state: tuple[Array, Array]) -> tuple[Array, Array]:
        part, _ = state
        rows, size = over_parts(jnp.ones(n, jnp.int32), part), over_parts(counts.astype(jnp.int32), part)
        start = jnp.cumsum(rows, dtype=jnp.int32) - rows
        middle = jax.vmap(lambda column: median(column, part, start, size), 1, 1)(x)
        left = x <= middle[part]
        on_left = over_parts((left & counts[:, None]).astype(jnp.int32), part)
        width = extent(part) / span
        accepted = (on_left >= k) & (size[:, None] - on_left >= k) & (width > 0)
        column = jnp.argmax(jnp.where(accepted, width, -1), axis=1).astype(jnp.int32)
        splits = jnp.any(accepted, axis=1)
        before = jnp.cumsum(splits, dtype=jnp.int32) - splits
        right = splits[part] & ~jnp.take_along_axis(left, column[part][:, None], axis=1)[:, 0]
        return part + before[part] + right, jnp.any(splits)

    part, _ = lax.while_loop(lambda state: state[1], split, (jnp.zeros(n, jnp.int32), jnp.array(True)))
    return part
