"""GradVac: task gradients are turned towards each other until they are as similar as they usually are.

Wang et al., arXiv:2010.05874, Algorithm 1, on the Gram matrix of one group of parameters: all that are
shared, or a layer with a link of its own (see `multitask`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxneg.mtl.gram import checked_gram
from jaxneg.mtl.pcgrad import task_orders
from jaxneg.mtl.solvers import gradient_norms


def gradvac(
    G: Float[Array, "tasks tasks"],
    rho: Float[Array, "tasks tasks"],
    orders: Int[Array, "tasks others"] | None = None,
    key: jax.Array | None = None,
    beta: float = 0.5,
) -> tuple[Float[Array, " tasks"], Float[Array, "tasks tasks"]]:
    """Weights of gradient vaccine, and the similarities that it aims at from now on.

    For each task i start with ``c = e_i``; for j in its order, with ``n = sqrt(c^T G c)``,
    ``d_j = sqrt(G_jj)`` and the cosine ``phi = (G c)_j / (n d_j)``: where ``phi < rho_ij``,

    ``c_j += n (rho_ij sqrt(1 - phi^2) - phi sqrt(1 - rho_ij^2)) / (d_j sqrt(1 - rho_ij^2))``

    and always ``rho_ij <- (1 - beta) rho_ij + beta phi``. The weights are the sum of all c. For a group of
    parameters of its own, keep a G and a rho of its own.

    Args:
        G: ``[T, T]``.
        rho: ``[T, T]``, the state; zeros at first.
        orders: integers; ``[T, T]``, row i the order of the tasks (itself is skipped), or ``[T, T - 1]``, row
            i the order of the others, counted without it.
        key: draws the orders, where they are not given.
        beta: how fast rho follows the cosines, from 0 to 1.

    Returns:
        ``(w, rho)``: weights ``[T]`` and the state ``[T, T]``.

    Raises:
        ValueError: G not square or T = 0, rho of another shape, both or neither of orders and key, orders of
            another shape, beta outside [0, 1].
        TypeError: G not floating point, orders not integer.

    Source:
        arXiv:2010.05874, Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> G = jnp.array([[1.0, -0.5], [-0.5, 1.0]])
        >>> w, rho = gradvac(G, jnp.zeros((2, 2)), jnp.array([[0], [0]]))
        >>> w.tolist(), rho.tolist()
        ([1.5, 1.5], [[0.0, -0.25], [-0.25, 0.0]])
    """
    G = checked_gram(G)
    tasks = G.shape[0]
    if rho.shape != G.shape:
        raise ValueError(f"rho: expected shape {G.shape}, one for each pair of tasks, got {rho.shape}")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta: expected from 0 to 1, got {beta}")
    orders = task_orders(orders, key, tasks, widths=(tasks, tasks - 1))
    if orders.shape[1] < tasks:
        orders = orders + (orders >= jnp.arange(tasks)[:, None])
    return _vaccinated_sum(G, rho.astype(G.dtype), orders, jnp.asarray(beta, G.dtype))


@jax.jit
def _vaccinated_sum(G: Array, rho: Array, orders: Array, beta: Array) -> tuple[Array, Array]:
    tasks = G.shape[0]
    rows, lengths = jnp.arange(tasks), gradient_norms(G)

    def turn(carry: tuple[Array, ...], others: Array) -> tuple[tuple[Array, ...], None]:
        coefficients, products, rho = carry
        aim, length = rho[rows, others], lengths[others]
        own = _root(jnp.sum(coefficients * products, axis=1))
        cosine = products[rows, others] / (own * length + 1e-8)
        aim_sine = _root(1 - aim**2)
        added = own * (aim * _root(1 - cosine**2) - cosine * aim_sine) / (length * aim_sine + 1e-8)
        added = jnp.where((cosine < aim) & (others != rows), added, 0.0)
        at_other = jnp.arange(tasks) == others[:, None]
        followed = jnp.where(at_other & (others != rows)[:, None], (beta * (cosine - aim))[:, None], 0.0)
        coefficients = coefficients + jnp.where(at_other, added[:, None], 0.0)
        return (coefficients, products + added[:, None] * G[others], rho + followed), None

    start = (jnp.eye(tasks, dtype=G.dtype), G, rho)
    (coefficients, _, rho), _ = jax.lax.scan(turn, start, orders.T)
    return jnp.sum(coefficients, axis=0), rho


def _root(square: Array) -> Array:
    """The square root of what rounding may have made negative, with derivative 0 there."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
