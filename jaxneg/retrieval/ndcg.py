"""Normalised discounted cumulative gain, as a masked function under jit.

Paper: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002, with linear gain and
the discount 1 / log2(1 + rank), as trec_eval and ir_measures compute it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxneg.retrieval.arguments import boolean_mask
from jaxneg.retrieval.masked import at_least_float32


def ndcg(
    scores: Float[Array, "*queries documents"],
    relevance: Float[Array, "*queries documents"],
    mask: Bool[Array, "*queries documents"] | None = None,
    *,
    k: int | None = 10,
) -> Float[Array, "*queries"]:
    """Normalised DCG at k of the ranking that the scores make, one value a query.

    DCG = sum over ranks r = 1..k of rel_r / log2(1 + r);  nDCG = DCG of the ranking / DCG of the best ranking

    Equal scores keep the order of the documents. Piecewise constant in the scores: the gradient is 0.

    Args:
        scores: score of every document; the higher the better.
        relevance: judged relevance, linear gain; numbers below 0 count as 0.
        mask: true where the document exists; None: all do.
        k: cut-off; None: all documents.

    Returns:
        nDCG in [0, 1]; 0 for a query without a relevant document.

    Raises:
        ValueError: shapes that do not fit, or a k below 1.
        TypeError: a mask that is not boolean.

    Source:
        Järvelin and Kekäläinen 2002; equal to ``nDCG@k`` of ir_measures where no scores are tied.

    Example:
        >>> round(float(ndcg(jnp.array([0.9, 0.8, 0.1]), jnp.array([0, 1, 0]))), 4)
        0.6309
    """
    scores, relevance = at_least_float32(scores), at_least_float32(relevance)
    if scores.ndim == 0 or scores.shape != relevance.shape:
        raise ValueError(f"relevance: expected the shape of scores, {scores.shape}, got {relevance.shape}")
    if k is not None and k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    mask = boolean_mask("mask", mask, scores.shape)
    depth = scores.shape[-1] if k is None else min(k, scores.shape[-1])
    gain = jnp.where(mask, jnp.maximum(relevance, 0.0), 0.0)
    _, ranked = jax.lax.top_k(jnp.where(mask, scores, -jnp.inf), depth)
    ideal, _ = jax.lax.top_k(gain, depth)
    discount = 1.0 / jnp.log2(2.0 + jnp.arange(depth, dtype=gain.dtype))
    dcg = jnp.sum(jnp.take_along_axis(gain, ranked, axis=-1) * discount, axis=-1)
    best = jnp.sum(ideal * discount, axis=-1)
    return jnp.where(best > 0, dcg / jnp.where(best > 0, best, 1.0), 0.0)
