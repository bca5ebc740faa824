"""FairGrad: alpha-fair allocation of the decrease in loss among the tasks.

Ban & Ji, arXiv:2402.15638, Equation 4.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.mtl.gram import checked_gram
from jaxneg.mtl.solvers import SolverInfo, fair_root


def fairgrad(
    G: Float[Array, "tasks tasks"], alpha: float = 1.0, *, return_info: bool = False
) -> Float[Array, " tasks"] | tuple[Float[Array, " tasks"], SolverInfo]:
    """Weights of alpha-fair gradient descent.

    The positive solution of ``G w = w^(-1/alpha)`` (elementwise). alpha = 0 is equal weighting (1/T), alpha =
    1 Nash-MTL without its clip, larger alpha nearer to max-min fairness (the paper's scripts use 2). A task
    without a gradient gets weight 0; if no task has one, all get 1/T.

    Args:
        G: ``[T, T]``.
        alpha: not negative.
        return_info: whether to return a `SolverInfo` too, with residual ``max_i |w_i^(1/alpha) (G w)_i -
            1|``.

    Returns:
        Weights ``[T]``, nonnegative.

    Raises:
        ValueError: G not square or T = 0, or alpha < 0.
        TypeError: G not floating point.

    Source:
        arXiv:2402.15638, Equation 4.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(w), 4) for w in fairgrad(jnp.diag(jnp.array([1.0, 4.0])), alpha=1.0)]
        [1.0, 0.5]
    """
    G = checked_gram(G)
    if alpha < 0:
        raise ValueError(f"alpha: expected a fairness of at least 0, got {alpha}")
    if alpha == 0:
        weights = jnp.full(G.shape[0], 1 / G.shape[0], G.dtype)
        residual, iterations = jnp.zeros((), G.dtype), jnp.zeros((), jnp.int32)
    else:
        weights, residual, iterations = fair_root(G, 1 / alpha)
    return (weights, SolverInfo(residual, iterations)) if return_info else weights
