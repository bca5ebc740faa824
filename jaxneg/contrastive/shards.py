"""Batches that lie on several devices: what is gathered, what is summed, and anchors taken by blocks.

A loss with negatives takes ``axis_name`` where it is called inside `jax.shard_map`: its arrays are then one
device's share of the batch. Each device compares its own anchors with all candidates, so that the matrix of
all pairs is nowhere whole. Under explicit mesh axes the losses map themselves; under automatic axes the
compiler does the same with the whole arrays.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

AxisName = str | tuple[str, ...] | None


def gathered(x: Array, axis_name: AxisName, axis: int = 0) -> Array:
    """The shares of all devices one behind the other, with their gradient."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, axis=axis, tiled=True)


def summed(x: Array, axis_name: AxisName) -> Array:
    """The sum over the devices."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def averaged(x: Array, axis_name: AxisName) -> Array:
    """The mean over the devices."""
    return x if axis_name is None else jax.lax.pmean(x, axis_name)


def shards(axis_name: AxisName) -> int:
    """How many devices there are."""
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def positions(count: int, axis_name: AxisName) -> Int[Array, " count"]:
    """Where this device's examples lie in the whole batch."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
    return first + jnp.arange(count)


def explicit_axis(x: Array) -> AxisName:
    """The explicit mesh axis over which the first axis of an array lies, or None."""
    sharding = jax.typeof(x).sharding
    if not sharding.spec or AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return sharding.spec[0]


def on_shards(
    function: Callable[..., Any], sharded: tuple[Array, ...], *replicated: Any, out_specs: Any
) -> Any:
    """Calls a function of the shares of arrays that lie over an explicit mesh axis.

    Args:
        function: of the shares and of what is replicated, with the keyword ``axis_name``.
        sharded: over `explicit_axis` of the first.
        *replicated: trees of arrays.
        out_specs: of the results; ``"batch"`` in them stands for the axis.

    Returns:
        What the function returns, whole.
    """
    axis = explicit_axis(sharded[0])
    specs = jax.tree.map(
        lambda spec: P(*(axis if name == "batch" else name for name in spec)),
        out_specs,
        is_leaf=lambda spec: isinstance(spec, P),
    )
    return jax.shard_map(
        lambda *arrays: function(*arrays, axis_name=axis),
        mesh=jax.typeof(sharded[0]).sharding.mesh,
        in_specs=(*(P(axis) for _ in sharded), *(P() for _ in replicated)),
        out_specs=specs,
    )(*sharded, *jax.tree.map(jnp.asarray, replicated))


def over_blocks(function: Callable[[Any], Any], rows: Any, block_size: int | None) -> Any:
    """A function of rows, on so many of them at a time; its inner values are computed again backward.

    Args:
        function: of arrays with a leading axis of rows, and to such arrays.
        rows: arrays with a leading axis.
        block_size: rows in a block, a divisor of their number; None: all.

    Returns:
        What the function returns for all rows.

    Raises:
        ValueError: a block size that does not divide the rows.

    Example:
        >>> over_blocks(lambda x: 2 * x, jnp.arange(4), 2).tolist()
        [0, 2, 4, 6]
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    if block_size is None or block_size == count:
        return function(rows)
    if block_size < 1 or count % block_size:
        raise ValueError(f"block_size: expected a divisor of the {count} anchors, got {block_size}")
    blocks = jax.tree.map(lambda x: x.reshape(-1, block_size, *x.shape[1:]), rows)
    found = jax.lax.map(jax.checkpoint(function), blocks)
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), found)
