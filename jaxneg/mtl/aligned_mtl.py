"""Aligned-MTL: the task gradients made orthogonal and equally long, as near as can be to what they were.

Senushkin et al., arXiv:2305.19000, Algorithm 1.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.mtl.gram import checked_gram
from jaxneg.mtl.upgrad import checked_preference

_SCALE_MODES = ("min", "median", "rmse")


def aligned_mtl(
    G: Float[Array, "tasks tasks"],
    pref: Float[Array, " tasks"] | None = None,
    scale_mode: Literal["min", "median", "rmse"] = "min",
) -> Float[Array, " tasks"]:
    """Weights of the aligned gradients.

    With ``G = V diag(l) V^T`` and the eigenvalues above ``T eps max l`` kept, ``w = sqrt(s) V l^(-1/2) V^T
    p``; s is the least, the (lower) median or the mean kept eigenvalue. If none is kept, ``w = p``.

    Args:
        G: ``[T, T]``.
        pref: preference p ``[T]``; 1/T each where None (LibMTL: ones).
        scale_mode: "min", "median" or "rmse".

    Returns:
        Weights ``[T]``; they may be negative. As functions of G they have no derivative where eigenvalues
        coincide (there it is NaN): the scale then has a kink.

    Raises:
        ValueError: G not square or T = 0, pref of another shape, or an unknown scale_mode.
        TypeError: G not floating point.

    Source:
        arXiv:2305.19000, Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(w), 4) for w in aligned_mtl(jnp.diag(jnp.array([1.0, 4.0])))]
        [0.5, 0.25]
    """
    G = checked_gram(G)
    pref = checked_preference(G, pref)
    if scale_mode not in _SCALE_MODES:
        raise ValueError(f"scale_mode: expected one of {_SCALE_MODES}, got {scale_mode!r}")
    tasks = G.shape[0]
    values, vectors = jnp.linalg.eigh(G)
    kept = values > jnp.max(values) * tasks * jnp.finfo(G.dtype).eps
    rank = jnp.sum(kept)
    # Ascending, so that the kept ones come last.
    if scale_mode == "rmse":
        scale = jnp.sum(jnp.where(kept, values, 0.0)) / jnp.maximum(rank, 1)
    else:
        first = tasks - rank
        scale = values[jnp.clip(first if scale_mode == "min" else first + (rank - 1) // 2, 0, tasks - 1)]
    ratio = jnp.where(kept, scale / jnp.where(kept, values, 1.0), 0.0)
    root = jnp.where(ratio > 0, jnp.sqrt(jnp.where(ratio > 0, ratio, 1.0)), 0.0)
    return jnp.where(rank > 0, vectors @ (root * (vectors.T @ pref)), pref)
