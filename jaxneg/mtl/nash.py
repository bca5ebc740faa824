"""Nash-MTL: task weights as the solution of a bargaining game.

Navon et al., arXiv:2202.01017, Claim 3.1 and Algorithm 1.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.mtl.gram import checked_gram
from jaxneg.mtl.solvers import SolverInfo, fair_root


def nash(
    G: Float[Array, "tasks tasks"], max_norm: float | None = None, *, return_info: bool = False
) -> Float[Array, " tasks"] | tuple[Float[Array, " tasks"], SolverInfo]:
    """Weights of the Nash bargaining solution.

    The positive solution of ``G w = 1 / w`` (elementwise); its combined gradient has norm sqrt(T). A task
    without a gradient gets weight 0; if no task has one, all get 1/T.

    The paper's trainer clips the shared gradient to norm 1 while heads keep the weights w; with large losses
    these are tiny (1e-3 and less) and heads hardly learn. Weight heads by 1 then (`multitask`'s
    head_weighting="unit").

    Args:
        G: ``[T, T]``.
        max_norm: clips the combined gradient to this norm, as `clipped` does; None does not clip.
        return_info: whether to return a `SolverInfo` too, with residual ``max_i |w_i (G w)_i - 1|`` before
            the clip.

    Returns:
        Weights ``[T]``, nonnegative.

    Raises:
        ValueError: G not square or T = 0, or max_norm <= 0.
        TypeError: G not floating point.

    Source:
        arXiv:2202.01017, Claim 3.1.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(w), 4) for w in nash(jnp.diag(jnp.array([1.0, 4.0])))]
        [1.0, 0.5]
    """
    G = checked_gram(G)
    if max_norm is not None and max_norm <= 0:
        raise ValueError(f"max_norm: expected a positive norm, or None not to clip, got {max_norm}")
    weights, residual, iterations = fair_root(G, 1.0)
    if max_norm is not None:
        weights = clipped(weights, G, max_norm)
    return (weights, SolverInfo(residual, iterations)) if return_info else weights


def clipped(
    weights: Float[Array, " tasks"], G: Float[Array, "tasks tasks"], max_norm: float
) -> Float[Array, " tasks"]:
    """Weights scaled down so that the combined gradient is no longer than a given norm.

    ``w min(1, max_norm / |g|)`` with ``|g|^2 = w^T G w``. Where the gradients cancel but for rounding,
    ``|g| <= r sqrt(w^T diag(G) w)`` with r = 1e-6 in float64 and 1e-3 in float32, the weights become 0:
    scaling would only blow noise up to max_norm.

    Args:
        weights: ``[T]``.
        G: ``[T, T]``.
        max_norm: positive.

    Returns:
        Weights ``[T]``.

    Example:
        >>> import jax.numpy as jnp
        >>> clipped(jnp.array([2.0, 0.0]), jnp.eye(2), 1.0).tolist()
        [1.0, 0.0]
    """
    cancels = 1e-3 if G.dtype == jnp.float32 else 1e-6
    square = weights @ G @ weights
    apart = jnp.sum(weights**2 * jnp.diagonal(G))
    noise = square <= cancels**2 * apart
    length = jnp.sqrt(jnp.where(noise, 1.0, square))
    return jnp.where(noise, 0.0, weights * jnp.minimum(1.0, max_norm / length))
