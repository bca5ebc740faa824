"""The weighted nearest-neighbour classifier that judges frozen features.

Z. Wu et al. 2018, "Unsupervised feature learning via non-parametric instance discrimination",
arXiv:1805.01978, Section 3.4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxneg.contrastive.arguments import check_positive, floating
from jaxneg.contrastive.cosine import normalised


class KNNResult(NamedTuple):
    """What the neighbours say.

    Attributes:
        scores: summed weights of each class, ``[queries, classes]``.
        predictions: the class of the largest, ``[queries]``.
    """

    scores: Float[Array, "queries classes"]
    predictions: Int[Array, " queries"]


def knn_classify(
    features: Float[Array, "queries dim"],
    bank: Float[Array, "rows dim"],
    labels: Int[Array, " rows"],
    k: int = 200,
    temperature: float = 0.1,
    classes: int | None = None,
    *,
    block_size: int = 1024,
) -> KNNResult:
    """Classifies by the k most similar rows of a bank, each weighted by its similarity.

    ``score_qc = sum over the k nearest rows of class c of exp(cos(q, row) / t)``

    Args:
        features: of what is classified, not normalised.
        bank: features of labelled images, not normalised.
        labels: their classes, from 0.
        k: neighbours, clipped to the rows.
        temperature: t, positive.
        classes: their number; None: the largest label plus 1, which cannot be known under `jit`.
        block_size: queries that are compared at a time.

    Returns:
        Scores and predictions.

    Raises:
        ValueError: shapes that do not fit, an empty bank, k below 1, a temperature that is not positive.
        TypeError: features that are not floating.

    Source:
        arXiv:1805.01978, Equation 4.

    Example:
        >>> bank, labels = jnp.eye(2), jnp.array([1, 0])
        >>> knn_classify(jnp.array([[2.0, 1.0]]), bank, labels, 1, classes=2).predictions.tolist()
        [1]
    """
    features, bank, labels = floating("features", features), floating("bank", bank), jnp.asarray(labels)
    if features.ndim != 2 or bank.ndim != 2 or bank.shape[1:] != features.shape[1:] or not len(bank):
        raise ValueError(
            f"bank: expected [rows, dim] for features [queries, dim] {features.shape}, got {bank.shape}"
        )
    if labels.shape != bank.shape[:1]:
        raise ValueError(f"labels: expected one for each of the {len(bank)} rows, got shape {labels.shape}")
    if k < 1 or block_size < 1:
        raise ValueError(f"k, block_size: expected at least 1, got {k} and {block_size}")
    check_positive(temperature=temperature)
    classes = int(labels.max()) + 1 if classes is None else classes
    bank = normalised(bank)
    one_hot = jax.nn.one_hot(labels, classes, dtype=bank.dtype)

    def score(query: Array) -> Array:
        sim, nearest = jax.lax.top_k(bank @ query, min(k, len(bank)))
        return jnp.exp(sim / temperature) @ one_hot[nearest]

    scores = jax.lax.map(score, normalised(features), batch_size=block_size)
    return KNNResult(scores, jnp.argmax(scores, -1))
