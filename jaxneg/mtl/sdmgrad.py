"""SDMGrad and MoDo: weights from the products of gradients on two independent batches.

SDMGrad: Xiao, Ban & Ji, arXiv:2305.18409, Algorithm 1. MoDo: Chen et al., arXiv:2305.20057, Algorithm 1. The
product of two independent estimates is unbiased where a Gram matrix of one is not; both read only the T x T
products ``A = J1 J2^T``.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.mtl.solvers import project_to_simplex


def sdmgrad(
    A: Float[Array, "tasks tasks"],
    w: Float[Array, " tasks"],
    *,
    lam: float = 0.3,
    learning_rate: float = 5.0,
    iterations: int = 20,
    momentum: float = 0.5,
) -> tuple[Float[Array, " tasks"], Float[Array, " tasks"]]:
    """Weights of the stochastic direction-oriented multi-objective gradient.

    A is divided by ``(mean_i sqrt(max(A_ii, 0)))^2 + 1e-8``; then, ``iterations`` times, with momentum,
    ``w <- project(w - learning_rate A (w + lam / T))`` onto the simplex. The weights are
    ``(w + lam / T) / (1 + lam)``.

    Args:
        A: ``J1 J2^T`` of two independent batches, ``[T, T]``.
        w: where the iteration starts, ``[T]`` on the simplex; 1/T each at first, then the last.
        lam: how strongly the direction is held to the average.
        learning_rate: of the iteration (LibMTL 5, torchjd 10).
        iterations: how many.
        momentum: of the iteration; it starts anew in each call.

    Returns:
        ``(weights, w)``: the weights ``[T]`` of a third batch's gradients, which sum to 1, and w.

    Raises:
        ValueError: w of another shape.

    Source:
        arXiv:2305.18409, Algorithm 1; LibMTL's and torchjd's SDMGrad.

    Example:
        >>> import jax.numpy as jnp
        >>> weights, w = sdmgrad(jnp.eye(2), jnp.full(2, 0.5))
        >>> weights.tolist()
        [0.5, 0.5]
    """
    _check_start("w", w, A)
    scale = jnp.mean(jnp.sqrt(jnp.maximum(jnp.diagonal(A), 0))) ** 2
    A, average = A / (scale + 1e-8), 1 / w.shape[0]

    def move(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        w, velocity = carry
        velocity = momentum * velocity + A @ (w + lam * average)
        return (project_to_simplex(w - learning_rate * velocity), velocity), None

    (w, _), _ = jax.lax.scan(move, (w, jnp.zeros_like(w)), length=iterations)
    return (w + lam * average) / (1 + lam), w


def modo(
    A: Float[Array, "tasks tasks"], lam: Float[Array, " tasks"], gamma: float = 1e-3, rho: float = 0.1
) -> Float[Array, " tasks"]:
    """The next weights of the multi-objective gradient with double sampling.

    ``lam <- project(lam - gamma (A lam + rho lam))`` onto the simplex.

    Args:
        A: ``J1 J2^T`` of two independent batches, ``[T, T]``.
        lam: weights ``[T]``; 1/T each at first.
        gamma: rate (LibMTL 1e-3, torchjd 0.1).
        rho: regularisation.

    Returns:
        Weights ``[T]`` of a third batch's gradients, on the simplex.

    Raises:
        ValueError: lam of another shape.

    Source:
        arXiv:2305.20057, Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> modo(jnp.eye(2), jnp.full(2, 0.5)).tolist()
        [0.5, 0.5]
    """
    _check_start("lam", lam, A)
    return project_to_simplex(lam - gamma * (A @ lam + rho * lam))


def _check_start(name: str, start: Array, A: Array) -> None:
    if A.ndim != 2 or start.shape != A.shape[:1] or A.shape[0] != A.shape[1]:
        raise ValueError(f"{name}: expected shape [T] for a matrix [T, T], got {start.shape} and {A.shape}")
