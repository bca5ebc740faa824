"""Solvers on the Gram matrix: T variables, on the device, under jit and vmap, with a bound on their
iterations.

- `simplex_minimum`: primal-dual interior point for a convex function on the probability simplex (MGDA,
CAGrad).
- `fair_root`: Newton's method for ``G w = w^(-a)``, ``w > 0`` (Nash-MTL, FairGrad).
- `nonnegative_minima`: block principal pivoting for quadratic programs over ``y >= 0`` that share their
  matrix (UPGrad, DualProj), after Portugal, Judice & Vicente (1994) and Kim & Park (2011), Algorithm 2.

Each is differentiable, forwards and backwards, by the implicit function theorem at its solution.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# A task whose gradient is this much shorter than the longest one counts as having none.
ZERO_GRADIENT = 1e-12


class SolverInfo(NamedTuple):
    """How well a problem was solved.

    residual: how far the weights are from the conditions of optimality, in the measure that each method
    states. iterations: how many the solver took.
    """

    residual: Float[Array, ""]
    iterations: Int[Array, ""]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
@partial(jax.jit, static_argnums=(0, 1))
def simplex_minimum(
    derivatives: Callable[[Array, Any], tuple[Array, Array]], tasks: int, data: Any
) -> tuple[Float[Array, " tasks"], Float[Array, " tasks"], Int[Array, ""]]:
    """The minimum of a convex function over the probability simplex, by a primal-dual interior point.

    ``min f(x)  s.t.  x >= 0, sum x = 1``. Newton steps on ``grad f - s - y 1 = 0``, ``x_i s_i = 0.1 mu`` with
    ``mu = x.s / T``, until mu <= 1e-17 (float32) or 1e-26 (float64), at most 30 times. Data should be scaled
    so that f's gradient is of order one.

    Args:
        derivatives: ``derivatives(x, data) -> (gradient [T], Hessian [T, T])``.
        tasks: T.
        data: pytree of floating-point arrays.

    Returns:
        ``(x, s, iterations)``: the minimum, the multipliers of ``x >= 0``, and the Newton steps taken.

    Source:
        Wright, Primal-Dual Interior-Point Methods (1997), Chapter 5.

    Example:
        >>> import jax.numpy as jnp
        >>> derivatives = lambda x, matrix: (matrix @ x, matrix)
        >>> x, s, iterations = simplex_minimum(derivatives, 2, jnp.diag(jnp.array([1.0, 3.0])))
        >>> [round(float(v), 3) for v in x]
        [0.75, 0.25]
    """
    dtype = jnp.result_type(*jax.tree.leaves(data))
    single = dtype == jnp.float32
    tolerance, bound, floor = (1e-17, 30, 1e-20) if single else (1e-26, 30, 1e-60)
    x = jnp.full(tasks, 1 / tasks, dtype)
    gradient, _ = derivatives(x, data)
    s = jnp.full(tasks, jnp.maximum(1e-3, jnp.max(jnp.abs(gradient))), dtype)

    def unfinished(carry: tuple[Array, ...]) -> Array:
        x, s, _, iterations, finite = carry
        return (x @ s / tasks > tolerance) & (iterations < bound) & finite

    def newton_step(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        x, s, y, iterations, _ = carry
        gradient, hessian = derivatives(x, data)
        target = 0.1 * (x @ s) / tasks
        right = target / x - (gradient - y)
        a, e = _kkt_solve(hessian, s / x, jnp.stack([right, jnp.ones_like(x)], axis=1)).T
        dy = (1 - jnp.sum(x) - jnp.sum(a)) / jnp.sum(e)
        dx = a + dy * e
        ds = (target - s * dx) / x - s
        dual_step = _step_length(s, ds)
        moved = (
            jnp.maximum(x + _step_length(x, dx) * dx, floor),
            jnp.maximum(s + dual_step * ds, floor),
            y + dual_step * dy,
        )
        finite = jnp.all(jnp.isfinite(moved[0] + moved[1] + moved[2]))
        x, s, y = jax.tree.map(partial(jnp.where, finite), moved, (x, s, y))
        return x, s, y, iterations + 1, finite

    start = (x, s, jnp.zeros((), dtype), jnp.zeros((), jnp.int32), jnp.array(True))
    x, s, _, iterations, _ = jax.lax.while_loop(unfinished, newton_step, start)
    return x, s, iterations


@simplex_minimum.defjvp
def _(derivatives: Callable, tasks: int, primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (data,), (data_tangent,) = primals, tangents
    x, s, iterations = simplex_minimum(derivatives, tasks, data)
    _, hessian = derivatives(x, data)
    _, change = jax.jvp(lambda data: derivatives(x, data)[0], (data,), (data_tangent,))
    # Two solves: in one, e would count as depending on the tangent, and the map could not be transposed.
    a = _kkt_solve(hessian, s / x, -change[:, None])[:, 0]
    e = _kkt_solve(hessian, s / x, jnp.ones_like(x)[:, None])[:, 0]
    dx = a - jnp.sum(a) / jnp.sum(e) * e
    return (x, s, iterations), (dx, -s / x * dx, _no_tangent())


def _kkt_solve(hessian: Array, barrier: Array, right: Array) -> Array:
    # The ridge keeps the factor finite where the Hessian is singular; it bends the path, not the solution.
    ridge = jnp.finfo(hessian.dtype).eps * jnp.trace(hessian)
    return _positive_solve(hessian + jnp.diag(barrier + ridge), right)


def _step_length(values: Array, change: Array) -> Array:
    """The longest step up to 1 that leaves a two-hundredth of each value."""
    limits = jnp.where(change < 0, -values / jnp.where(change < 0, change, -1.0), jnp.inf)
    return jnp.minimum(1.0, 0.995 * jnp.min(limits))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
@partial(jax.jit, static_argnums=1)
def fair_root(
    gram_matrix: Float[Array, "tasks tasks"], power: float
) -> tuple[Float[Array, " tasks"], Float[Array, ""], Int[Array, ""]]:
    """The positive solution of ``G w = w^(-a)`` (elementwise), by Newton's method.

    It is the minimum of the convex ``w^T G w / 2 - sum phi(w)`` with ``phi' = w^(-a)``. Lengths are taken out
    first: with ``C`` the cosines and ``d`` the gradient norms, ``w_i = d_i^(-2/(1+a)) v_i``, which keeps
    float32 exact where norms differ by factors of hundreds. At most 20 steps with backtracking. Where 0 is in
    the convex hull of the gradients there is no solution and w grows without bound: from the moment that
    ``v^T C v <= r v^T v`` (r = 1e-6 in float32, 1e-12 in float64), ``C + r I`` takes the place of C.

    Args:
        gram_matrix: ``[T, T]``.
        power: a, positive.

    Returns:
        ``(w, residual, iterations)``; ``residual = max_i |w_i^a (G w)_i - 1|`` over the tasks that have a
        gradient. A task without (norm below 1e-12 of the longest) has weight 0; if none has one, all have 1/T
        and residual 0.

    Source:
        arXiv:2202.01017, Claim 3.1 (a = 1); arXiv:2402.15638, Equation 4 (a = 1/alpha).

    Example:
        >>> import jax.numpy as jnp
        >>> w, residual, iterations = fair_root(jnp.diag(jnp.array([1.0, 4.0])), 1.0)
        >>> [round(float(v), 4) for v in w]
        [1.0, 0.5]
    """
    tasks, dtype = gram_matrix.shape[0], gram_matrix.dtype
    rounding = float(jnp.finfo(dtype).eps)
    ridge = 1e-6 if dtype == jnp.float32 else 1e-12
    norms, present, cosines = _cosines(gram_matrix)
    q = norms ** ((power - 1) / (power + 1))
    halvings = 0.5 ** jnp.arange(8, dtype=dtype)

    def residual(v: Array, damping: Array) -> Array:
        u = q * v
        return jnp.max(jnp.where(present, jnp.abs(v**power * (cosines @ u + damping * u) / q - 1), 0.0))

    def objective(v: Array, damping: Array) -> Array:
        u = q * v
        barrier = jnp.log(v) if power == 1 else v ** (1 - power) / (1 - power)
        return 0.5 * (u @ (cosines @ u) + damping * (u @ u)) - jnp.sum(q**2 * barrier)

    def unfinished(carry: tuple[Array, ...]) -> Array:
        _, _, error, previous, iterations = carry
        stalled = (error < 1e4 * rounding) & (error > 0.5 * previous)
        return (error > 4 * rounding) & ~stalled & (iterations < 20)

    def newton_step(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        v, damping, error, _, iterations = carry
        u = q * v
        cosines_u = cosines @ u
        damping = jnp.where(u @ cosines_u <= ridge * (u @ u), ridge, damping)
        gradient = cosines_u + damping * u - q * v**-power
        hessian = cosines + jnp.diag(ridge + power * v ** (-power - 1))
        dv = -_positive_solve(hessian, gradient[:, None])[:, 0] / q
        longest = jnp.min(jnp.where(dv < 0, -0.9 * v / jnp.where(dv < 0, dv, -1.0), 1.0))
        trials = v + (jnp.minimum(1.0, longest) * halvings)[:, None] * dv
        now = objective(v, damping)
        # Near the solution the objective is flat to rounding; the full step is right there.
        acceptable = jax.vmap(objective, (0, None))(trials, damping) <= now + 8 * rounding * jnp.abs(now)
        moved = trials[jnp.argmax(acceptable)]
        v = jnp.where(jnp.all(jnp.isfinite(moved)), moved, v)
        return v, damping, residual(v, damping), error, iterations + 1

    v = jnp.full(tasks, tasks ** (-1 / (1 + power)), dtype)
    damping = jnp.zeros((), dtype)
    start = (v, damping, residual(v, damping), jnp.full((), jnp.inf, dtype), jnp.zeros((), jnp.int32))
    v, _, _, _, iterations = jax.lax.while_loop(unfinished, newton_step, start)
    weights = jnp.where(present, v * norms ** (-2 / (power + 1)), 0.0)
    return jnp.where(jnp.any(present), weights, 1 / tasks), residual(v, jnp.zeros((), dtype)), iterations


@fair_root.defjvp
def _(power: float, primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (gram_matrix,), (change,) = primals, tangents
    weights, residual, iterations = fair_root(gram_matrix, power)
    norms, present, cosines = _cosines(gram_matrix)
    v = jnp.where(present, weights * norms ** (2 / (power + 1)), 1.0)
    hessian = cosines + jnp.diag(power * v ** (-power - 1))
    shift = jnp.where(present, -(change @ weights) / norms, 0.0)
    tangent = jnp.where(present, _positive_solve(hessian, shift[:, None])[:, 0] / norms, 0.0)
    return (weights, residual, iterations), (tangent, jnp.zeros_like(residual), _no_tangent())


def _cosines(gram_matrix: Array) -> tuple[Array, Array, Array]:
    """Norms, which tasks have a gradient, and cosines; unit axes stand in for tasks without."""
    tasks = gram_matrix.shape[0]
    norms = gradient_norms(gram_matrix)
    present = norms > ZERO_GRADIENT * jnp.max(norms)
    norms = jnp.where(present, norms, 1.0)
    both = present[:, None] & present[None, :]
    cosines = jnp.where(
        both, gram_matrix / (norms[:, None] * norms[None, :]), jnp.eye(tasks, dtype=norms.dtype)
    )
    return norms, present, cosines


def gradient_norms(gram_matrix: Float[Array, "tasks tasks"]) -> Float[Array, " tasks"]:
    """The norms of the task gradients.

    ``d_i = sqrt(G_ii)``, with derivative 0 at 0.

    Args:
        gram_matrix: ``[T, T]``.

    Returns:
        ``[T]``.

    Example:
        >>> import jax.numpy as jnp
        >>> gradient_norms(jnp.diag(jnp.array([4.0, 0.0]))).tolist()
        [2.0, 0.0]
    """
    squares = jnp.diagonal(gram_matrix)
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


@jax.custom_jvp
@jax.jit
def nonnegative_minima(
    matrix: Float[Array, "tasks tasks"], linear: Float[Array, "problems tasks"]
) -> tuple[Float[Array, "problems tasks"], Float[Array, ""], Int[Array, ""]]:
    """The minima of several quadratic programs over the nonnegative orthant, with one positive definite
    matrix.

    ``y_b = argmin y^T M y / 2 + q_b^T y  s.t.  y >= 0``. Each round solves the free variables of all programs
    and exchanges those that are negative or whose gradient is; when the number of these has not fallen for
    three rounds, only the last of them is exchanged until it does, which makes the method finite. At most 4 T
    + 20 rounds.

    Args:
        matrix: M ``[T, T]``, positive definite.
        linear: q ``[B, T]``.

    Returns:
        ``(y, residual, iterations)``; the residual is ``max |min(y, M y + q)|``.

    Source:
        Kim & Park, SIAM J. Sci. Comput. 33 (2011), Algorithm 2.

    Example:
        >>> import jax.numpy as jnp
        >>> y, residual, rounds = nonnegative_minima(jnp.eye(2), jnp.array([[-1.0, 2.0]]))
        >>> y.tolist(), float(residual)
        ([[1.0, 0.0]], 0.0)
    """
    programs, tasks = linear.shape
    rounding = 10 * jnp.finfo(matrix.dtype).eps
    indices = jnp.arange(tasks)

    def infeasible(free: Array, y: Array, slope: Array) -> Array:
        value = jnp.where(free, y, slope)
        scale = jnp.where(
            free, jnp.max(jnp.abs(y), axis=1, keepdims=True), jnp.max(jnp.abs(linear), axis=1, keepdims=True)
        )
        return value < -rounding * scale

    def solved(free: Array) -> tuple[Array, Array]:
        y = _free_solve(matrix, free, -linear)
        return y, y @ matrix + linear

    def unfinished(carry: tuple[Array, ...]) -> Array:
        _, wrong, _, _, iterations, _ = carry
        return jnp.any(wrong) & (iterations < 4 * tasks + 20)

    def exchange(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        free, wrong, fewest, patience, iterations, _ = carry
        count = jnp.sum(wrong, axis=1)
        better = count < fewest
        last = indices == jnp.max(jnp.where(wrong, indices, -1), axis=1, keepdims=True)
        all_at_once = better | (patience > 0)
        patience = jnp.where(better, 3, jnp.maximum(patience - 1, 0))
        free = free ^ (wrong & (all_at_once[:, None] | last))
        y, slope = solved(free)
        return free, infeasible(free, y, slope), jnp.minimum(fewest, count), patience, iterations + 1, y

    free = linear < 0
    y, slope = solved(free)
    start = (
        free,
        infeasible(free, y, slope),
        jnp.full(programs, tasks + 1),
        jnp.full(programs, 3),
        jnp.ones((), jnp.int32),
        y,
    )
    free, _, _, _, iterations, y = jax.lax.while_loop(unfinished, exchange, start)
    y = jnp.maximum(y, 0)
    return y, jnp.max(jnp.abs(jnp.minimum(y, y @ matrix + linear))), iterations


@nonnegative_minima.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (matrix, linear), (matrix_change, linear_change) = primals, tangents
    y, residual, iterations = nonnegative_minima(matrix, linear)
    tangent = _free_solve(matrix, y > 0, -(y @ matrix_change + linear_change))
    return (y, residual, iterations), (tangent, jnp.zeros_like(residual), _no_tangent())


def project_to_simplex(point: Float[Array, " tasks"]) -> Float[Array, " tasks"]:
    """The nearest point of the probability simplex.

    ``max(x - theta, 0)`` with the theta that makes the sum 1.

    Args:
        point: x ``[T]``.

    Returns:
        ``[T]``, not negative, of sum 1.

    Source:
        Held, Wolfe & Crowder (1974).

    Example:
        >>> import jax.numpy as jnp
        >>> project_to_simplex(jnp.array([2.0, 1.0])).tolist()
        [1.0, 0.0]
    """
    # A common shift changes nothing but rounding: beside large entries the 1 would be lost.
    point = point - jnp.max(point)
    ordered = jnp.sort(point, descending=True)
    excess = (jnp.cumsum(ordered) - 1) / jnp.arange(1, point.shape[0] + 1)
    threshold = excess[jnp.sum(ordered > excess) - 1]
    return jnp.maximum(point - threshold, 0)


def _free_solve(matrix: Array, free: Array, right: Array) -> Array:
    """Solves ``M_FF y_F = r_F`` for each row's set F; the rest is zero."""
    tasks = matrix.shape[0]
    both = free[:, :, None] & free[:, None, :]
    masked = jnp.where(both, matrix, jnp.eye(tasks, dtype=matrix.dtype))
    return _positive_solve(masked, jnp.where(free, right, 0.0)[..., None])[..., 0]


def _positive_solve(matrix: Array, right: Array) -> Array:
    factor = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
    return jax.scipy.linalg.cho_solve((factor, True), right)


def _no_tangent() -> np.ndarray:
    """The tangent of an integer."""
    return np.zeros((), jax.dtypes.float0)
