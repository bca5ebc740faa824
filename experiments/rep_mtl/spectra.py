"""Part D: the power-law exponents of the trained weights, by which the paper diagnoses its networks."""

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxneg.mtl import pl_alpha_matrix

HEALTHY = (2.0, 4.0)
"""Exponents of well trained layers (arXiv:2507.21049)."""
BAD = 6.0
"""Above it a layer is badly trained."""

_fit = jax.jit(jax.vmap(pl_alpha_matrix))


def exponents(W: Float[Array, "*layers in out"]) -> Float[np.ndarray, "*layers"]:
    """The exponent of each of many weight matrices of one shape, compiled once.

    Args:
        W: the matrices.

    Returns:
        Exponents as `jaxneg.mtl.pl_alpha_tree` has them, NaN where a spectrum is too short.
    """
    return np.asarray(_fit(W.reshape(-1, *W.shape[-2:])).alpha).reshape(W.shape[:-2])


def outside(alphas: Float[np.ndarray, "seeds layers"]) -> Float[np.ndarray, "seeds"]:
    """How far exponents are from 2 to 4, the mean over the layers that have one.

    Args:
        alphas: of the layers.

    Returns:
        One distance for each seed; 0 is healthy.

    Example:
        >>> import numpy as np
        >>> outside(np.array([[1.5, 3.0, 6.5]])).tolist()
        [1.0]
    """
    low, high = HEALTHY
    return np.nanmean(np.maximum(0, np.maximum(low - alphas, alphas - high)), axis=1)
