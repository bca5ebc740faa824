"""The power-law exponent of a weight matrix's spectrum, by which Rep-MTL diagnoses trained networks.

Clauset, Shalizi & Newman, arXiv:0706.1062, as weightwatcher applies it to the eigenvalues of ``W^T W``.
Exponents from 2 to 4 are those of well trained layers; above 6 or below 2 they are not (arXiv:2507.21049).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SMALLEST = 1e-5
FEWEST = 8


class PowerLaw(NamedTuple):
    """The fit: the exponent, where the tail begins, and the Kolmogorov-Smirnov distance there."""

    alpha: Float[Array, ""]
    xmin: Float[Array, ""]
    D: Float[Array, ""]


def pl_alpha(evals: Float[Array, " n"]) -> PowerLaw:
    """Fits a power law to the tail of a spectrum.

    From every start i: ``alpha_i = 1 + m / sum_(j >= i) log(x_j / x_i)`` with the ``m = n - i`` values of the
    tail, and ``D_i = max_j |1 - (x_j / x_i)^(1 - alpha_i) - (j - i) / m|``; the start with the smallest D
    counts. Fewer than 20 values are fitted with ``m - 1`` in place of m, from tails of at least 8.

    Args:
        evals: eigenvalues ``[n]``; those of 1e-5 and less are left out.

    Returns:
        The fit; NaN where fewer than 8 values are left.

    Raises:
        ValueError: evals that are not a vector.

    Source:
        arXiv:0706.1062, Section 3; weightwatcher 0.7.7.

    Example:
        >>> import jax.numpy as jnp
        >>> tail = (1 - jnp.arange(200) / 200) ** (-1 / 1.5)  # a density x^-2.5
        >>> abs(float(pl_alpha(tail).alpha) - 2.5) < 0.05
        True
    """
    evals = jnp.asarray(evals)
    if evals.ndim != 1:
        raise ValueError(f"evals: expected a vector, got shape {evals.shape}")
    x = jnp.sort(jnp.where(evals > SMALLEST, evals, jnp.inf))
    places = jnp.arange(x.shape[0])
    inside = jnp.isfinite(x)
    n = jnp.sum(inside)
    logs = jnp.where(inside, jnp.log(jnp.where(inside, x, 1.0)), 0.0)
    length = n - places
    spread = jnp.cumsum(logs[::-1])[::-1] - length * logs
    few = n < 20
    counted = jnp.where(few, length - 1, length)
    alphas = 1 + counted / jnp.where(spread > 0, spread, 1.0)

    def distance(start: Array) -> Array:
        alpha = alphas[start]
        tail = 1 - jnp.exp((1 - alpha) * (logs - logs[start]))
        gaps = jnp.abs(tail - (places - start) / length[start])
        return jnp.where(alpha > 1, jnp.max(jnp.where(inside & (places >= start), gaps, 0.0)), 1.0)

    possible = (places < n - 1) & (spread > 0) & (~few | (length >= FEWEST))
    distances = jnp.where(possible, jax.lax.map(distance, places, batch_size=64), jnp.inf)
    best = jnp.argmin(distances)
    enough = (n >= FEWEST) & possible[best]
    return PowerLaw(*(jnp.where(enough, value[best], jnp.nan) for value in (alphas, x, distances)))


def pl_alpha_matrix(W: Float[Array, "..."]) -> PowerLaw:
    """The fit to a weight matrix, or to all slices of a convolution's kernel together.

    Args:
        W: ``[in, out]``, or ``[..., in, out]`` with the spatial axes first, as flax has kernels.

    Returns:
        The fit to the squared singular values.

    Raises:
        ValueError: fewer than two axes.

    Source:
        weightwatcher 0.7.7.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> bool(jnp.isfinite(pl_alpha_matrix(jax.random.normal(jax.random.key(0), (30, 20))).alpha))
        True
    """
    W = jnp.asarray(W)
    if W.ndim < 2:
        raise ValueError(f"W: expected a matrix or a kernel, got shape {W.shape}")
    return pl_alpha(jnp.ravel(jnp.linalg.svd(W, compute_uv=False)) ** 2)


def pl_alpha_tree(params: Any) -> dict[str, dict[str, float]]:
    """The fit to every weight of a network that has enough of a spectrum.

    Args:
        params: pytree of arrays; those with fewer than two axes are passed over.

    Returns:
        ``{path: {"alpha", "xmin", "D"}}``.

    Source:
        arXiv:2507.21049, its diagnosis of backbone and heads.

    Example:
        >>> import jax
        >>> params = {"dense": {"kernel": jax.random.normal(jax.random.key(0), (30, 20))}}
        >>> list(pl_alpha_tree(params))
        ['dense/kernel']
    """
    fits = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if np.ndim(leaf) >= 2:
            fit = pl_alpha_matrix(leaf)
            if np.isfinite(fit.alpha):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                fits[name] = {key: float(value) for key, value in fit._asdict().items()}
    return fits
