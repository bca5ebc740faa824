"""Task affinity of noise levels: do the gradients of two denoising tasks point the same way?

Go et al., "Addressing Negative Transfer in Diffusion Models", arXiv:2306.00354, Section 3 (first
observation). The score of the paper is the mean of these matrices over checkpoints that are spread over the
training.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

NORM_FLOOR = 1e-8
"""What the norm of a gradient counts as at least."""


def task_affinity(gradients: Any) -> Float[Array, "timesteps timesteps"]:
    """The cosines of the tasks' gradients.

    ``A[s, t] = <g_s, g_t> / (max(|g_s|, 1e-8) max(|g_t|, 1e-8))``

    Args:
        gradients: g ``[T, P]``, or a pytree of arrays ``[T, ...]``, sharded over any axis but the first.

    Returns:
        ``[T, T]``, accumulated in float32 at least; a row of zeros, its diagonal too, for a task without a
        gradient.

    Raises:
        ValueError: no gradients, or arrays that disagree on T.
        TypeError: gradients that are not floating point.

    Source:
        arXiv:2306.00354, Section 3.

    Example:
        >>> import jax.numpy as jnp
        >>> task_affinity(jnp.array([[2.0, 0.0], [1.0, 0.0], [0.0, -3.0]]))[0].tolist()
        [1.0, 1.0, 0.0]
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(gradients)]
    lengths = {leaf.shape[:1] for leaf in leaves}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            "gradients: expected [T, P], or arrays with one leading axis of T >= 1 tasks, got shapes"
            f" {[leaf.shape for leaf in leaves]}"
        )
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"gradients: expected floating point, got {leaf.dtype}")
    return _cosines(_products(leaves, leaves))


def task_affinity_of(
    loss_fn: Callable[[Any, Any, Array, Array], Array],
    params: Any,
    timesteps: Any,
    batches: Any,
    key: Array,
    *,
    rows: int | None = None,
) -> Float[Array, "timesteps timesteps"]:
    """The task affinity of noise levels for given parameters, from data.

    `task_affinity` of ``g_t = d/dparams mean_(batches) mean_b loss(params, batch, t, key)``

    One gradient is taken at a time and summed over the batches. The noise depends on ``key``, the timestep's
    place and the batch's: with the same key for every checkpoint the scores vary less.

    Args:
        loss_fn: ``(params, batch, t, key) -> losses [B]``, t a scalar; a mean will do too.
        params: pytree of floating-point arrays.
        timesteps: t ``[T']`` integers, all of them or a grid.
        batches: pytree of arrays ``[batches, B, ...]``: the examples in batches of equal size.
        key: random key.
        rows: how many timesteps' gradients are held at once, twice; None holds all of them, once. With fewer,
            a gradient is computed again for each block of rows that comes before its own.

    Returns:
        ``[T', T']``.

    Raises:
        ValueError: no timesteps, no batches, or rows below 1.
        TypeError: timesteps that are not integers.

    Source:
        arXiv:2306.00354, Section 3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> loss_fn = lambda w, x, t, key: (x @ w - t) ** 2
        >>> timesteps, batches = jnp.arange(4), jnp.ones((2, 5, 3))
        >>> task_affinity_of(loss_fn, jnp.ones(3), timesteps, batches, jax.random.key(0)).shape
        (4, 4)
    """
    timesteps = jnp.asarray(timesteps)
    if timesteps.ndim != 1 or timesteps.size == 0:
        raise ValueError(f"timesteps: expected [T'] with at least one, got shape {timesteps.shape}")
    if not jnp.issubdtype(timesteps.dtype, jnp.integer):
        raise TypeError(f"timesteps: expected integers, got {timesteps.dtype}")
    counts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
    if len(counts) != 1 or counts & {(), (0,)}:
        raise ValueError(
            "batches: expected arrays [batches, B, ...] with one leading axis, got shapes"
            f" {[np.shape(leaf) for leaf in jax.tree.leaves(batches)]}"
        )
    if rows is not None and rows < 1:
        raise ValueError(f"rows: expected at least 1, or None for all at once, got {rows}")

    def gradient(place: Array) -> Any:
        t, task_key = timesteps[place], jax.random.fold_in(key, place)

        def add(total: Any, numbered: tuple[Array, Any]) -> tuple[Any, None]:
            number, batch = numbered
            noise_key = jax.random.fold_in(task_key, number)
            found = jax.grad(lambda p: jnp.mean(loss_fn(p, batch, t, noise_key)))(params)
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, found), None

        zeros = jax.tree.map(
            lambda leaf: jnp.zeros_like(leaf, jnp.promote_types(leaf.dtype, jnp.float32)), params
        )
        numbers = jnp.arange(next(iter(counts))[0])
        return jax.lax.scan(add, zeros, (numbers, batches))[0]

    def block(places: Array) -> list[Array]:
        return jax.tree.leaves(jax.lax.map(gradient, places))

    T = timesteps.size
    if rows is None or rows >= T:
        everything = block(jnp.arange(T))
        return _cosines(_products(everything, everything))
    blocks = -(-T // rows)
    places = jnp.minimum(jnp.arange(blocks * rows), T - 1).reshape(blocks, rows)

    def of_rows(first: tuple[Array, Array]) -> Array:
        number, own = first
        left = block(own)

        def of_columns(second: tuple[Array, Array]) -> Array:
            other_number, other = second
            return jax.lax.cond(
                other_number < number,
                lambda: jnp.zeros((rows, rows), products.dtype),
                lambda: _products(left, block(other)),
            )

        products = jax.eval_shape(lambda: _products(left, left))
        return jax.lax.map(of_columns, (jnp.arange(blocks), places))

    G = jax.lax.map(of_rows, (jnp.arange(blocks), places))
    G = G.transpose(0, 2, 1, 3).reshape(blocks * rows, blocks * rows)[:T, :T]
    return _cosines(jnp.triu(G) + jnp.triu(G, 1).T)


def _cosines(G: Array) -> Array:
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(G), NORM_FLOOR**2))
    return G / (norms[:, None] * norms)


def _products(left: list[Array], right: list[Array]) -> Array:
    return sum((_leaf_products(a, b) for a, b in zip(left, right, strict=True)), jnp.zeros(()))


def _leaf_products(left: Array, right: Array) -> Array:
    axes = tuple(range(1, left.ndim))
    sharding = jax.typeof(left).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return jax.lax.dot_general(
        left,
        right,
        ((axes, axes), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(left.dtype, jnp.float32),
        out_sharding=NamedSharding(sharding.mesh, PartitionSpec(None, None)) if explicit else None,
    )
