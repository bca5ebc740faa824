"""Mining of hard negatives from scores, embeddings or retrieved lists, with NV-Retriever's positive-aware
rules.

Paper: "NV-Retriever: Improving text embedding models with effective hard-negative mining", arXiv:2407.15831
(TopK-Abs, TopK-MarginPos, TopK-PercPos). The steps and their order are those of sentence-transformers'
``mine_hard_negatives``.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxneg.retrieval.arguments import boolean_mask, one_of, unit_rows
from jaxneg.retrieval.dense_search import (
    BLOCK_DOCUMENTS,
    BLOCK_QUERIES,
    check_embeddings,
    dense_search,
    pair_similarities,
    top_documents,
)
from jaxneg.retrieval.false_negatives import Drop
from jaxneg.retrieval.masked import at_least_float32, one_zero

STRATEGIES = ("top", "random")
Rescore = Callable[[Int[Array, "queries"], Int[Array, "queries candidates"]], Array]

NV_RETRIEVER: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "naive": {},
        "shifted": {"range_min": 10},
        "abs": {"max_score": 0.7},
        "margin_pos": {"absolute_margin": 0.05},
        "perc_pos": {"relative_margin": 0.05},
    }
)
"""Options of `mine_negatives` for each rule of arXiv:2407.15831, with its values there."""


class MinedNegatives(NamedTuple):
    """Negatives of each query.

    Attributes:
        index: document numbers, -1 for a missing slot.
        score: their scores, minus infinity for a missing slot.
        valid: true where the slot holds a document.
    """

    index: Int[Array, "queries negatives"]
    score: Float[Array, "queries negatives"]
    valid: Bool[Array, "queries negatives"]


def mine_negatives(
    sim: Float[Array, "queries documents"]
    | tuple[Float[Array, "queries dim"], Float[Array, "documents dim"]],
    positive_mask: Bool[Array, "queries documents"] | None = None,
    *,
    num_negatives: int,
    range_min: int = 0,
    range_max: int | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    strategy: str = "top",
    key: jax.Array | None = None,
    max_positives: int | None = None,
    rescore: Rescore | None = None,
    positive_ids: Int[Array, "queries positives"] | None = None,
    drop: Drop | None = None,
    include_positives: bool = False,
    mesh: Mesh | None = None,
    axis_name: str = "data",
    block_queries: int = BLOCK_QUERIES,
    block_documents: int = BLOCK_DOCUMENTS,
) -> MinedNegatives:
    """High-scoring documents that are not positives and pass the filters.

    In this order: the (range_max + max_positives) best candidates of each query; drop positives; pos = the
    least score of the query's positives; drop s + absolute_margin > pos; drop s > pos - |pos|
    relative_margin; drop s > max_score; drop s < min_score; sort again, skip the first range_min survivors,
    end at range_max; take num_negatives of them.

    From embeddings the candidates come from `dense_search`: with ``positive_ids`` nothing is as large as
    queries times documents. A query without positives has pos = infinity, so that margins drop nothing.
    Remove duplicated documents first, or drop them with `same_text`: the twin of a positive is mined as a
    negative.

    Args:
        sim: scores of every document for every query, or (query embeddings, document embeddings) in unit
            length, whose scores are cosines. Documents with score minus infinity (padding) are never mined,
            nor are those whose embedding is all zero (empty texts).
        positive_mask: true where the document is a known positive of the query; either this or positive_ids.
        num_negatives: slots a query, at least 1.
        range_min: survivors to skip from the top.
        range_max: survivors to end at; None: range_min + max_positives + num_negatives, with ten times
            num_negatives where a margin or max_score is given.
        absolute_margin: least distance below pos, in units of the score (TopK-MarginPos).
        relative_margin: least distance below pos as a share of |pos| (TopK-PercPos); safe where pos < 0.
        max_score: highest score that a negative may have (TopK-Abs).
        min_score: lowest score that a negative may have.
        strategy: "top": the best survivors in order; "random": survivors without replacement, uniformly, in
            order of their scores.
        key: random key for "random".
        max_positives: positives of the query that has most; must be given under ``jit`` with a positive_mask,
            which is not known there. None with positive_ids: their number of columns.
        rescore: ``rescore(query_ids [queries], document_ids [queries, candidates]) -> scores`` replaces the
            scores of candidates and positives before pos is taken, as a cross-encoder would.
        positive_ids: known positives of each query, -1 for padding; repeats do no harm.
        drop: ``drop(query_ids [queries], document_ids [queries, candidates]) -> bool`` says which candidates
            are taken for false negatives (`above_teacher`, `near_positive`, `same_text`).
        include_positives: keep positives among the candidates, as for the evaluation of a re-ranker.
        mesh: embeddings only: the documents are sharded over ``axis_name`` of this mesh.
        axis_name: the mesh axis over which documents are sharded.
        block_queries: embeddings only: queries that are scored at once.
        block_documents: embeddings only: documents that are scored at once.

    Returns:
        A `MinedNegatives`. Scores are float32 at least.

    Raises:
        ValueError: shapes that do not fit, an empty batch, a range or count out of bounds, an unknown
            strategy, "random" without key, an unknown max_positives under ``jit``, both or neither of
            positive_mask and positive_ids, a mesh without embeddings, and, outside of ``jit``, embeddings not
            of length 1 or a positive that no document has.
        TypeError: a mask that is not boolean, or ids that are not integers.

    Source:
        arXiv:2407.15831; sentence-transformers 6.2.0, ``mine_hard_negatives``.

    Example:
        >>> scores, positive = jnp.array([[0.9, 0.5, 0.7]]), jnp.array([[True, False, False]])
        >>> mine_negatives(scores, positive, num_negatives=1).index.tolist()
        [[2]]
    """
    _check_options(num_negatives, range_min, range_max, strategy, key)
    if isinstance(sim, tuple):
        if len(sim) != 2:
            raise ValueError(
                f"sim: expected scores or (query embeddings, document embeddings), got {len(sim)} arrays"
            )
        q, d = (jnp.asarray(rows) for rows in sim)
        check_embeddings(q, d)
        unit_rows("sim[0]", q)
        unit_rows("sim[1]", d)
        shape = q.shape[0], d.shape[0]
    else:
        if mesh is not None:
            raise ValueError("mesh: expected None where scores are given, which are placed already, got one")
        scores = at_least_float32(sim)
        if scores.ndim != 2 or 0 in scores.shape:
            raise ValueError(
                f"sim: expected shape [queries, documents] with at least one of each, got {scores.shape}"
            )
        shape = scores.shape
    queries, documents, mask = *shape, None
    if (positive_mask is None) == (positive_ids is None):
        raise ValueError("positive_ids: expected either positive_mask or positive_ids, got both or neither")
    if positive_ids is not None:
        positive_ids = _checked_positives(positive_ids, queries, documents)
        max_positives = positive_ids.shape[1] if max_positives is None else max_positives
    else:
        mask = boolean_mask("positive_mask", positive_mask, shape)
        if max_positives is None:
            if isinstance(positive_mask, Tracer):
                raise ValueError(
                    "max_positives: expected a number under jit, where shapes depend on it, got None"
                )
            max_positives = int(np.asarray(positive_mask).sum(axis=1).max())
        listed = top_documents(mask.astype(jnp.float32), min(max(max_positives, 1), documents))
        positive_ids = jnp.where(listed.score > 0, listed.index, -1)
    if range_max is None:
        filtered = absolute_margin is not None or relative_margin is not None or max_score is not None
        range_max = range_min + (10 if filtered else 1) * num_negatives + max_positives
    depth = min(range_max + max_positives, documents)

    needs_positive_scores = absolute_margin is not None or relative_margin is not None
    if isinstance(sim, tuple):
        found = dense_search(
            q,
            d,
            depth,
            mesh=mesh,
            axis_name=axis_name,
            block_queries=block_queries,
            block_documents=block_documents,
        )
        positive_scores = None
        if needs_positive_scores and rescore is None:
            positive_scores = pair_similarities(q, d, positive_ids, mesh=mesh, axis_name=axis_name)
    else:
        found = top_documents(scores, depth)
        positive_scores = jnp.take_along_axis(scores, jnp.maximum(positive_ids, 0), axis=1)
        if mask is not None:
            least = jnp.min(scores, axis=1, where=mask, initial=jnp.inf, keepdims=True)
            positive_scores = jnp.broadcast_to(least, positive_ids.shape)
    found_score = found.score
    if mask is not None and not include_positives:
        is_positive = jnp.take_along_axis(mask, jnp.maximum(found.index, 0), axis=1)
        found_score = jnp.where(is_positive, -jnp.inf, found_score)
    return mine_candidates(
        found.index,
        found_score,
        positive_ids,
        positive_scores,
        num_negatives=num_negatives,
        range_min=range_min,
        range_max=range_max,
        absolute_margin=absolute_margin,
        relative_margin=relative_margin,
        max_score=max_score,
        min_score=min_score,
        strategy=strategy,
        key=key,
        rescore=rescore,
        drop=drop,
        include_positives=include_positives,
    )


def mine_candidates(
    candidates: Int[Array, "queries candidates"],
    scores: Float[Array, "queries candidates"],
    positive_ids: Int[Array, "queries positives"],
    positive_scores: Float[Array, "queries positives"] | None = None,
    *,
    num_negatives: int,
    range_min: int = 0,
    range_max: int | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    strategy: str = "top",
    key: jax.Array | None = None,
    rescore: Rescore | None = None,
    drop: Drop | None = None,
    include_positives: bool = False,
) -> MinedNegatives:
    """Negatives among candidates that a retriever found: `mine_negatives` after its search.

    Lists may come from `bm25_search`, `dense_search`, bm25s, FAISS, or several of them in one
    (`fuse_rankings`, `fuse_scores`).

    Args:
        candidates: document numbers of each query, each once; -1 for a missing slot.
        scores: their scores, in any order; where they are not finite the slot is missing.
        positive_ids: known positives of each query, -1 for padding; repeats do no harm.
        positive_scores: their scores; needed by the margins, unless rescore gives them. Positives with a
            score of minus infinity are not found by the retriever, and margins then drop everything.
        num_negatives: slots a query, at least 1.
        range_min: survivors to skip from the top.
        range_max: survivors to end at; None: all.
        absolute_margin: as in `mine_negatives`.
        relative_margin: likewise.
        max_score: likewise.
        min_score: likewise.
        strategy: likewise.
        key: likewise.
        rescore: likewise.
        drop: likewise.
        include_positives: likewise.

    Returns:
        A `MinedNegatives`.

    Raises:
        ValueError: shapes that do not fit, a range or count out of bounds, an unknown strategy, "random"
            without key, or a margin without positive scores.
        TypeError: ids that are not integers.

    Source:
        arXiv:2407.15831; sentence-transformers 6.2.0, ``mine_hard_negatives``.

    Example:
        >>> found, scores = jnp.array([[4, 7, 1]]), jnp.array([[0.9, 0.7, 0.5]])
        >>> mine_candidates(found, scores, jnp.array([[4]]), num_negatives=2).index.tolist()
        [[7, 1]]
    """
    _check_options(num_negatives, range_min, range_max, strategy, key)
    candidates, scores = jnp.asarray(candidates), at_least_float32(scores)
    if candidates.ndim != 2 or 0 in candidates.shape:
        raise ValueError(
            f"candidates: expected shape [queries, candidates] with at least one of each, "
            f"got {candidates.shape}"
        )
    if scores.shape != candidates.shape:
        raise ValueError(f"scores: expected the shape of candidates, {candidates.shape}, got {scores.shape}")
    queries = candidates.shape[0]
    positive_ids = _checked_positives(positive_ids, queries, None)
    query_ids = jnp.arange(queries)
    findable = (candidates >= 0) & jnp.isfinite(scores)
    known = positive_ids >= 0
    if rescore is not None:
        scores = at_least_float32(rescore(query_ids, jnp.maximum(candidates, 0)))
        positive_scores = at_least_float32(rescore(query_ids, jnp.maximum(positive_ids, 0)))
    kept = findable & jnp.isfinite(scores)
    if not include_positives:
        kept &= ~_listed(candidates, positive_ids)
    if absolute_margin is not None or relative_margin is not None:
        if positive_scores is None:
            raise ValueError("positive_scores: expected the positives' scores for the margin, got None")
        positive_scores = at_least_float32(positive_scores)
        if positive_scores.shape != positive_ids.shape:
            raise ValueError(
                f"positive_scores: expected the shape of positive_ids, {positive_ids.shape}, "
                f"got {positive_scores.shape}"
            )
        pos = jnp.min(positive_scores, axis=1, where=known, initial=jnp.inf, keepdims=True)
        if absolute_margin is not None:
            kept &= ~(scores + absolute_margin > pos)
        if relative_margin is not None:
            bar = jnp.where(pos == jnp.inf, jnp.inf, pos - jnp.abs(pos) * relative_margin)
            kept &= ~(scores > bar)
    if max_score is not None:
        kept &= ~(scores > max_score)
    if min_score is not None:
        kept &= ~(scores < min_score)
    if drop is not None:
        kept &= ~drop(query_ids, jnp.maximum(candidates, 0))

    # Slots are added where the candidates are fewer than the slots asked for.
    missing = ((0, 0), (0, max(0, range_min + num_negatives - candidates.shape[1])))
    candidates = jnp.pad(candidates, missing)
    survivor_score = jnp.pad(jnp.where(kept, one_zero(scores), -jnp.inf), missing, constant_values=-jnp.inf)
    survivor_score, order = jax.lax.top_k(survivor_score, survivor_score.shape[1])
    survivor = jnp.take_along_axis(candidates, order, axis=1)
    place = jnp.arange(survivor.shape[1])
    valid = jnp.isfinite(survivor_score) & (place >= range_min)
    if range_max is not None:
        valid &= place < range_max
    if key is None or strategy == "top":
        chosen = jnp.broadcast_to(range_min + jnp.arange(num_negatives), (queries, num_negatives))
    else:
        _, chosen = jax.lax.top_k(jnp.where(valid, jax.random.uniform(key, valid.shape), -1.0), num_negatives)
        drawn = jnp.take_along_axis(valid, chosen, axis=1)
        # In order of their scores; a place beyond the last stands for none.
        chosen = jnp.sort(jnp.where(drawn, chosen, valid.shape[1]), axis=1)
    valid = jnp.take_along_axis(valid, chosen, axis=1, mode="fill", fill_value=False)
    index = jnp.take_along_axis(survivor, chosen, axis=1, mode="clip")
    score = jnp.take_along_axis(survivor_score, chosen, axis=1, mode="clip")
    return MinedNegatives(jnp.where(valid, index, -1), jnp.where(valid, score, -jnp.inf), valid)


def _listed(candidates: Array, ids: Array) -> Array:
    """Whether each candidate is among the query's ids, one column of ids after the other."""

    def add(found: Array, column: Array) -> tuple[Array, None]:
        return found | (candidates == column[:, None]), None

    return jax.lax.scan(add, candidates < 0, ids.T)[0]


def _check_options(
    num_negatives: int, range_min: int, range_max: int | None, strategy: str, key: jax.Array | None
) -> None:
    one_of("strategy", strategy, STRATEGIES)
    if strategy == "random" and key is None:
        raise ValueError('key: expected a random key for strategy "random", got None')
    if num_negatives < 1:
        raise ValueError(f"num_negatives: expected at least 1, got {num_negatives}")
    if range_min < 0:
        raise ValueError(f"range_min: expected at least 0, got {range_min}")
    if range_max is not None and range_max <= range_min:
        raise ValueError(f"range_max: expected more than range_min = {range_min}, got {range_max}")


def _checked_positives(positive_ids: Array, queries: int, documents: int | None) -> Array:
    """As an array with at least one column; raises for what is no list of documents of each query."""
    ids = jnp.asarray(positive_ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"positive_ids: expected integer document numbers, got dtype {ids.dtype}")
    if ids.ndim != 2 or ids.shape[0] != queries:
        raise ValueError(f"positive_ids: expected shape [{queries}, positives], got {ids.shape}")
    if ids.shape[1] == 0:
        return jnp.full((queries, 1), -1, ids.dtype)
    if documents is not None and not isinstance(positive_ids, Tracer):
        known = np.asarray(positive_ids)
        wrong = np.argwhere(known >= documents)
        if wrong.size:
            row, column = (int(i) for i in wrong[0])
            raise ValueError(
                f"positive_ids: expected document numbers below {documents}; "
                f"query {row} has {known[row, column]}"
            )
    return ids


def triplets(
    query_ids: Int[np.ndarray, "rows"], positive_ids: Int[np.ndarray, "rows"], mined: MinedNegatives
) -> Int[np.ndarray, "triplets 3"]:
    """(query, positive, negative) for every valid negative of every (query, positive) row.

    Args:
        query_ids: query of each row, a row of ``mined``.
        positive_ids: positive document of each row.
        mined: negatives of each query.

    Returns:
        The triplets in the order of the rows; a query with several positives repeats its negatives. Not for
        ``jit``.

    Source:
        Output format "triplet" of sentence-transformers' ``mine_hard_negatives``.

    Example:
        >>> mined = MinedNegatives(np.array([[5, -1]]), np.array([[0.4, -np.inf]]), np.array([[True, False]]))
        >>> triplets(np.array([0]), np.array([3]), mined).tolist()
        [[0, 3, 5]]
    """
    index, valid = np.asarray(mined.index)[query_ids], np.asarray(mined.valid)[query_ids]
    row, slot = np.nonzero(valid)
    return np.stack([np.asarray(query_ids)[row], np.asarray(positive_ids)[row], index[row, slot]], axis=1)


def n_tuples(
    query_ids: Int[np.ndarray, "rows"], positive_ids: Int[np.ndarray, "rows"], mined: MinedNegatives
) -> Int[np.ndarray, "complete columns"]:
    """(query, positive, negative 1, ..., negative K) for every row whose query has all K negatives.

    Args:
        query_ids: query of each row, a row of ``mined``.
        positive_ids: positive document of each row.
        mined: negatives of each query.

    Returns:
        The complete rows only. Not for ``jit``.

    Source:
        Output format "n-tuple" of sentence-transformers' ``mine_hard_negatives``.

    Example:
        >>> mined = MinedNegatives(np.array([[5, 6]]), np.array([[0.4, 0.3]]), np.array([[True, True]]))
        >>> n_tuples(np.array([0]), np.array([3]), mined).tolist()
        [[0, 3, 5, 6]]
    """
    index, valid = np.asarray(mined.index)[query_ids], np.asarray(mined.valid)[query_ids]
    complete = valid.all(axis=1)
    columns = np.concatenate(
        [np.asarray(query_ids)[:, None], np.asarray(positive_ids)[:, None], index], axis=1
    )
    return columns[complete]


def labelled_pairs(
    positive_ids: Int[np.ndarray, "queries positives"], mined: MinedNegatives
) -> Int[np.ndarray, "pairs 3"]:
    """(query, document, label) of every positive and every valid negative, query after query.

    Args:
        positive_ids: documents of each query, -1 for padding.
        mined: negatives of the same queries.

    Returns:
        Label 1 for a positive, 0 for a negative. Not for ``jit``.

    Source:
        Output format "labeled-pair" of sentence-transformers' ``mine_hard_negatives``.

    Example:
        >>> mined = MinedNegatives(np.array([[5, -1]]), np.array([[0.4, -np.inf]]), np.array([[True, False]]))
        >>> labelled_pairs(np.array([[3]]), mined).tolist()
        [[0, 3, 1], [0, 5, 0]]
    """
    ids, labels = labelled_lists(positive_ids, mined)
    query, slot = np.nonzero(labels >= 0)
    return np.stack([query, ids[query, slot], labels[query, slot]], axis=1)


def labelled_lists(
    positive_ids: Int[np.ndarray, "queries positives"], mined: MinedNegatives
) -> tuple[Int[np.ndarray, "queries length"], Int[np.ndarray, "queries length"]]:
    """Each query's positives and negatives in one list with labels.

    Args:
        positive_ids: documents of each query, -1 for padding.
        mined: negatives of the same queries.

    Returns:
        (document numbers, labels): label 1 for a positive, 0 for a negative, -1 for a missing slot. Not for
        ``jit``.

    Source:
        Output format "labeled-list" of sentence-transformers' ``mine_hard_negatives``.

    Example:
        >>> mined = MinedNegatives(np.array([[5, -1]]), np.array([[0.4, -np.inf]]), np.array([[True, False]]))
        >>> [x.tolist() for x in labelled_lists(np.array([[3]]), mined)]
        [[[3, 5, -1]], [[1, 0, -1]]]
    """
    index = np.asarray(mined.index)
    ids = np.concatenate([positive_ids, index], axis=1)
    labels = np.concatenate([np.ones_like(positive_ids), np.zeros_like(index)], axis=1)
    return ids, np.where(ids >= 0, labels, -1)
