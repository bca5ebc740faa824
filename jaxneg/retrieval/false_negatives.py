"""Filters of false negatives: what `mine_negatives` takes as ``drop``.

Each is made once and then called as ``drop(query_ids [queries], document_ids [queries, candidates])``, which
is true where a candidate is taken for a relevant document that nobody labelled.

Papers: "RocketQA", arXiv:2010.08191 (denoised hard negatives, by a teacher's score). The margins of
NV-Retriever, arXiv:2407.15831, are options of `mine_negatives` itself.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxneg.retrieval.arguments import unit_rows
from jaxneg.retrieval.masked import at_least_float32

Drop = Callable[[Int[Array, "queries"], Int[Array, "queries candidates"]], Bool[Array, "queries candidates"]]


def above_teacher(
    teacher: Callable[[Int[Array, "queries"], Int[Array, "queries candidates"]], Array],
    threshold: Float[Array, ""] | Float[Array, "queries"] | float,
) -> Drop:
    """Drops candidates that a teacher scores above a threshold (denoising).

    drop where teacher(query, document) > threshold

    Args:
        teacher: ``teacher(query_ids, document_ids) -> scores``, such as a cross-encoder's.
        threshold: one number, or one for each query by its number; for example the median of the teacher's
            scores of labelled positives.

    Returns:
        The filter.

    Source:
        arXiv:2010.08191, section 4.2.

    Example:
        >>> drop = above_teacher(lambda queries, documents: documents / 10, 0.5)
        >>> drop(jnp.array([0]), jnp.array([[4, 7]])).tolist()
        [[False, True]]
    """
    threshold = at_least_float32(jnp.asarray(threshold))

    def drop(query_ids: Array, document_ids: Array) -> Array:
        bar = threshold if threshold.ndim == 0 else threshold[query_ids][:, None]
        return at_least_float32(teacher(query_ids, document_ids)) > bar

    return drop


def near_positive(
    d: Float[Array, "documents dim"],
    positive_ids: Int[Array, "queries positives"],
    threshold: float,
    *,
    block_rows: int = 256,
) -> Drop:
    """Drops candidates that say nearly the same as a positive of the query.

    drop where max over the query's positives of <d_candidate, d_positive> > threshold

    Args:
        d: unit embeddings of the documents.
        positive_ids: positives of each query, -1 for padding.
        threshold: cosine from which on two documents are taken for the same.
        block_rows: queries whose candidates are gathered at once.

    Returns:
        The filter.

    Raises:
        ValueError: embeddings that are not of length 1 (outside of ``jit``).

    Source:
        Removal of near duplicates of the positive, here by the encoder's own cosine.

    Example:
        >>> drop = near_positive(jnp.eye(3), jnp.array([[2]]), 0.9)
        >>> drop(jnp.array([0]), jnp.array([[1, 2]])).tolist()
        [[False, True]]
    """
    d, positive_ids = jnp.asarray(d), jnp.asarray(positive_ids)
    unit_rows("d", d)

    def of_query(row: tuple[Array, Array]) -> Array:
        positives, documents = row
        cosine = at_least_float32(
            jnp.matmul(
                d[documents],
                d[jnp.maximum(positives, 0)].T,
                precision="highest",
                preferred_element_type=jnp.float32,
            )
        )
        return jnp.max(cosine, axis=1, where=positives >= 0, initial=-jnp.inf) > threshold

    def drop(query_ids: Array, document_ids: Array) -> Array:
        return jax.lax.map(of_query, (positive_ids[query_ids], document_ids), batch_size=block_rows)

    return drop


def same_text(text_numbers: Int[Array, "documents"], positive_ids: Int[Array, "queries positives"]) -> Drop:
    """Drops candidates with the same text as a positive of the query: its twins.

    drop where text(candidate) = text(positive) for one of the query's positives

    Args:
        text_numbers: equal for documents of equal text: ``np.unique(texts, return_inverse=True)[1]``.
        positive_ids: positives of each query, -1 for padding.

    Returns:
        The filter.

    Source:
        Duplicated documents must not become negatives; sentence-transformers removes them from the corpus.

    Example:
        >>> drop = same_text(jnp.array([5, 6, 5]), jnp.array([[0]]))
        >>> drop(jnp.array([0]), jnp.array([[1, 2]])).tolist()
        [[False, True]]
    """
    text_numbers, positive_ids = jnp.asarray(text_numbers), jnp.asarray(positive_ids)

    def drop(query_ids: Array, document_ids: Array) -> Array:
        ids = positive_ids[query_ids]
        texts = jnp.where(ids >= 0, text_numbers[jnp.maximum(ids, 0)], -1)
        return jnp.any(text_numbers[document_ids][:, :, None] == texts[:, None, :], axis=-1)

    return drop
