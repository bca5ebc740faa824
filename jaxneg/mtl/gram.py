"""Gram matrices of stacked task gradients, and their weighted combination.

A Jacobian is a pytree whose leaves carry a leading task axis: leaf ``[T, ...]`` holds the gradients of
T losses with respect to one parameter array. Almost every method of this field reads it only through
``G = J J^T`` [T, T], so that sharded parameters cost T^2 numbers on the wire instead of T P.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

# A CPU's matrix product first repacks both operands, which costs more than the product where rows are few and
# long. On a single device, up to so many rows are multiplied in blocks of so many numbers that stay in cache.
_FEW_TASKS = 64
_BLOCK_NUMBERS = 98304


def gram(stacked_grads: Any) -> Float[Array, "tasks tasks"]:
    """The Gram matrix of the task gradients.

    ``G_ij = sum_p J_ip J_jp``, summed leaf by leaf: the Jacobian is never concatenated nor gathered. Under a
    mesh each device multiplies its own block and only T x T numbers cross, with automatic and explicit axes.

    Args:
        stacked_grads: pytree of floating-point arrays ``[T, ...]``, sharded over any axis or none.

    Returns:
        ``[T, T]``, accumulated in float32 at least (float64 for float64 leaves).

    Raises:
        ValueError: no leaves, T = 0, or leaves that disagree on T.
        TypeError: a leaf that is not floating point.

    Source:
        arXiv:2406.16232, Section 4 (the Gramian of the Jacobian).

    Example:
        >>> import jax.numpy as jnp
        >>> stacked_grads = {"w": jnp.ones((2, 3, 4)), "b": jnp.zeros((2, 4))}
        >>> gram(stacked_grads).shape
        (2, 2)
    """
    task_count(stacked_grads)
    return sum(_leaf_gram(leaf) for leaf in jax.tree.leaves(stacked_grads))  # pyright: ignore[reportReturnType]


def gram_sharded(stacked_grads: Any, axis_name: str | tuple[str, ...]) -> Float[Array, "tasks tasks"]:
    """The Gram matrix inside ``jax.shard_map``, where each device sees its own block of the parameters.

    ``G = psum_k J_k J_k^T``. Leaves must be different blocks on different devices: a leaf that is replicated
    over ``axis_name`` would be counted once a device.

    Args:
        stacked_grads: this device's block of the Jacobian, leaves ``[T, ...]``.
        axis_name: the mesh axis, or axes, over which the parameters are split.

    Returns:
        ``[T, T]``, the same on all devices.

    Raises:
        ValueError, TypeError: as `gram`.

    Source:
        arXiv:2406.16232, Section 4.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> blocks = jnp.ones((4, 2, 3))  # four devices' blocks of a [2, 12] Jacobian
        >>> float(jax.vmap(lambda block: gram_sharded(block, "model"), axis_name="model")(blocks)[0, 0, 1])
        12.0
    """
    return jax.lax.psum(gram(stacked_grads), axis_name)


def cross_gram(left: Any, right: Any) -> Float[Array, "tasks tasks"]:
    """The products of the task gradients of two batches.

    ``A_ij = sum_p J1_ip J2_jp``, leaf by leaf, as `gram`.

    Args:
        left: J1, pytree of floating-point arrays ``[T, ...]``.
        right: J2, like it.

    Returns:
        ``[T, T]``, accumulated in float32 at least; not symmetric.

    Raises:
        ValueError, TypeError: as `gram`, or two pytrees of different shapes.

    Source:
        arXiv:2305.18409, Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> cross_gram(jnp.ones((2, 3)), jnp.zeros((2, 3))).tolist()
        [[0.0, 0.0], [0.0, 0.0]]
    """
    task_count(left)
    task_count(right)
    shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (left, right)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"right: expected the shapes of left, {shapes[0]}, got {shapes[1]}")
    products = [
        _leaf_products(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    ]
    return sum(products[1:], products[0])


def combine(w: Float[Array, " tasks"], stacked_grads: Any) -> Any:
    """The weighted sum of the task gradients.

    ``g = sum_i w_i J_i``, leaf by leaf; every device combines its own block, nothing crosses the mesh.

    Args:
        w: ``[T]``.
        stacked_grads: pytree of ``[T, ...]``.

    Returns:
        The pytree without the task axis, in the leaves' dtypes (accumulated in float32 at least).

    Raises:
        ValueError: w that is not ``[T]``.

    Example:
        >>> import jax.numpy as jnp
        >>> combine(jnp.array([1.0, 2.0]), {"w": jnp.ones((2, 3))})["w"].tolist()
        [3.0, 3.0, 3.0]
    """
    tasks = task_count(stacked_grads)
    if w.shape != (tasks,):
        raise ValueError(f"w: expected shape ({tasks},), one for each task of stacked_grads, got {w.shape}")
    return jax.tree.map(lambda leaf: _combine_leaf(w, leaf), stacked_grads)


def task_count(stacked_grads: Any) -> int:
    """The common length of the leading axes of a Jacobian's leaves.

    Args:
        stacked_grads: pytree of ``[T, ...]``.

    Returns:
        T.

    Raises:
        ValueError: no leaves, T = 0, or leaves that disagree on T.
        TypeError: a leaf that is not floating point.

    Example:
        >>> import jax.numpy as jnp
        >>> task_count({"w": jnp.ones((2, 3))})
        2
    """
    leaves = jax.tree_util.tree_leaves_with_path(stacked_grads)
    if not leaves:
        raise ValueError(
            "stacked_grads: expected at least one array with a leading task axis, got an empty pytree"
        )
    tasks = None
    for path, leaf in leaves:
        name = f"stacked_grads{jax.tree_util.keystr(path)}"
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"{name}: expected floating point, got {leaf.dtype}")
        if leaf.ndim == 0:
            raise ValueError(f"{name}: expected a leading task axis, got a scalar")
        if tasks is None:
            tasks = leaf.shape[0]
        if leaf.shape[0] != tasks:
            raise ValueError(f"{name}: expected {tasks} tasks on the leading axis, got shape {leaf.shape}")
    if not tasks:
        raise ValueError("stacked_grads: expected at least one task, got a leading axis of length 0")
    return tasks


def checked_gram(gram_matrix: Float[Array, "tasks tasks"]) -> Float[Array, "tasks tasks"]:
    """A Gram matrix that the methods can work on: square, T >= 1, float32 at least.

    Args:
        gram_matrix: ``[T, T]``.

    Returns:
        The same; bfloat16 and float16 become float32.

    Raises:
        ValueError: not square, or T = 0.
        TypeError: not floating point.

    Example:
        >>> import jax.numpy as jnp
        >>> checked_gram(jnp.eye(2, dtype=jnp.bfloat16)).dtype.name
        'float32'
    """
    gram_matrix = jnp.asarray(gram_matrix)
    if gram_matrix.ndim != 2 or gram_matrix.shape[0] != gram_matrix.shape[1]:
        raise ValueError(
            f"G: expected a square matrix [T, T], got shape {gram_matrix.shape}; vmap over batches"
        )
    if gram_matrix.shape[0] == 0:
        raise ValueError("G: expected at least one task, got shape (0, 0)")
    if not jnp.issubdtype(gram_matrix.dtype, jnp.floating):
        raise TypeError(f"G: expected floating point, got {gram_matrix.dtype}")
    return gram_matrix.astype(jnp.promote_types(gram_matrix.dtype, jnp.float32))


def _leaf_gram(leaf: Array) -> Array:
    few_and_long = leaf.shape[0] <= _FEW_TASKS and leaf.size >= 2 * _BLOCK_NUMBERS
    if few_and_long and jax.device_count() == 1 and _explicit_sharding(leaf) is None:
        return jax.lax.platform_dependent(leaf, cpu=_blocked_products, default=_products)
    return _leaf_products(leaf, leaf)


def _leaf_products(left: Array, right: Array) -> Array:
    sharding = _explicit_sharding(left)
    if sharding is None:
        return _row_products(left, right)
    # Rows on different devices have to meet: asked for, because the product alone would be ambiguous.
    together = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec[1:]))
    left, right = (
        leaf if jax.typeof(leaf).sharding == together else jax.sharding.reshard(leaf, together)
        for leaf in (left, right)
    )
    return _row_products(left, right, NamedSharding(sharding.mesh, PartitionSpec(None, None)))


def _products(leaf: Array) -> Array:
    return _row_products(leaf, leaf)


def _row_products(left: Array, right: Array, out_sharding: NamedSharding | None = None) -> Array:
    parameter_axes = tuple(range(1, left.ndim))
    return jax.lax.dot_general(
        left,
        right,
        ((parameter_axes, parameter_axes), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(left.dtype, jnp.float32),
        out_sharding=out_sharding,
    )


@jax.custom_jvp
def _blocked_products(leaf: Array) -> Array:
    tasks = leaf.shape[0]
    rows = leaf.reshape(tasks, -1)
    width = min(16384, 2 ** int(math.log2(_BLOCK_NUMBERS / tasks)))
    blocks = rows.shape[1] // width

    # The product of many rows is bound by arithmetic: the half that symmetry gives is left out.
    first = tasks // 2 if tasks >= 16 else 0

    def products(block: Array) -> tuple[Array, Array, Array]:
        upper, lower = block[:first], block[first:]
        return _products(upper), _row_products(upper, lower), _products(lower)

    def add(index: Array, total: tuple[Array, ...]) -> tuple[Array, ...]:
        block = jax.lax.dynamic_slice_in_dim(rows, index * width, width, axis=1)
        return jax.tree.map(jnp.add, total, products(block))

    upper, across, lower = jax.lax.fori_loop(0, blocks, add, products(rows[:, blocks * width :]))
    return jnp.block([[upper, across], [across.T, lower]])


@_blocked_products.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    cross = _row_products(tangents[0], primals[0])
    return _blocked_products(primals[0]), cross + cross.T


def _combine_leaf(weights: Array, leaf: Array) -> Array:
    sharding = _explicit_sharding(leaf)
    if sharding is not None:
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    accumulator = jnp.promote_types(jnp.promote_types(weights.dtype, leaf.dtype), jnp.float32)
    combined = jax.lax.dot_general(
        weights.astype(accumulator),
        leaf.astype(accumulator),
        (((0,), (0,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        out_sharding=sharding,
    )
    return combined.astype(leaf.dtype)


def _explicit_sharding(leaf: Array) -> NamedSharding | None:
    """The sharding that is part of the array's type, where the mesh has explicit axes."""
    sharding = jax.typeof(leaf).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None
