"""PCGrad: each task's gradient loses its components against the others, one after the other.

Yu et al., arXiv:2001.06782, Algorithm 1.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxneg.mtl.gram import checked_gram


def pcgrad(
    G: Float[Array, "tasks tasks"],
    orders: Int[Array, "tasks tasks"] | None = None,
    key: jax.Array | None = None,
    *,
    include_self: bool = False,
    eps: float = 0.0,
) -> Float[Array, " tasks"]:
    """Weights of projected conflicting gradients.

    For each task i start with ``c = e_i``; for j in its order: where ``(G c)_j < 0``, ``c_j -= (G c)_j /
    G_jj``. The weights are the sum of all c.

    Args:
        G: ``[T, T]``.
        orders: ``[T, T]`` integers; row i is the order of the tasks against which task i is projected.
        key: draws the orders, where they are not given.
        include_self: whether a task is also projected against itself when its turn comes, as LibMTL does.
        eps: added to ``G_jj`` (LibMTL: 1e-8).

    Returns:
        Weights ``[T]``, at least 1; they sum to T or more.

    Raises:
        ValueError: G not square or T = 0, both or neither of orders and key, orders of another shape, eps <
            0.
        TypeError: G not floating point, orders not integer.

    Source:
        arXiv:2001.06782, Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> G = jnp.array([[1.0, -0.5], [-0.5, 1.0]])
        >>> pcgrad(G, jnp.array([[0, 1], [0, 1]])).tolist()
        [1.5, 1.5]
    """
    G = checked_gram(G)
    tasks = G.shape[0]
    if eps < 0:
        raise ValueError(f"eps: expected at least 0, got {eps}")
    orders = task_orders(orders, key, tasks, widths=(tasks,))
    return _projected_sum(G, orders, eps, include_self)


def task_orders(
    orders: Array | None, key: jax.Array | None, tasks: int, widths: tuple[int, ...]
) -> Int[Array, "tasks others"]:
    """The order in which each task meets the others, as given or as drawn.

    Args:
        orders: ``[T, width]`` integers, or None.
        key: draws a permutation of all T for each task, where they are not given.
        tasks: T.
        widths: what may be given.

    Returns:
        The orders, integers.

    Raises:
        ValueError: both or neither of orders and key, or orders of another shape.
        TypeError: orders not integer.

    Example:
        >>> import jax
        >>> task_orders(None, jax.random.key(0), 3, (3,)).shape
        (3, 3)
    """
    if (orders is None) == (key is None):
        raise ValueError(f"orders, key: expected one of them, got {'neither' if orders is None else 'both'}")
    if key is not None:
        return jnp.argsort(jax.random.uniform(key, (tasks, tasks)), axis=1)
    orders = jnp.asarray(orders)
    if not jnp.issubdtype(orders.dtype, jnp.integer):
        raise TypeError(f"orders: expected integers, got {orders.dtype}")
    if orders.shape not in [(tasks, width) for width in widths]:
        allowed = " or ".join(str((tasks, width)) for width in widths)
        raise ValueError(f"orders: expected shape {allowed}, got {orders.shape}")
    return orders


@partial(jax.jit, static_argnums=3)
def _projected_sum(G: Array, orders: Array, eps: Array | float, include_self: bool) -> Array:
    tasks = G.shape[0]
    squares = jnp.diagonal(G) + eps
    safe = jnp.where(squares > 0, squares, 1.0)
    rows = jnp.arange(tasks)

    def project(carry: tuple[Array, Array], others: Array) -> tuple[tuple[Array, Array], None]:
        coefficients, products = carry
        conflict = jnp.minimum(products[rows, others], 0.0) / safe[others]
        if not include_self:
            conflict = jnp.where(others == rows, 0.0, conflict)
        removed = jnp.where(jnp.arange(tasks) == others[:, None], conflict[:, None], 0.0)
        return (coefficients - removed, products - conflict[:, None] * G[others]), None

    start = (jnp.eye(tasks, dtype=G.dtype), G)
    (coefficients, _), _ = jax.lax.scan(project, start, orders.T)
    return jnp.sum(coefficients, axis=0)
