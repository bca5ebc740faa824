"""The Gromov-Wasserstein discrepancy of two matrices: its objective, an exact and an entropic solver.

Mémoli 2011; Peyré, Cuturi and Solomon 2016 (ICML; decomposition of the loss, entropic solver); Vayer et al.
2019 (ICML; conditional gradient with line search). ott-jax has an entropic solver only: its values are
biased by epsilon, and its loop is a ``while_loop`` without a reverse mode. Here the plan is a constant for
differentiation (envelope theorem), so that every solver's value has a gradient.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxneg.graphs.arguments import at_least, one_of, square, wide
from jaxneg.graphs.linear_assignment import assignment

Loss = Literal["square", "kl"]
LOSSES = ("square", "kl")
SOLVERS = ("frank_wolfe", "proximal")


class GWResult(NamedTuple):
    """A Gromov-Wasserstein discrepancy.

    Attributes:
      value: The least value found: GW^2 for the square loss, not its root. Differentiable in both matrices.
      plan: The coupling that has it.
      per_start: The value that each start led to.
    """

    value: Float[Array, ""]
    plan: Float[Array, "n m"]
    per_start: Float[Array, " starts"]


def gw_objective(
    c1: Float[Array, "n n"],
    c2: Float[Array, "m m"],
    t: Float[Array, "n m"],
    p: Float[Array, " n"] | None = None,
    q: Float[Array, " m"] | None = None,
    loss: Loss = "square",
) -> Float[Array, ""]:
    """How much a coupling distorts.

    ``sum_ijkl L(C1_ik, C2_jl) T_ij T_kl``, ``L(a, b) = (a - b)^2`` or ``a log((a + 1e-15) / (b + 1e-15)) - a
    + b``

    Args:
      c1: First matrix, symmetric or not.
      c2: Second matrix.
      t: Coupling.
      p: Row sums of the coupling; computed by default, which makes the formula hold for every ``t``.
      q: Column sums, likewise.
      loss: "square" or "kl".

    Returns:
      The value; differentiable in all arrays. Near 0 it has the absolute error of differences of squares.

    Raises:
      ValueError: A shape does not fit, or ``loss`` is unknown.

    Source:
      Peyré, Cuturi and Solomon 2016, Proposition 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs import gw_objective
      >>> float(gw_objective(jnp.ones((2, 2)), jnp.zeros((2, 2)), jnp.full((2, 2), 0.25)))
      1.0
    """
    one_of("loss", loss, LOSSES)
    c1, c2, t = square("c1", c1), square("c2", c2), wide(t)
    if t.shape != (len(c1), len(c2)):
        raise ValueError(f"t: expected shape {(len(c1), len(c2))}, got {t.shape}")
    p = t.sum(1) if p is None else _marginal("p", p, len(c1))
    q = t.sum(0) if q is None else _marginal("q", q, len(c2))
    f1, f2, h1, h2 = _decomposed(c1, c2, loss)
    return p @ (f1 @ p) + q @ (f2 @ q) - jnp.sum(_product(h1, t, h2) * t)


def gw_distance(
    c1: Float[Array, "n n"],
    c2: Float[Array, "m m"],
    *,
    starts: int = 2,
    iters: int = 40,
    key: PRNGKeyArray | None = None,
    solver: Literal["frank_wolfe", "proximal"] = "frank_wolfe",
    loss: Loss = "square",
    p: Float[Array, " n"] | None = None,
    q: Float[Array, " m"] | None = None,
    beta: float = 0.1,
    outer: int = 100,
    inner: int = 20,
) -> GWResult:
    """The Gromov-Wasserstein discrepancy, the best of several starts.

    ``GW^2(C1, C2) = min_(T 1 = p, T^T 1 = q) sum_ijkl (C1_ik - C2_jl)^2 T_ij T_kl``

    Starts: the coupling ``p q^T``; nodes matched in the order of their degrees; nodes matched at random.

    Args:
      c1: First matrix.
      c2: Second matrix.
      starts: Number of starts. The problem is not convex: for smooth graphons the first two find the least
        known value, for matrices without structure many random ones are needed.
      iters: Most Frank-Wolfe iterations; fewer once nothing is gained.
      key: For the starts from the third on; ``jax.random.key(0)`` by default.
      solver: "frank_wolfe": exact line search, and an assignment problem for the linear step; for n = m and
        uniform marginals, in all other cases "proximal" takes its place: proximal-point entropic steps,
        rounded onto the marginals before the value is read.
      loss: "square" or "kl", see :func:`gw_objective`. "kl" is not symmetric, and unstable where ``c2`` has
        zeros.
      p: Distribution of the nodes of ``c1``; uniform by default.
      q: Distribution of the nodes of ``c2``; likewise.
      beta: Of "proximal": weight of the Kullback-Leibler step.
      outer: Of "proximal": steps.
      inner: Of "proximal": Sinkhorn iterations a step.

    Returns:
      Value, plan, and the values of all starts. Batches are made by ``vmap``; the gradient of the value is
      the envelope's, ``d/dC1 = 2 (C1 * p p^T - T C2 T^T)``. Not finite where a matrix is not.

    Raises:
      ValueError: A shape or setting does not fit.

    Source:
      Vayer et al. 2019, Algorithm 2 and Appendix (line search); Xu et al. 2019, ICML (proximal points);
      Altschuler et al. 2017, Algorithm 2 (rounding).

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs import gw_distance
      >>> path = jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
      >>> bool(gw_distance(path, path[::-1, ::-1]).value < 1e-6)
      True
    """
    one_of("solver", solver, SOLVERS)
    one_of("loss", loss, LOSSES)
    c1, c2 = square("c1", c1), square("c2", c2)
    dtype = jnp.promote_types(c1.dtype, c2.dtype)
    c1, c2 = c1.astype(dtype), c2.astype(dtype)
    for name, value in {"starts": starts, "iters": iters, "outer": outer, "inner": inner}.items():
        at_least(name, value, 1)
    if not beta > 0:
        raise ValueError(f"beta: expected a positive number, got {beta}")
    exact = solver == "frank_wolfe" and p is None and q is None and len(c1) == len(c2)
    rows = jnp.full(len(c1), 1 / len(c1), dtype) if p is None else _distribution("p", p, len(c1))
    columns = jnp.full(len(c2), 1 / len(c2), dtype) if q is None else _distribution("q", q, len(c2))
    key = jax.random.key(0) if key is None else key
    settings = (iters,) if exact else (float(beta), outer, inner)
    return _solve(c1, c2, rows.astype(dtype), columns.astype(dtype), key, starts, loss, settings)


def entropic_gw(
    c1: Float[Array, "n n"],
    c2: Float[Array, "m m"],
    epsilon: float,
    *,
    p: Float[Array, " n"] | None = None,
    q: Float[Array, " m"] | None = None,
    loss: Loss = "square",
    outer: int = 1000,
    inner: int = 1000,
    tol: float = 1e-9,
) -> GWResult:
    """Entropic Gromov-Wasserstein: the fixed point of projected gradient steps from ``p q^T``.

    ``T <- argmin_T <grad(T), T> + epsilon sum T log T`` over couplings, where ``grad`` is that of
    :func:`gw_objective`

    Args:
      c1: First matrix.
      c2: Second matrix.
      epsilon: Weight of the entropy.
      p: Distribution of the nodes of ``c1``; uniform by default.
      q: Distribution of the nodes of ``c2``; likewise.
      loss: "square" or "kl".
      outer: Most gradient steps.
      inner: Most Sinkhorn iterations a step.
      tol: Stops when a plan, or the row sums within a step, change by less in all; at least ten roundings.

    Returns:
      The objective at the plan, without the entropy (biased upward by it); the plan; the value again.

    Raises:
      ValueError: A shape or setting does not fit.

    Source:
      Peyré, Cuturi and Solomon 2016, Equation 8.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs import entropic_gw
      >>> entropic_gw(jnp.eye(2), jnp.eye(2), 10.0).plan.round(2).tolist()
      [[0.25, 0.25], [0.25, 0.25]]
    """
    one_of("loss", loss, LOSSES)
    c1, c2 = square("c1", c1), square("c2", c2)
    dtype = jnp.promote_types(c1.dtype, c2.dtype)
    c1, c2 = c1.astype(dtype), c2.astype(dtype)
    for name, value in {"outer": outer, "inner": inner}.items():
        at_least(name, value, 1)
    if not epsilon > 0:
        raise ValueError(f"epsilon: expected a positive number, got {epsilon}")
    rows = jnp.full(len(c1), 1 / len(c1), dtype) if p is None else _distribution("p", p, len(c1))
    columns = jnp.full(len(c2), 1 / len(c2), dtype) if q is None else _distribution("q", q, len(c2))
    return _entropic(
        c1, c2, rows.astype(dtype), columns.astype(dtype), loss, float(epsilon), outer, inner, tol
    )


def round_to_marginals(
    t: Float[Array, "n m"], p: Float[Array, " n"], q: Float[Array, " m"]
) -> Float[Array, "n m"]:
    """A plan with exactly these marginals near one that has them roughly.

    Rows, then columns that are too heavy are scaled down; what lacks is added as a product.

    Args:
      t: Not negative.
      p: Row sums.
      q: Column sums, of the same total.

    Returns:
      The plan.

    Raises:
      ValueError: A shape does not fit.

    Source:
      Altschuler, Weed and Rigollet 2017, Algorithm 2.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs import round_to_marginals
      >>> half = jnp.array([0.5, 0.5])
      >>> round_to_marginals(jnp.array([[1.0, 0.0], [0.0, 0.0]]), half, half).tolist()
      [[0.5, 0.0], [0.0, 0.5]]
    """
    t = wide(t)
    if t.ndim != 2:
        raise ValueError(f"t: expected a matrix, got shape {t.shape}")
    p, q = _marginal("p", p, t.shape[0]), _marginal("q", q, t.shape[1])

    def share(wanted: Array, there: Array) -> Array:
        return jnp.where(there > wanted, wanted / jnp.where(there > 0, there, 1), 1)

    t = t * share(p, t.sum(1))[:, None]
    t = t * share(q, t.sum(0))
    lack_p, lack_q = jnp.maximum(p - t.sum(1), 0), jnp.maximum(q - t.sum(0), 0)
    lack = lack_p.sum()
    return t + lack_p[:, None] * lack_q / jnp.where(lack > 0, lack, 1)


@partial(jax.jit, static_argnames=("starts", "loss", "settings"))
def _solve(
    c1: Array,
    c2: Array,
    p: Array,
    q: Array,
    key: PRNGKeyArray,
    starts: int,
    loss: Loss,
    settings: tuple[float | int, ...],
) -> GWResult:
    """Every start, and the best; settings of one number are Frank-Wolfe's."""
    # A plan is a coupling even where a matrix is not finite; the value is read with the true matrices.
    finite = jnp.all(jnp.isfinite(c1)) & jnp.all(jnp.isfinite(c2))
    safe1, safe2 = (jax.lax.stop_gradient(jnp.where(finite, c, 0)) for c in (c1, c2))
    p, q = jax.lax.stop_gradient((p, q))
    orders = _orders(safe1, safe2, key, starts)
    if len(settings) == 1:
        solve = partial(_frank_wolfe, iters=int(settings[0]))
        plans = jax.vmap(lambda order: _permutation(order, p.dtype))(orders)
        plans = jnp.concatenate([(p[:, None] * q)[None], plans])[:starts]
    else:
        beta, outer, inner = settings
        solve = partial(_proximal, p=p, q=q, beta=beta, outer=int(outer), inner=int(inner))
        product = p[:, None] * q
        # A zero would stay one: starts are mixed with the product.
        plans = jax.vmap(lambda order: (_monotone(order, p, q) + product) / 2)(orders)
        plans = jnp.concatenate([product[None], plans])[:starts]
    parts = _decomposed(safe1, safe2, loss)
    # Each start is a loop of unknown length: a CPU takes one after the other.
    plans = jax.lax.platform_dependent(
        plans,
        cpu=lambda plans: jax.lax.map(lambda plan: solve(parts, plan), plans),
        default=jax.vmap(lambda plan: solve(parts, plan)),
    )
    plans = jax.lax.stop_gradient(plans)
    values = jax.vmap(lambda plan: _value(c1, c2, plan, p, q, loss))(plans)
    best = jnp.argmin(values)
    return GWResult(values[best], plans[best], values)


@partial(jax.jit, static_argnames=("loss", "epsilon", "outer", "inner", "tol"))
def _entropic(
    c1: Array, c2: Array, p: Array, q: Array, loss: Loss, epsilon: float, outer: int, inner: int, tol: float
) -> GWResult:
    parts = _decomposed(*jax.lax.stop_gradient((c1, c2)), loss)
    p, q = jax.lax.stop_gradient((p, q))
    tol = max(tol, 10 * float(jnp.finfo(c1.dtype).eps))

    def iterate(state: tuple[Array, ...]) -> tuple[Array, ...]:
        number, t, _ = state
        new = _sinkhorn(-_gradient(parts, t, p, q) / epsilon, p, q, inner, tol)
        return number + 1, new, jnp.sum(jnp.abs(new - t))

    start = (jnp.int32(0), p[:, None] * q, jnp.asarray(jnp.inf, p.dtype))
    _, plan, _ = jax.lax.while_loop(lambda s: (s[0] < outer) & (s[2] > tol), iterate, start)
    value = gw_objective(c1, c2, jax.lax.stop_gradient(plan), p, q, loss)
    return GWResult(value, plan, value[None])


def _frank_wolfe(parts: tuple[Array, ...], plan: Array, iters: int) -> Array:
    """Conditional gradient over permutation matrices / n, with exact line search.

    ``f(T) = constant - <H1 T H2^T, T>``. A vertex S is a permutation, so that ``H1 S H2^T`` is one product
    of H1 with the permuted H2, and ``H1 T H2^T`` follows T by the same line search.
    """
    f1, f2, h1, h2 = parts
    n = len(plan)
    scale = jnp.abs(jnp.mean(f1) + jnp.mean(f2))
    least = max(1e-9, float(jnp.finfo(plan.dtype).eps)) * scale
    symmetric = jnp.all(h1 == h1.T) & jnp.all(h2 == h2.T)

    def iterate(state: tuple[Array, ...]) -> tuple[Array, ...]:
        number, t, m, m_back, prices, _ = state
        column, prices = assignment(-(m + m_back), prices)
        vertex = _permutation(column, t.dtype)
        at_vertex = _matmul(h1, h2[:, column].T) / n
        back = jax.lax.cond(symmetric, lambda: at_vertex, lambda: _matmul(h1.T, h2[column]) / n)
        delta, m_delta = vertex - t, at_vertex - m
        a = -jnp.sum(m_delta * delta)
        b = -(jnp.sum(m * delta) + jnp.sum(m_delta * t))
        inside = jnp.clip(-b / (2 * jnp.where(a > 0, a, 1)), 0, 1)
        step = jnp.where(a > 0, inside, jnp.where(a + b < 0, 1.0, 0.0))
        gained = -(a * step + b) * step > least

        def moved(old: Array, new: Array) -> Array:
            return jnp.where(gained, (1 - step) * old + step * new, old)

        return number + 1, moved(t, vertex), moved(m, at_vertex), moved(m_back, back), prices, ~gained

    m = _product(h1, plan, h2)
    back = jax.lax.cond(symmetric, lambda: m, lambda: _product(h1.T, plan, h2.T))
    start = (jnp.int32(0), plan, m, back, jnp.zeros_like(m[0]), jnp.bool_(False))
    return jax.lax.while_loop(lambda s: (s[0] < iters) & ~s[5], iterate, start)[1]


def _proximal(
    parts: tuple[Array, ...], plan: Array, p: Array, q: Array, beta: float, outer: int, inner: int
) -> Array:
    """Proximal points: each step's entropy is relative to the plan before; rounded at the end."""

    def step(log_plan: Array, _: None) -> tuple[Array, None]:
        gradient = _gradient(parts, jnp.exp(log_plan), p, q)
        return _log_sinkhorn(log_plan - gradient / beta, p, q, inner), None

    log_plan, _ = jax.lax.scan(step, jnp.log(plan), None, length=outer)
    return round_to_marginals(jnp.exp(log_plan), p, q)


def _log_sinkhorn(log_kernel: Array, p: Array, q: Array, iterations: int) -> Array:
    """The logarithm of the kernel, scaled so often to these marginals; the columns last."""

    def step(g: Array, _: None) -> tuple[Array, Array]:
        # A node of no weight has a row of zeros, which no scale changes.
        f = jnp.where(p > 0, jnp.log(p) - logsumexp(log_kernel + g, axis=1), -jnp.inf)
        g = jnp.where(q > 0, jnp.log(q) - logsumexp(log_kernel + f[:, None], axis=0), -jnp.inf)
        return g, f

    g, f = jax.lax.scan(step, jnp.zeros_like(q) + 0 * log_kernel[0], None, length=iterations)
    return log_kernel + f[-1][:, None] + g


def _sinkhorn(log_kernel: Array, p: Array, q: Array, iterations: int, tol: float) -> Array:
    """The kernel scaled to these marginals, until its row sums are off by less than ``tol`` in all."""

    def iterate(state: tuple[Array, ...]) -> tuple[Array, ...]:
        number, g, _, _ = state
        f = jnp.log(p) - logsumexp(log_kernel + g, axis=1)
        new = jnp.log(q) - logsumexp(log_kernel + f[:, None], axis=0)
        off = jnp.sum(jnp.abs(jnp.exp(f + logsumexp(log_kernel + new, axis=1)) - p))
        return number + 1, new, f, off

    start = (jnp.int32(0), jnp.zeros_like(q), jnp.zeros_like(p), jnp.asarray(jnp.inf, p.dtype))
    _, g, f, _ = jax.lax.while_loop(lambda s: (s[0] < iterations) & (s[3] > tol), iterate, start)
    return jnp.exp(log_kernel + f[:, None] + g)


def _decomposed(c1: Array, c2: Array, loss: Loss) -> tuple[Array, Array, Array, Array]:
    """``L(a, b) = f1(a) + f2(b) - h1(a) h2(b)`` at all entries."""
    if loss == "square":
        return jnp.square(c1), jnp.square(c2), c1, 2 * c2
    return c1 * jnp.log(c1 + 1e-15) - c1, c2, c1, jnp.log(c2 + 1e-15)


def _gradient(parts: tuple[Array, ...], t: Array, p: Array, q: Array) -> Array:
    """Of the objective in T."""
    f1, f2, h1, h2 = parts
    rows = f1 @ p + f1.T @ p
    columns = f2 @ q + f2.T @ q
    return rows[:, None] + columns - _product(h1, t, h2) - _product(h1.T, t, h2.T)


def _value(c1: Array, c2: Array, t: Array, p: Array, q: Array, loss: Loss) -> Array:
    """The objective; for the square loss as a sum of squares, which keeps its digits near 0.

    With the mean D of C2 over what i and k are matched with, ``(C1 - D)^2`` plus the variance about D.
    """
    if loss != "square":
        return gw_objective(c1, c2, t, p, q, loss="kl")
    weight = p[:, None] * p
    share = t / jnp.where(p > 0, p, 1)[:, None]  # of a permutation exactly 0 and 1
    mean = _product(share, c2, share)
    spread = _product(share, jnp.square(c2), share) - jnp.square(mean)
    spread = jnp.where(spread < 0, 0, spread)
    return jnp.sum(weight * (jnp.square(c1 - mean) + spread))


def _orders(c1: Array, c2: Array, key: PRNGKeyArray, starts: int) -> Array:
    """For each start but the first the nodes of C1 and of C2 as they are matched; -1 behind the shorter."""
    by_degree = jnp.stack([_padded(_falling(c), max(len(c1), len(c2))) for c in (c1, c2)])
    if starts < 3:
        return by_degree[None]
    # Orders by random numbers.
    columns = jnp.argsort(jax.random.uniform(key, (starts - 2, len(c2))), axis=1)
    columns = jnp.pad(columns, ((0, 0), (0, by_degree.shape[1] - len(c2))), constant_values=-1)
    at_random = jnp.stack([jnp.broadcast_to(by_degree[0], columns.shape), columns], axis=1)
    return jnp.concatenate([by_degree[None], at_random])


def _falling(c: Array) -> Array:
    """Nodes in the order of falling degrees."""
    return jnp.argsort(-(c.sum(0) + c.sum(1)), stable=True)


def _padded(order: Array, size: int) -> Array:
    return jnp.pad(order, (0, size - len(order)), constant_values=-1)


def _permutation(column: Array, dtype: np.dtype) -> Array:
    """The matrix with 1 / n at each row's column; two rows of nodes are matched one by one."""
    if column.ndim == 2:
        column = jnp.zeros_like(column[0]).at[column[0]].set(column[1])
    return jax.nn.one_hot(column, len(column), dtype=dtype) / len(column)


def _monotone(orders: Array, p: Array, q: Array) -> Array:
    """The coupling that matches both distributions in these orders: overlaps of their cumulative sums."""
    rows, columns = orders[0, : len(p)], orders[1, : len(q)]
    up_to_p, up_to_q = jnp.cumsum(p[rows]), jnp.cumsum(q[columns])
    high = jnp.minimum(up_to_p[:, None], up_to_q)
    low = jnp.maximum((up_to_p - p[rows])[:, None], up_to_q - q[columns])
    return jnp.zeros((len(p), len(q)), p.dtype).at[rows[:, None], columns].set(jnp.maximum(high - low, 0))


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _product(a: Array, t: Array, b: Array) -> Array:
    """``A T B^T``."""
    return _matmul(_matmul(a, t), b.T)


def _marginal(name: str, values: Array | np.ndarray, size: int) -> Array:
    values = wide(values)
    if values.shape != (size,):
        raise ValueError(f"{name}: expected shape {(size,)}, got {values.shape}")
    return values


def _distribution(name: str, values: Array | np.ndarray, size: int) -> Array:
    values = _marginal(name, values, size)
    if not isinstance(values, Tracer):
        known = np.asarray(values, np.float64)
        if not (np.all(known >= 0) and abs(known.sum() - 1) < 1e-3):
            raise ValueError(
                f"{name}: expected numbers of sum 1, none negative, got a sum of {known.sum():.4g}"
            )
    return values
