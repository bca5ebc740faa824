"""CAGrad: the direction that helps the worst task most, within a ball around the average gradient.

Liu et al., arXiv:2110.14048, Equation 5 and Algorithm 1.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.mtl.gram import checked_gram
from jaxneg.mtl.solvers import SolverInfo, simplex_minimum

_SOLVERS = ("exact", "fast")


def cagrad(
    G: Float[Array, "tasks tasks"],
    c: float = 0.5,
    rescale: int = 1,
    solver: Literal["exact", "fast"] = "exact",
    *,
    return_info: bool = False,
) -> Float[Array, " tasks"] | tuple[Float[Array, " tasks"], SolverInfo]:
    """Conflict-averse weights.

    ``w* = argmin_w w^T b + k sqrt(w^T G w + 1e-8)`` over the simplex, with ``b = G 1/T`` and
    ``k = c sqrt(mean G + 1e-8)``; the weights are ``(1/T + lambda w*) / s`` with
    ``lambda = (k + 1e-8) / (sqrt(w*^T G w*) + 1e-8)`` and ``s = 1, 1 + c^2, 1 + c`` for rescale 0, 1, 2.
    One task has weight 1.

    Args:
        G: ``[T, T]``.
        c: radius of the ball in units of the average gradient's norm, not negative.
        rescale: 0, 1 or 2.
        solver: "exact", interior point of at most 30 steps; "fast", the official 20
            steps of momentum descent on the weights' logits (rate 25, or 50 for 50 tasks), with the best
            logits kept.
        return_info: whether to return a `SolverInfo` too; its residual is how far the objective can still
            fall along a straight line to a vertex, ``w* . f' - min_i f'_i``, in units of ``tr G / T``.

    Returns:
        Weights ``[T]``, which sum to ``(1 + lambda) / s``.

    Raises:
        ValueError: G not square or T = 0, c < 0, an unknown rescale or solver.
        TypeError: G not floating point.

    Source:
        arXiv:2110.14048, Equation 5, Algorithm 1 and the released code's momentum solver.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(w), 4) for w in cagrad(jnp.eye(2), c=0.0)]
        [0.5, 0.5]
    """
    G = checked_gram(G)
    if c < 0:
        raise ValueError(f"c: expected a radius of at least 0, got {c}")
    if rescale not in (0, 1, 2):
        raise ValueError(f"rescale: expected 0, 1 or 2, got {rescale}")
    if solver not in _SOLVERS:
        raise ValueError(f"solver: expected one of {_SOLVERS}, got {solver!r}")
    tasks = G.shape[0]
    if tasks == 1:
        weights = jnp.ones(1, G.dtype)
        return (
            (weights, SolverInfo(jnp.zeros((), G.dtype), jnp.zeros((), jnp.int32)))
            if return_info
            else weights
        )
    weights, residual, iterations = (_exact if solver == "exact" else _fast)(G, c)
    weights = weights / (1, 1 + c**2, 1 + c)[rescale]
    return (weights, SolverInfo(residual, iterations)) if return_info else weights


def _exact(G: Array, c: float) -> tuple[Array, Array, Array]:
    tasks = G.shape[0]
    mean_square = jnp.trace(G) / tasks
    mean_square = jnp.where(mean_square > 0, mean_square, 1.0)
    radius = c * jnp.sqrt(jnp.mean(G) + 1e-8)
    data = (G / mean_square, radius / jnp.sqrt(mean_square), 1e-8 / mean_square)
    share, _, iterations = simplex_minimum(_objective, tasks, data)
    slope, _ = _objective(share, data)
    square = share @ G @ share
    # Derivative 0 at 0.
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0) + 1e-8
    return 1 / tasks + share * (radius + 1e-8) / length, share @ slope - jnp.min(slope), iterations


def _objective(share: Array, data: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    """Gradient and Hessian of the dual objective."""
    G, radius, eps = data
    slope = G @ share
    length = jnp.sqrt(share @ slope + eps)
    hessian = radius * (G / length - jnp.outer(slope, slope) / length**3)
    return jnp.mean(G, axis=1) + radius * slope / length, hessian


@jax.jit
def _fast(G: Array, c: float) -> tuple[Array, Array, Array]:
    tasks = G.shape[0]
    scale = jnp.mean(jnp.sqrt(jnp.diagonal(G) + 1e-4))
    G = G / scale**2
    average, mean = jnp.mean(G, axis=1), jnp.mean(G)
    radius = c * jnp.sqrt(mean + 1e-4)
    rate = 50.0 if tasks == 50 else 25.0

    def objective(logits: Array) -> Array:
        share = jax.nn.softmax(logits)
        return share @ average + radius * jnp.sqrt(share @ G @ share + 1e-4)

    def descend(carry: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
        logits, velocity, best, lowest = carry
        value, gradient = jax.value_and_grad(objective)(logits)
        best = jnp.where(value < lowest, logits, best)
        velocity = 0.5 * velocity + gradient
        return (logits - rate * velocity, velocity, best, jnp.minimum(value, lowest)), None

    zeros = jnp.zeros(tasks, G.dtype)
    start = (zeros, zeros, zeros, jnp.asarray(jnp.inf, G.dtype))
    (logits, _, best, lowest), _ = jax.lax.scan(descend, start, length=20)
    share = jax.nn.softmax(jnp.where(objective(logits) < lowest, logits, best))
    length = jnp.sqrt(share @ G @ share + 1e-4)
    slope = average + radius * (G @ share) / length
    residual = (share @ slope - jnp.min(slope)) * tasks / jnp.maximum(jnp.trace(G), 1e-30)
    return 1 / tasks + share * radius / (length + 1e-4), residual, jnp.asarray(20, jnp.int32)
