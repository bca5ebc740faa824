"""MGDA: the shortest vector in the convex hull of the task gradients.

Desideri, Comptes Rendus Mathematique 350 (2012); Sener & Koltun, arXiv:1810.04650, Equation 3 and Algorithm
2.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.mtl.gram import checked_gram
from jaxneg.mtl.solvers import (
    ZERO_GRADIENT,
    SolverInfo,
    gradient_norms,
    project_to_simplex,
    simplex_minimum,
)

Normalizer = Literal["none", "l2", "loss", "loss+"]
_NORMALIZERS = ("none", "l2", "loss", "loss+")
_SOLVERS = ("exact", "frank_wolfe", "pgd")


def mgda(
    G: Float[Array, "tasks tasks"],
    *,
    solver: Literal["exact", "frank_wolfe", "pgd"] = "exact",
    normalizer: Normalizer = "none",
    losses: Float[Array, " tasks"] | None = None,
    return_info: bool = False,
) -> Float[Array, " tasks"] | tuple[Float[Array, " tasks"], SolverInfo]:
    """Weights of the shortest convex combination of the task gradients.

    ``argmin_w w^T G w  s.t.  w >= 0, sum w = 1``. With a normalizer each gradient is first divided by
    ``n_i = |J_i|`` ("l2"), ``L_i`` ("loss") or ``L_i |J_i|`` ("loss+"); the weights that are returned apply
    to the gradients as they came, so they hold the factor ``1 / n_i``.

    Args:
        G: ``[T, T]``.
        solver: "exact", interior point of at most 30 steps; "frank_wolfe", at most 100 steps, stops at a step
            below 1e-3; "pgd", projected gradient from the best pair, at most 250 steps. The last two are the
            usual approximations: they may stop some percent above the minimum, and are not differentiated.
        normalizer: "none", "l2", "loss" or "loss+".
        losses: ``[T]``, for the last two normalizers.
        return_info: whether to return a `SolverInfo` too; its residual is ``(w^T G w - min_i (G w)_i) T / tr
            G``.

    Returns:
        Weights ``[T]``, nonnegative; without a normalizer they sum to 1.

    Raises:
        ValueError: G not square or T = 0, an unknown solver or normalizer, losses missing or of another
            shape.
        TypeError: G not floating point.

    Source:
        arXiv:1810.04650, Equation 3, Algorithms 1 and 2.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(w), 4) for w in mgda(jnp.diag(jnp.array([1.0, 3.0])))]
        [0.75, 0.25]
    """
    G = checked_gram(G)
    if solver not in _SOLVERS:
        raise ValueError(f"solver: expected one of {_SOLVERS}, got {solver!r}")
    scale = _normalizer(G, normalizer, losses)
    G = G / (scale[:, None] * scale[None, :])
    mean_square = jnp.trace(G) / G.shape[0]
    mean_square = jnp.where(mean_square > 0, mean_square, 1.0)
    if solver == "exact":
        weights, iterations = _exact(G / mean_square)
    else:
        weights, iterations = (_frank_wolfe if solver == "frank_wolfe" else _projected)(G)
    if not return_info:
        return weights / scale
    slope = G @ weights / mean_square
    return weights / scale, SolverInfo(weights @ slope - jnp.min(slope), iterations)


def _normalizer(G: Array, normalizer: str, losses: Array | None) -> Array:
    if normalizer not in _NORMALIZERS:
        raise ValueError(f"normalizer: expected one of {_NORMALIZERS}, got {normalizer!r}")
    scale = jnp.ones(G.shape[0], G.dtype)
    if normalizer in ("l2", "loss+"):
        scale = gradient_norms(G)
    if normalizer in ("loss", "loss+"):
        if losses is None or losses.shape != (G.shape[0],):
            came = "none" if losses is None else f"shape {losses.shape}"
            raise ValueError(f"losses: normalizer {normalizer!r} needs shape ({G.shape[0]},), got {came}")
        scale = scale * losses.astype(G.dtype)
    return jnp.where(scale > 0, scale, 1.0)


def _exact(G: Array) -> tuple[Array, Array]:
    weights, _, iterations = simplex_minimum(_quadratic, G.shape[0], G)
    norms = gradient_norms(G)
    zero = norms <= ZERO_GRADIENT * jnp.max(norms)
    # A task without a gradient is the shortest combination by itself.
    stationary = zero.astype(weights.dtype) / jnp.maximum(jnp.sum(zero), 1)
    return jnp.where(jnp.any(zero), stationary, weights), iterations


def _quadratic(weights: Array, G: Array) -> tuple[Array, Array]:
    return G @ weights, G


@jax.jit
def _frank_wolfe(G: Array) -> tuple[Array, Array]:
    G = jax.lax.stop_gradient(G)
    tasks = G.shape[0]

    def move(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        weights, _, iterations = carry
        slope = G @ weights
        vertex = jnp.argmin(slope)
        a, b, c = slope[vertex], weights @ slope, G[vertex, vertex]
        inside = (b - a) / jnp.where(b + c - 2 * a != 0, b + c - 2 * a, 1.0)
        step = jnp.where(c <= a, 1.0, jnp.where(b <= a, 0.0, inside))
        return (1 - step) * weights + step * (jnp.arange(tasks) == vertex), step, iterations + 1

    start = (jnp.full(tasks, 1 / tasks, G.dtype), jnp.ones((), G.dtype), jnp.zeros((), jnp.int32))
    weights, _, iterations = jax.lax.while_loop(
        lambda carry: (carry[1] >= 1e-3) & (carry[2] < 100), move, start
    )
    return weights, iterations


@jax.jit
def _projected(G: Array) -> tuple[Array, Array]:
    G = jax.lax.stop_gradient(G)
    tasks = G.shape[0]
    if tasks == 1:
        return jnp.ones(1, G.dtype), jnp.zeros((), jnp.int32)

    squares = jnp.diagonal(G)
    share, cost = _shortest_of_two(squares[:, None], G, squares[None, :])
    cost = jnp.where(jnp.tri(tasks, dtype=bool), jnp.inf, cost)
    i, j = jnp.unravel_index(jnp.argmin(cost), cost.shape)
    pair = jnp.zeros(tasks, G.dtype).at[i].set(share[i, j]).at[j].set(1 - share[i, j])
    if tasks == 2:
        return pair, jnp.zeros((), jnp.int32)

    def move(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        weights, _, iterations = carry
        slope = G @ weights
        descent = jnp.mean(slope) - slope
        safe = jnp.where(descent == 0, 1.0, descent)
        reach = jnp.where(descent < 0, -weights / safe, (1 - weights) / safe)
        reach = jnp.where((descent != 0) & (reach > 1e-7), reach, jnp.inf)
        target = project_to_simplex(
            weights + jnp.where(jnp.any(jnp.isfinite(reach)), jnp.min(reach), 1.0) * descent
        )
        share, _ = _shortest_of_two(weights @ slope, target @ slope, target @ G @ target)
        moved = share * weights + (1 - share) * target
        change = jnp.sum(jnp.abs(moved - weights))
        return jnp.where(change < 1e-5, weights, moved), change, iterations + 1

    start = (pair, jnp.ones((), G.dtype), jnp.zeros((), jnp.int32))
    weights, _, iterations = jax.lax.while_loop(
        lambda carry: (carry[1] >= 1e-5) & (carry[2] < 250), move, start
    )
    return weights, iterations


def _shortest_of_two(aa: Array, ab: Array, bb: Array) -> tuple[Array, Array]:
    """The share of a in the shortest point between a and b, kept within [.001, .999], and its square."""
    between = (bb - ab) / jnp.where(aa + bb - 2 * ab != 0, aa + bb - 2 * ab, 1.0)
    share = jnp.where(ab >= aa, 0.999, jnp.where(ab >= bb, 0.001, between))
    square = jnp.where(ab >= aa, aa, jnp.where(ab >= bb, bb, bb + between * (ab - bb)))
    return share, square
