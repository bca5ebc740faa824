"""Order statistics by bisection: no sort, and of values that lie on many devices.

The bits of a floating-point number, read as an integer, are in the order of the numbers. The k-th smallest is
found bit by bit: the largest number that at most k values lie below. A bit costs one count, which is a sum
over all devices where there are several.
"""

from collections.abc import Hashable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def kth_smallest(
    values: Float[Array, "..."],
    mask: Bool[Array, "..."],
    ranks: Int[Array, " ranks"],
    axis_name: Hashable | None = None,
) -> Float[Array, " ranks"]:
    """The values of these ranks among the chosen ones, exactly, without a gradient.

    Args:
        values: numbers in float32 or float64, of any shape.
        mask: which of them count.
        ranks: from 0, each below the number of chosen values; beyond it the result is NaN.
        axis_name: mesh axis, or a tuple of them, over which values and mask are parts of a whole.

    Returns:
        One value for each rank.

    Example:
        >>> values, ranks = jnp.array([3.0, -1.0, 2.0, 9.0]), jnp.array([0, 2])
        >>> kth_smallest(values, values < 5, ranks).tolist()
        [-1.0, 3.0]
    """
    values = jax.lax.stop_gradient(values)
    bits = jnp.finfo(values.dtype).bits
    unsigned = jnp.dtype(f"uint{bits}")
    one = jnp.array(1, unsigned)
    top = one << (bits - 1)
    keys = jax.lax.bitcast_convert_type(values, unsigned)
    keys = jnp.where(keys >= top, ~keys, keys | top)
    keys = jnp.where(mask, keys, ~jnp.zeros((), unsigned))

    def narrow(step: Array, found: tuple[Array, ...]) -> tuple[Array, ...]:
        bit = one << (bits - 1 - step).astype(unsigned)
        narrowed = []
        for rank, prefix in enumerate(found):
            below = jnp.sum(keys < (prefix | bit), dtype=jnp.int32)
            below = below if axis_name is None else jax.lax.psum(below, axis_name)
            narrowed.append(jnp.where(below <= ranks[rank], prefix | bit, prefix))
        return tuple(narrowed)

    # Without an axis the search is each device's own, which a constant inside shard_map would not be.
    start = jnp.max(keys) & 0 if axis_name is None else jnp.zeros((), unsigned)
    found = jnp.stack(jax.lax.fori_loop(0, bits, narrow, (start,) * len(ranks)))
    found = jnp.where(found >= top, found & ~top, ~found)
    return jax.lax.bitcast_convert_type(found, values.dtype)
