"""The box-and-whisker filter of UNPG: which negative pairs are too similar, or too dissimilar, to be used.

Paper: J. Jung et al., arXiv:2203.11593, Section 3; the quartiles are those of the authors' code, entries of
the sorted vector without interpolation.
"""

import math
from collections.abc import Hashable
from numbers import Real

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from jaxneg.face.arguments import wide
from jaxneg.face.order_statistics import kth_smallest

Bounds = tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""], Float[Array, ""]]


def box_whisker_mask(
    values: Float[Array, "..."],
    mask: Bool[Array, "..."] | None = None,
    r: ArrayLike = 1.5,
    *,
    axis_name: Hashable | None = None,
) -> tuple[Bool[Array, "..."], Bounds]:
    """Which of the chosen values lie within the whiskers.

    ``q1 - r IQR <= v <= q3 + r IQR``, ``IQR = q3 - q1``, with ``q1 = sorted[floor(M / 4)]`` and
    ``q3 = sorted[floor(3 M / 4)]`` of the M chosen values

    Args:
        values: numbers of any shape.
        mask: which of them are chosen; None: all.
        r: length of the whiskers in boxes, 0 or more; infinity keeps all.
        axis_name: mesh axis, or a tuple of them, over which values and mask are parts of a whole.

    Returns:
        The values to keep, and ``(q1, q3, lower, upper)``, which have no gradient; where nothing is chosen
        nothing is kept and all four are 0.

    Raises:
        TypeError: values that are not floating.
        ValueError: a negative r, or NaN.

    Source:
        arXiv:2203.11593, Section 3.

    Example:
        >>> keep, _ = box_whisker_mask(jnp.array([0.1, 0.2, 0.3, 0.4, 9.0]), r=1.5)
        >>> keep.tolist()
        [True, True, True, True, False]
    """
    if isinstance(r, Real) and not float(r) >= 0:
        raise ValueError(f"r: expected 0 or more, or infinity, got {r}")
    values = jax.lax.stop_gradient(wide("values", values))
    chosen = jnp.ones(values.shape, bool) if mask is None else jnp.asarray(mask)
    if chosen.dtype != jnp.bool_ or chosen.shape != values.shape:
        raise ValueError(
            f"mask: expected booleans of the shape of values, {values.shape}, got {chosen.dtype}"
            f" {chosen.shape}"
        )
    count = jnp.sum(chosen, dtype=jnp.int32)
    count = count if axis_name is None else jax.lax.psum(count, axis_name)
    ranks = jnp.stack([count // 4, 3 * (count // 4) + 3 * (count % 4) // 4])  # 3 M itself may overflow
    q1, q3 = jnp.where(count > 0, kth_smallest(values, chosen, ranks, axis_name), 0)
    box = q3 - q1
    if isinstance(r, Real) and math.isinf(r):
        lower, upper = jnp.full_like(box, -jnp.inf), jnp.full_like(box, jnp.inf)
    else:
        whisker = jnp.where(jnp.isinf(r), jnp.inf, jnp.where(jnp.isinf(r), 0, r) * box)  # not inf * 0
        lower, upper = (q1 - whisker).astype(q1.dtype), (q3 + whisker).astype(q1.dtype)
    lower, upper = jnp.where(count > 0, lower, 0), jnp.where(count > 0, upper, 0)
    return chosen & (lower <= values) & (values <= upper), (q1, q3, lower, upper)
