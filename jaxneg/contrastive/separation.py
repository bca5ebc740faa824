"""How far the similarities of positive pairs lie from those of negative pairs.

The quantities behind Figure 1 of AMCL, arXiv:2310.05615.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.contrastive.arguments import floating

BINS = 40


class Separation(NamedTuple):
    """Two sets of similarities, compared.

    Attributes:
        auc: probability that a positive pair is more similar than a negative one; ties count half.
        overlap: common area of the two histograms of 40 bins from -1 to 1, from 0 to 1.
        below_half: share of the positive pairs with a similarity below 0.5.
    """

    auc: Float[Array, ""]
    overlap: Float[Array, ""]
    below_half: Float[Array, ""]


def separation_metrics(pos: Float[Array, " pos"], neg: Float[Array, " neg"]) -> Separation:
    """Compares the similarities of positive and of negative pairs.

    ``auc = P(pos > neg) + P(pos = neg) / 2,  overlap = sum over bins of min(share of pos, share of neg)``

    Args:
        pos: cosines of positive pairs.
        neg: cosines of negative pairs. For several heads: the mean over them, in both.

    Returns:
        AUC, overlap, and the share of positives below 0.5.

    Raises:
        ValueError: arrays that are not vectors, or empty.
        TypeError: arrays that are not floating.

    Source:
        arXiv:2310.05615, Figure 1.

    Example:
        >>> found = separation_metrics(jnp.array([0.9, 0.4]), jnp.array([0.4, -0.2]))
        >>> [float(x) for x in found]
        [0.875, 0.5, 0.5]
    """
    pos, neg = floating("pos", pos), floating("neg", neg)
    for name, values in (("pos", pos), ("neg", neg)):
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"{name}: expected a vector of similarities, got shape {values.shape}")
    ordered = jnp.sort(neg)
    below, up_to = (jnp.searchsorted(ordered, pos, side=side) for side in ("left", "right"))
    edges = jnp.linspace(-1.0, 1.0, BINS + 1)
    shares = [jnp.histogram(values, edges)[0] / values.size for values in (pos, neg)]
    return Separation(
        jnp.mean((below + up_to) / (2 * neg.size)),
        jnp.sum(jnp.minimum(*shares)),
        jnp.mean(pos < 0.5),
    )
