"""Metrics of a ranking, as masked functions under jit: nDCG, reciprocal rank, average precision, recall,
precision, hit rate.

Papers: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002, for nDCG; Voorhees
and Harman, "TREC", 2005, for the others. The values are those of trec_eval and ir_measures.

All take ``[queries, documents]`` arrays and return one value a query. The ranking is by falling score; equal
scores keep the order of the documents, or of ``tie_order``, for which `trec_eval_tie_order` gives trec_eval's
(which puts the later identifier first, and breaks ties after rounding scores to float32). A document with a
score of minus infinity was not retrieved: it has no rank, but counts among the judged ones. All are piecewise
constant in the scores: the gradient is 0.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxneg.retrieval.arguments import boolean_mask, one_of
from jaxneg.retrieval.masked import at_least_float32, one_zero

GAINS = ("linear", "exp")


def trec_eval_tie_order(doc_ids: Sequence[str]) -> Int[np.ndarray, "documents"]:
    """The ``tie_order`` with which trec_eval and ir_measures sort documents of equal score.

    Args:
        doc_ids: identifiers in the order of the documents.

    Returns:
        Place of each document, 0 for the first: falling order of the identifiers' UTF-8 bytes. Not for
        ``jit``.

    Raises:
        ValueError: an identifier that occurs twice.

    Source:
        trec_eval 9, ``form_res_rels.c``: ties by falling ``docno``.

    Example:
        >>> trec_eval_tie_order(["10", "9", "8"]).tolist()
        [2, 0, 1]
    """
    if len(set(doc_ids)) != len(doc_ids):
        twice = next(name for number, name in enumerate(doc_ids) if name in doc_ids[:number])
        raise ValueError(f"doc_ids: expected each identifier once, got {twice!r} twice")
    falling = sorted(range(len(doc_ids)), key=lambda i: doc_ids[i].encode(), reverse=True)
    place = np.empty(len(doc_ids), np.int32)
    place[falling] = np.arange(len(doc_ids))
    return place


def ndcg_at_k(
    scores: Float[Array, "*queries documents"],
    rel: Float[Array, "*queries documents"],
    k: int | None = 10,
    mask: Bool[Array, "*queries documents"] | None = None,
    *,
    gain: str = "linear",
    tie_order: Int[Array, "documents"] | None = None,
) -> Float[Array, "*queries"]:
    """Normalised discounted cumulative gain at k.

    DCG = sum over ranks r = 1..k of g(rel_r) / log2(1 + r), g(x) = x or 2^x - 1;  nDCG = DCG of the ranking /
    DCG of the best ranking of all judged documents

    Args:
        scores: score of every document, the higher the better; minus infinity: not retrieved.
        rel: judged relevance; numbers below 0 count as 0.
        k: cut-off; None: all documents.
        mask: true where the document exists; None: all do.
        gain: "linear", as trec_eval has it, or "exp".
        tie_order: place of each document among equal scores; None: its own number.

    Returns:
        nDCG in [0, 1]; NaN for a query without a relevant document, for which it has no value
        (``jnp.nanmean`` leaves it out).

    Raises:
        ValueError: shapes that do not fit, a k below 1, or an unknown gain.
        TypeError: a mask that is not boolean.

    Source:
        Järvelin and Kekäläinen 2002; ``nDCG@k`` of ir_measures.

    Example:
        >>> round(float(ndcg_at_k(jnp.array([0.9, 0.8, 0.1]), jnp.array([0, 1, 0]))), 4)
        0.6309
    """
    one_of("gain", gain, GAINS)
    scores, rel, depth = _checked(scores, rel, k, mask, tie_order)
    value = rel if gain == "linear" else jnp.exp2(rel) - 1.0
    ideal, _ = jax.lax.top_k(value, depth)
    discount = 1.0 / jnp.log2(2.0 + jnp.arange(depth, dtype=value.dtype))
    dcg = jnp.sum(_ranked(scores, value, depth) * discount, axis=-1)
    best = jnp.sum(ideal * discount, axis=-1)
    return _where_defined(best > 0, dcg, best)


def mrr_at_k(
    scores: Float[Array, "*queries documents"],
    rel: Float[Array, "*queries documents"],
    k: int | None = 10,
    mask: Bool[Array, "*queries documents"] | None = None,
    *,
    above: float = 0.0,
    tie_order: Int[Array, "documents"] | None = None,
) -> Float[Array, "*queries"]:
    """Reciprocal rank of the first relevant document among the first k, whose mean over queries is MRR@k.

    RR = 1 / rank of the first relevant document, 0 if there is none up to rank k

    MRR is the mean over the queries that have a relevant document:
    ``jnp.mean(mrr_at_k(scores, rel), where=jnp.any(rel > 0, axis=-1))``.

    Args:
        scores: score of every document, the higher the better; minus infinity: not retrieved.
        rel: judged relevance.
        k: cut-off; None: all documents.
        mask: true where the document exists; None: all do.
        above: documents with a relevance above it are relevant.
        tie_order: place of each document among equal scores; None: its own number.

    Returns:
        One reciprocal rank in [0, 1] a query; 0 for a query without a relevant document.

    Raises:
        ValueError: shapes that do not fit, or a k below 1.
        TypeError: a mask that is not boolean.

    Source:
        Voorhees, "The TREC-8 question answering track report", 1999; ``RR@k`` of ir_measures.

    Example:
        >>> float(mrr_at_k(jnp.array([0.9, 0.8, 0.1]), jnp.array([0, 1, 0])))
        0.5
    """
    scores, rel, depth = _checked(scores, rel, k, mask, tie_order)
    relevant = _relevant(scores, rel, depth, above)
    first = jnp.argmax(relevant, axis=-1).astype(rel.dtype)
    return jnp.where(jnp.any(relevant, axis=-1), 1.0 / (1.0 + first), 0.0)


def average_precision(
    scores: Float[Array, "*queries documents"],
    rel: Float[Array, "*queries documents"],
    k: int | None = None,
    mask: Bool[Array, "*queries documents"] | None = None,
    *,
    above: float = 0.0,
    tie_order: Int[Array, "documents"] | None = None,
) -> Float[Array, "*queries"]:
    """Mean precision at the ranks of the relevant documents, whose mean over queries is MAP.

    AP = (1 / number of relevant documents) sum over relevant documents up to rank k of precision at its rank

    Args:
        scores: score of every document, the higher the better; minus infinity: not retrieved.
        rel: judged relevance.
        k: cut-off; None: all documents.
        mask: true where the document exists; None: all do.
        above: documents with a relevance above it are relevant.
        tie_order: place of each document among equal scores; None: its own number.

    Returns:
        One average precision in [0, 1] a query; NaN for a query without a relevant document.

    Raises:
        ValueError: shapes that do not fit, or a k below 1.
        TypeError: a mask that is not boolean.

    Source:
        Voorhees and Harman 2005; ``AP`` and ``AP@k`` of ir_measures.

    Example:
        >>> round(float(average_precision(jnp.array([0.9, 0.8, 0.1]), jnp.array([1, 0, 1]))), 4)
        0.8333
    """
    scores, rel, depth = _checked(scores, rel, k, mask, tie_order)
    relevant = _relevant(scores, rel, depth, above)
    hits = jnp.cumsum(relevant, axis=-1).astype(rel.dtype)
    precision = hits / (1.0 + jnp.arange(depth, dtype=rel.dtype))
    total = jnp.sum(rel > above, axis=-1).astype(rel.dtype)
    return _where_defined(total > 0, jnp.sum(precision, axis=-1, where=relevant), total)


def recall_at_k(
    scores: Float[Array, "*queries documents"],
    rel: Float[Array, "*queries documents"],
    k: int | None = 10,
    mask: Bool[Array, "*queries documents"] | None = None,
    *,
    above: float = 0.0,
    tie_order: Int[Array, "documents"] | None = None,
) -> Float[Array, "*queries"]:
    """Share of the relevant documents that stand among the first k.

    recall = relevant documents up to rank k / relevant documents

    Args:
        scores: score of every document, the higher the better; minus infinity: not retrieved.
        rel: judged relevance.
        k: cut-off; None: all documents.
        mask: true where the document exists; None: all do.
        above: documents with a relevance above it are relevant.
        tie_order: place of each document among equal scores; None: its own number.

    Returns:
        One share in [0, 1] a query; 0 for a query without a relevant document.

    Raises:
        ValueError: shapes that do not fit, or a k below 1.
        TypeError: a mask that is not boolean.

    Source:
        Voorhees and Harman 2005; ``R@k`` of ir_measures.

    Example:
        >>> float(recall_at_k(jnp.array([0.9, 0.8, 0.1]), jnp.array([1, 0, 1]), 2))
        0.5
    """
    scores, rel, depth = _checked(scores, rel, k, mask, tie_order)
    hits = jnp.sum(_relevant(scores, rel, depth, above), axis=-1).astype(rel.dtype)
    return hits / jnp.maximum(jnp.sum(rel > above, axis=-1), 1).astype(rel.dtype)


def precision_at_k(
    scores: Float[Array, "*queries documents"],
    rel: Float[Array, "*queries documents"],
    k: int = 10,
    mask: Bool[Array, "*queries documents"] | None = None,
    *,
    above: float = 0.0,
    tie_order: Int[Array, "documents"] | None = None,
) -> Float[Array, "*queries"]:
    """Share of the first k places that hold relevant documents.

    precision = relevant documents up to rank k / k, also where there are fewer than k documents

    Args:
        scores: score of every document, the higher the better; minus infinity: not retrieved.
        rel: judged relevance.
        k: cut-off.
        mask: true where the document exists; None: all do.
        above: documents with a relevance above it are relevant.
        tie_order: place of each document among equal scores; None: its own number.

    Returns:
        One share in [0, 1] a query.

    Raises:
        ValueError: shapes that do not fit, or a k below 1.
        TypeError: a mask that is not boolean.

    Source:
        Voorhees and Harman 2005; ``P@k`` of ir_measures.

    Example:
        >>> float(precision_at_k(jnp.array([0.9, 0.8, 0.1]), jnp.array([1, 0, 1]), 2))
        0.5
    """
    scores, rel, depth = _checked(scores, rel, k, mask, tie_order)
    return jnp.sum(_relevant(scores, rel, depth, above), axis=-1).astype(rel.dtype) / k


def hit_rate_at_k(
    scores: Float[Array, "*queries documents"],
    rel: Float[Array, "*queries documents"],
    k: int | None = 10,
    mask: Bool[Array, "*queries documents"] | None = None,
    *,
    above: float = 0.0,
    tie_order: Int[Array, "documents"] | None = None,
) -> Float[Array, "*queries"]:
    """Whether a relevant document stands among the first k.

    hit = 1 if there is a relevant document up to rank k, else 0

    Args:
        scores: score of every document, the higher the better; minus infinity: not retrieved.
        rel: judged relevance.
        k: cut-off; None: all documents.
        mask: true where the document exists; None: all do.
        above: documents with a relevance above it are relevant.
        tie_order: place of each document among equal scores; None: its own number.

    Returns:
        0 or 1 for each query.

    Raises:
        ValueError: shapes that do not fit, or a k below 1.
        TypeError: a mask that is not boolean.

    Source:
        Voorhees and Harman 2005; ``Success@k`` of ir_measures.

    Example:
        >>> float(hit_rate_at_k(jnp.array([0.9, 0.8, 0.1]), jnp.array([0, 1, 0]), 1))
        0.0
    """
    scores, rel, depth = _checked(scores, rel, k, mask, tie_order)
    return jnp.any(_relevant(scores, rel, depth, above), axis=-1).astype(rel.dtype)


def _checked(
    scores: Array, rel: Array, k: int | None, mask: Array | None, tie_order: Array | None
) -> tuple[Array, Array, int]:
    """Scores (minus infinity where masked), relevance (0 there) in the order of ties, and the depth."""
    scores, rel = at_least_float32(scores), at_least_float32(rel)
    if scores.ndim == 0 or scores.shape[-1] == 0 or scores.shape != rel.shape:
        raise ValueError(
            f"rel: expected the shape of scores, {scores.shape}, with at least one document, got {rel.shape}"
        )
    if k is not None and k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    documents = scores.shape[-1]
    mask = boolean_mask("mask", mask, scores.shape)
    scores, rel = jnp.where(mask, one_zero(scores), -jnp.inf), jnp.where(mask, jnp.maximum(rel, 0.0), 0.0)
    if tie_order is not None:
        tie_order = jnp.asarray(tie_order)
        if tie_order.shape != (documents,):
            raise ValueError(f"tie_order: expected shape {(documents,)}, got {tie_order.shape}")
        order = jnp.argsort(tie_order)
        scores, rel = jnp.take(scores, order, axis=-1), jnp.take(rel, order, axis=-1)
    return scores, rel, documents if k is None else min(k, documents)


def _ranked(scores: Array, values: Array, depth: int) -> Array:
    """The values of the first documents, by falling score; 0 for documents that were not retrieved."""
    best, first = jax.lax.top_k(scores, depth)
    return jnp.where(best > -jnp.inf, jnp.take_along_axis(values, first, axis=-1), 0.0)


def _relevant(scores: Array, rel: Array, depth: int, above: float) -> Array:
    """Whether each of the first documents is relevant; masked documents are not."""
    if isinstance(above, (int, float)) and above < 0:
        raise ValueError(f"above: expected at least 0, got {above}")
    return _ranked(scores, rel, depth) > above


def _where_defined(defined: Array, numerator: Array, denominator: Array) -> Array:
    return jnp.where(defined, numerator / jnp.where(defined, denominator, 1.0), jnp.nan)
