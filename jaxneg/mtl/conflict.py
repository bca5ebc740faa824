"""How much the tasks' gradients conflict: three numbers of the Gram matrix, to watch over training.

Yu et al., arXiv:2001.06782: gradients conflict where their cosine is negative (Definition 1), and one hides
the other where their norms differ (Definition 2, here as a plain ratio). Nothing but ``G = J J^T`` is read:
sharded parameters cost T^2 numbers on the wire.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.mtl.gram import checked_gram
from jaxneg.mtl.solvers import gradient_norms


class ConflictStatistics(NamedTuple):
    """What `conflict_statistics` returns: numbers without a unit.

    mean_cosine: mean cosine between the gradients of two tasks, from -1 to 1.
    negative_share: share of the pairs whose cosine is negative, from 0 to 1.
    norm_ratio: the largest gradient's norm over the smallest one's, at least 1.
    """

    mean_cosine: Float[Array, ""]
    negative_share: Float[Array, ""]
    norm_ratio: Float[Array, ""]


def conflict_statistics(G: Float[Array, "tasks tasks"]) -> ConflictStatistics:
    """How much the gradients of the tasks conflict.

    With ``d_i = sqrt(G_ii)`` and over the pairs i < j: the mean of ``G_ij / (d_i d_j)``, the share with
    ``G_ij < 0``, and ``max_i d_i / min_i d_i``.

    Args:
        G: ``[T, T]``, the Gram matrix of the task gradients.

    Returns:
        The three numbers, in float32 at least. A zero gradient has cosine 0 with every other; next to one
        that is not zero it makes the ratio infinite. A single task has no pair: cosine 1, share 0, ratio 1.

    Raises:
        ValueError: G not square or T = 0.
        TypeError: G not floating point.

    Source:
        arXiv:2001.06782, Section 2.2, Definitions 1 and 2 (which compares norms pair by pair).

    Example:
        >>> import jax.numpy as jnp
        >>> found = conflict_statistics(jnp.array([[1.0, -1.0], [-1.0, 4.0]]))
        >>> [float(number) for number in found]
        [-0.5, 1.0, 2.0]
    """
    G = checked_gram(G)
    tasks = G.shape[0]
    if tasks == 1:
        return ConflictStatistics(jnp.ones((), G.dtype), jnp.zeros((), G.dtype), jnp.ones((), G.dtype))
    norms = gradient_norms(G)
    units = jnp.where(norms > 0, norms, 1.0)
    others = ~jnp.eye(tasks, dtype=bool)
    cosines = jnp.where(others, G / units[:, None] / units, 0.0)
    pairs = tasks * (tasks - 1)
    ratio = jnp.where(jnp.any(norms > 0), jnp.max(norms) / jnp.min(norms), 1.0)
    negative = jnp.sum(cosines < 0, dtype=G.dtype)
    return ConflictStatistics(jnp.sum(cosines) / pairs, negative / pairs, ratio)
