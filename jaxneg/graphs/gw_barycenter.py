"""Gromov-Wasserstein barycentres of graphs: GWB, FGWB, and the smoothed SGWB and SFGWB.

Xu et al. 2021 (Learning Graphons via Structured Gromov-Wasserstein Barycenters, arXiv:2012.05644), published
code.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

from jaxneg.graphs.alignment import degree_distribution
from jaxneg.graphs.arguments import at_least


def target_distribution(
    degrees: Float[Array, "graphs nodes"],
    n_nodes: Int[Array, " graphs"],
    k: int,
    *,
    axis_name: str | None = None,
) -> Float[Array, " k"]:
    """The mean of the degree distributions, interpolated to k nodes.

    ``p_b ~ sum_g interp(p_g sorted descending, k points) + 1e-3``

    Args:
      degrees: Of :func:`align_graphs`.
      n_nodes: Number of nodes of each graph; 0: does not count.
      k: Number of nodes of the result.
      axis_name: Mesh axis over which graphs are spread, inside ``shard_map``.

    Returns:
      A distribution.

    Raises:
      ValueError: ``k`` below 1.

    Source:
      Xu et al. 2021, published code.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs import target_distribution
      >>> target = target_distribution(jnp.array([[0.5, 0.3, 0.2]]), jnp.array([3]), 2)
      >>> [round(p, 3) for p in target.tolist()]
      [0.714, 0.286]
    """
    at_least("k", k, 1)
    falling = -jnp.sort(-degrees, axis=1)
    # Where the k points of [0, 1] lie among the nodes of each graph.
    last = jnp.maximum(n_nodes - 1, 0)[:, None]
    place = jnp.linspace(0, 1, k, dtype=degrees.dtype) * last
    left = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, jnp.maximum(last - 1, 0))
    right = jnp.minimum(left + 1, last)
    at_left = jnp.take_along_axis(falling, left, axis=1)
    at_right = jnp.take_along_axis(falling, right, axis=1)
    each = at_left + (at_right - at_left) * (place - left) + 1e-3
    total = jnp.sum(jnp.where((n_nodes > 0)[:, None], each, 0), axis=0)
    total = total if axis_name is None else jax.lax.psum(total, axis_name)
    return total / total.sum()


def gw_barycenter(
    aligned: Float[Array, "graphs nodes nodes"],
    n_nodes: Int[Array, " graphs"],
    k: int,
    *,
    alpha: float | None = None,
    beta: float | Array = 5e-3,
    gamma: float | Array = 1.0,
    inner: int = 50,
    outer: int = 20,
    axis_name: str | None = None,
) -> Float[Array, "k k"]:
    """The barycentre of graphs in Gromov-Wasserstein distance.

    Repeats ``B = mean_g T_g A_g T_g^T / (p_b p_b^T)`` (smoothed: ``P M P^T + Q M Q^T`` of the mean M, see
    `alpha`) and ``T_g`` = KL-proximal transport with cost ``gamma (B^2 p_b 1^T + 1 (A_g^2 p_g)^T - 2 B T_g
    A_g^T) + (1 - gamma) (p_b - p_g^T)^2`` from the first plan, which knows the degrees alone.

    Args:
      aligned: Of :func:`align_graphs`, padded with zeros.
      n_nodes: Number of nodes of each graph; 0: does not count.
      k: Number of nodes of the barycentre.
      alpha: None, or smoothness: with ``alpha D^T D = U diag(s) U^T`` for second differences D and
        ``q = s^2 + p_b^2``: ``P = U diag(s / q) U^T, Q = diag(p_b / q)``.
      beta: Weight of the Kullback-Leibler term, positive.
      gamma: Weight of structure against degrees, in [0, 1].
      inner: Most Sinkhorn iterations; fewer once the row scaling changes by less than 1e-10 of itself.
      outer: Updates of the barycentre.
      axis_name: Mesh axis over which graphs are spread, inside ``shard_map``.

    Returns:
      The barycentre, clipped to [0, 1].

    Raises:
      ValueError: ``inner`` or ``outer`` below 1, ``alpha`` below 0.

    Source:
      Xu et al. 2021, Algorithms 1 and 2 as published in code.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs import gw_barycenter
      >>> gw_barycenter(jnp.ones((1, 4, 4)), jnp.array([4]), 2).round(3).tolist()
      [[1.0, 1.0], [1.0, 1.0]]
    """
    for name, least in {"inner": inner, "outer": outer}.items():
        at_least(name, least, 1)
    if alpha is not None:
        at_least("alpha", alpha, 0)
    dtype = aligned.dtype
    sizes = jnp.maximum(n_nodes, 1)  # a graph that does not count needs finite numbers all the same
    degrees = jax.vmap(degree_distribution)(aligned, sizes)
    target = target_distribution(degrees, n_nodes, k, axis_name=axis_name)
    there = jnp.arange(aligned.shape[1]) < sizes[:, None]
    weight = (n_nodes > 0).astype(dtype)
    count = weight.sum() if axis_name is None else jax.lax.psum(weight.sum(), axis_name)

    def scaled(cost: Array, valid: Array) -> Array:
        largest = jnp.max(jnp.where(valid, cost, -jnp.inf))
        return jnp.where(valid & (largest != 0), cost / jnp.where(largest == 0, 1, largest), 0)

    def transport(cost: Array, p: Array, log_prior: Array | None) -> Array:
        log_kernel = -cost / beta + (0 if log_prior is None else log_prior)
        return _sinkhorn(log_kernel, target, p, inner)

    def updated(plans: Array) -> Array:
        product = jnp.einsum("gka,gab,glb,g->kl", plans, aligned, plans, weight, precision="highest")
        total = product if axis_name is None else jax.lax.psum(product, axis_name)
        mean = total / count
        if alpha is None:
            return mean / (target[:, None] * target)
        vectors, values = _second_differences(k, alpha)
        smooth = jnp.asarray(values, dtype) / (jnp.asarray(values, dtype) ** 2 + target**2)
        vectors = jnp.asarray(vectors, dtype)
        p = jnp.matmul(vectors * smooth, vectors.T, precision="highest")
        q = target / (jnp.asarray(values, dtype) ** 2 + target**2)
        smoothed = jnp.matmul(jnp.matmul(p, mean, precision="highest"), p.T, precision="highest")
        return smoothed + q[:, None] * mean * q

    degree_cost = jax.vmap(lambda p, valid: scaled(jnp.square(target[:, None] - p), valid))(degrees, there)
    first = jax.vmap(lambda cost, p: transport(cost, p, None))(degree_cost, degrees)
    log_prior = jnp.log(first + jnp.asarray(1e-16, dtype))
    of_graphs = jnp.einsum("gab,gb->ga", jnp.square(aligned), degrees, precision="highest")

    def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        plans = state[0]
        barycenter = updated(plans)
        of_barycenter = jnp.matmul(jnp.square(barycenter), target, precision="highest")

        def plan(
            adj: Array, p: Array, own: Array, t: Array, by_degree: Array, prior: Array, valid: Array
        ) -> Array:
            product = jnp.matmul(jnp.matmul(barycenter, t, precision="highest"), adj.T, precision="highest")
            cost = of_barycenter[:, None] + own - 2 * product
            return transport(scaled(gamma * cost + (1 - gamma) * by_degree, valid), p, prior)

        plans = jax.vmap(plan)(aligned, degrees, of_graphs, plans, degree_cost, log_prior, there)
        return (plans, barycenter), None

    empty = updated(first)  # of the right type, varying over devices or not as the steps' own
    (_, barycenter), _ = jax.lax.scan(step, (first, empty), None, length=outer)
    return jnp.clip(barycenter, 0, 1)


def _sinkhorn(log_kernel: Array, rows: Array, columns: Array, iterations: int) -> Array:
    """The plan with these marginals nearest to the kernel, in logarithms, as exp(-1 / beta) may underflow.

    The last half step fits the rows. It stops where the row scaling a = exp(f) changes by less than 1e-10.
    """
    log_rows, log_columns = jnp.log(rows), jnp.log(columns)

    def iterate(state: tuple[Array, ...]) -> tuple[Array, ...]:
        number, f, _, _ = state
        g = log_columns - logsumexp(log_kernel + f[:, None], axis=0)
        new = log_rows - logsumexp(log_kernel + g, axis=1)
        top = jnp.maximum(new.max(), f.max())
        a, b = jnp.exp(f - top), jnp.exp(new - top)
        change = jnp.sum(jnp.abs(a - b)) / jnp.sum(a)
        return number + 1, new, g, change

    f = jnp.full_like(log_rows, -np.log(rows.shape[0])) + 0 * log_kernel[:, 0]
    g = jnp.zeros_like(log_columns) + 0 * log_kernel[0]
    start = (jnp.int32(0), f, g, jnp.inf + 0 * f[0])
    _, f, g, _ = jax.lax.while_loop(lambda s: (s[0] < iterations) & (s[3] > 1e-10), iterate, start)
    return jnp.exp(f[:, None] + log_kernel + g)


def _second_differences(k: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Singular vectors and values of ``alpha D^T D``, by falling value; zeros for fewer than three nodes."""
    d = 2 * np.eye(k)[1:-1] - np.eye(k)[2:] - np.eye(k)[:-2]
    vectors, values, _ = np.linalg.svd(alpha * (d.T @ d))
    return vectors, values
