"""PCD: the first task's gradient, turned as little as the others' least progress asks for.

Priority-Constrained Descent, arXiv:2606.29521 (TMLR 2026), as torchjd 0.18 states it. The projection is a
quadratic program in the multipliers of the T - 1 secondary tasks: the Gram matrix is enough.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.mtl.gram import checked_gram
from jaxneg.mtl.solvers import SolverInfo, nonnegative_minima


def pcd(
    G: Float[Array, "tasks tasks"],
    tau: Float[Array, " secondary"] | float = 0.02,
    mean_squares: Float[Array, " tasks"] | None = None,
    eps: float = 1e-8,
    *,
    return_info: bool = False,
) -> Float[Array, " tasks"] | tuple[Float[Array, " tasks"], SolverInfo]:
    """Weights of the primary gradient's projection onto the directions in which every other task progresses.

    With ``u_i = g_i / sqrt(v_i + eps)``: ``argmin |d - u_1|^2 / 2  s.t.  u_j . d >= tau_j |u_j|^2`` for
    ``j >= 2``, rescaled to the length of g_1. Constraints that contradict each other are dropped: then the
    direction is g_1. Where g_1 or d is zero, so are the weights.

    Args:
        G: ``[T, T]``; the first task is the primary one.
        tau: least share of the progress that a step along its own unit gradient would bring, from 0 to 1;
            one number, or one for each secondary task ``[T - 1]``.
        mean_squares: v ``[T]``, a moving average of the squared norms; those of G where None.
        eps: beside v.
        return_info: whether to return a `SolverInfo` too; its residual is ``max |min(y, slope)|`` of the
            multipliers y.

    Returns:
        Weights ``[T]``, not negative.

    Raises:
        ValueError: G not square or T = 0, tau outside [0, 1] or of another shape, mean_squares of another
            shape, or a negative eps.
        TypeError: G not floating point.

    Source:
        arXiv:2606.29521, as restated by torchjd 0.18.

    Example:
        >>> import jax.numpy as jnp
        >>> weights = pcd(jnp.array([[1.0, -1.0], [-1.0, 2.0]]), tau=0.0)
        >>> [round(float(w), 3) for w in weights]
        [1.414, 0.707]
    """
    G = checked_gram(G)
    tasks = G.shape[0]
    if jnp.shape(tau) not in ((), (tasks - 1,)):
        raise ValueError(f"tau: expected one number or shape ({tasks - 1},), got shape {jnp.shape(tau)}")
    if isinstance(tau, int | float) and not 0 <= tau <= 1:
        raise ValueError(f"tau: expected from 0 to 1, got {tau}")
    if mean_squares is not None and mean_squares.shape != (tasks,):
        raise ValueError(f"mean_squares: expected shape ({tasks},), got {mean_squares.shape}")
    if eps < 0:
        raise ValueError(f"eps: expected at least 0, got {eps}")
    squares = jnp.diagonal(G)
    spread = (squares if mean_squares is None else mean_squares.astype(G.dtype)) + eps
    scales = jnp.where(spread > 0, 1 / jnp.sqrt(jnp.where(spread > 0, spread, 1.0)), 0.0)
    unit = scales[:, None] * G * scales
    others = unit[1:, 1:]
    missing = jnp.asarray(tau, G.dtype) * jnp.diagonal(others) - unit[1:, 0]
    # The regularisation bounds the multipliers of constraints that contradict each other, which shows them.
    regular = 1e-6 if G.dtype == jnp.float32 else 1e-12
    size = jnp.maximum(jnp.max(jnp.diagonal(unit)), jnp.finfo(G.dtype).tiny)
    matrix = others + regular * size * jnp.eye(tasks - 1, dtype=G.dtype)
    if tasks > 1:
        found, residual, iterations = nonnegative_minima(matrix, -missing[None])
        feasible = jnp.all(others @ found[0] - missing >= -(regular**0.5) * size)
        multipliers = jnp.where(feasible, found[0], 0.0)
    else:
        multipliers, residual, iterations = missing, jnp.zeros((), G.dtype), jnp.zeros((), jnp.int32)
    weights = jnp.concatenate([jnp.ones(1, G.dtype), multipliers])
    square = weights @ unit @ weights
    rounding = 10 * jnp.finfo(G.dtype).eps * (weights @ jnp.sqrt(jnp.diagonal(unit))) ** 2
    stands = (squares[0] > 0) & (square > rounding)
    factor = jnp.sqrt(jnp.where(stands, squares[0] / jnp.where(stands, square, 1.0), 1.0))
    weights = jnp.where(stands, factor * scales * weights, 0.0)
    return (weights, SolverInfo(residual, iterations)) if return_info else weights
