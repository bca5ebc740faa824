"""Mining of hard negatives from a score matrix or from embeddings, with the positive-aware rules of
NV-Retriever.

Papers: "NV-Retriever: Improving text embedding models with effective hard-negative mining", arXiv:2407.15831
(TopK-Abs, TopK-MarginPos, TopK-PercPos); reciprocal rank fusion: Cormack, Clarke and Buettcher,
SIGIR 2009. The steps and their order are those of sentence-transformers' ``mine_hard_negatives``.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxneg.retrieval.arguments import boolean_mask, one_of, unit_rows
from jaxneg.retrieval.masked import at_least_float32

STRATEGIES = ("top", "random")
FUSIONS = ("union", "rrf")

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
    positive_mask: Bool[Array, "queries documents"],
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
    rescore: Callable[[Int[Array, "queries"], Int[Array, "queries candidates"]], Array] | None = None,
) -> MinedNegatives:
    """High-scoring documents that are not positives and pass the filters.

    In this order: the (range_max + max_positives) best candidates of each query; drop positives; pos = the
    least score of the query's positives; drop s + absolute_margin > pos; drop s > pos - |pos|
    relative_margin; drop s > max_score; drop s < min_score; sort again, skip the first range_min survivors,
    end at range_max; take num_negatives of them.

    A query without positives has pos = infinity, so that margins drop nothing. Remove duplicated documents
    first: the twin of a positive is mined as a negative.

    Args:
        sim: scores of every document for every query, or (query embeddings, document embeddings) in unit
            length, whose scores are cosines. Documents with score minus infinity (padding) are never mined.
        positive_mask: true where the document is a known positive of the query.
        num_negatives: slots a query, at least 1.
        range_min: survivors to skip from the top.
        range_max: survivors to end at; None: range_min + max_positives + num_negatives, with ten times
            num_negatives where a margin or max_score is given.
        absolute_margin: least distance below pos, in units of the score (TopK-MarginPos).
        relative_margin: least distance below pos as a share of |pos| (TopK-PercPos); safe where pos < 0.
        max_score: highest score that a negative may have (TopK-Abs).
        min_score: lowest score that a negative may have.
        strategy: "top": the best survivors in order; "random": survivors without replacement, uniformly.
        key: random key for "random".
        max_positives: positives of the query that has most; must be given under ``jit``, where the mask is
            not known.
        rescore: ``rescore(query_ids [queries], document_ids [queries, candidates]) -> scores`` replaces the
            scores of candidates and positives before pos is taken, as a cross-encoder would.

    Returns:
        A `MinedNegatives`. Scores are float32 at least.

    Raises:
        ValueError: shapes that do not fit, an empty batch, a range or count out of bounds, an unknown
            strategy, "random" without key, an unknown max_positives under ``jit``, embeddings not of length 1
            (outside of ``jit``).
        TypeError: a mask that is not boolean.

    Source:
        arXiv:2407.15831; sentence-transformers 6.2.0, ``mine_hard_negatives``.

    Example:
        >>> scores, positive = jnp.array([[0.9, 0.5, 0.7]]), jnp.array([[True, False, False]])
        >>> mine_negatives(scores, positive, num_negatives=1).index.tolist()
        [[2]]
    """
    one_of("strategy", strategy, STRATEGIES)
    if strategy == "random" and key is None:
        raise ValueError('key: expected a random key for strategy "random", got None')
    if num_negatives < 1:
        raise ValueError(f"num_negatives: expected at least 1, got {num_negatives}")
    if range_min < 0:
        raise ValueError(f"range_min: expected at least 0, got {range_min}")
    if range_max is not None and range_max <= range_min:
        raise ValueError(f"range_max: expected more than range_min = {range_min}, got {range_max}")
    scores = _scores(sim)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(
            f"sim: expected shape [queries, documents] with at least one of each, got {scores.shape}"
        )
    is_known_positive = boolean_mask("positive_mask", positive_mask, scores.shape)
    if max_positives is None:
        if isinstance(positive_mask, Tracer):
            raise ValueError(
                "max_positives: expected a number under jit, where shapes depend on it, got None"
            )
        max_positives = int(np.asarray(positive_mask).sum(axis=1).max())
    if range_max is None:
        filtered = absolute_margin is not None or relative_margin is not None or max_score is not None
        range_max = range_min + (10 if filtered else 1) * num_negatives + max_positives
    documents = scores.shape[1]

    candidate_score, candidate = jax.lax.top_k(scores, min(range_max + max_positives, documents))
    is_positive = jnp.take_along_axis(is_known_positive, candidate, axis=1)
    findable = jnp.isfinite(candidate_score)
    if rescore is None:
        positive_score = jnp.min(scores, axis=1, where=is_known_positive, initial=jnp.inf)
    else:
        query_ids = jnp.arange(scores.shape[0])
        candidate_score = at_least_float32(rescore(query_ids, candidate))
        listed, positive = jax.lax.top_k(
            is_known_positive.astype(jnp.int32), min(max(max_positives, 1), documents)
        )
        positive_score = jnp.min(
            at_least_float32(rescore(query_ids, positive)), axis=1, where=listed > 0, initial=jnp.inf
        )
    kept = findable & ~is_positive & jnp.isfinite(candidate_score)
    pos = positive_score[:, None]
    if absolute_margin is not None:
        kept &= ~(candidate_score + absolute_margin > pos)
    if relative_margin is not None:
        bar = jnp.where(pos == jnp.inf, jnp.inf, pos - jnp.abs(pos) * relative_margin)
        kept &= ~(candidate_score > bar)
    if max_score is not None:
        kept &= ~(candidate_score > max_score)
    if min_score is not None:
        kept &= ~(candidate_score < min_score)

    # Slots are added where the candidates are fewer than the slots asked for.
    missing = max(0, range_min + num_negatives - candidate.shape[1])
    candidate = jnp.pad(candidate, ((0, 0), (0, missing)))
    survivor_score = jnp.pad(
        jnp.where(kept, candidate_score, -jnp.inf), ((0, 0), (0, missing)), constant_values=-jnp.inf
    )
    survivor_score, order = jax.lax.top_k(survivor_score, survivor_score.shape[1])
    survivor = jnp.take_along_axis(candidate, order, axis=1)
    place = jnp.arange(survivor.shape[1])
    valid = jnp.isfinite(survivor_score) & (place >= range_min) & (place < range_max)
    if key is None or strategy == "top":
        chosen = jnp.broadcast_to(range_min + jnp.arange(num_negatives), (survivor.shape[0], num_negatives))
    else:
        _, chosen = jax.lax.top_k(jnp.where(valid, jax.random.uniform(key, valid.shape), -1.0), num_negatives)
    valid = jnp.take_along_axis(valid, chosen, axis=1)
    index = jnp.where(valid, jnp.take_along_axis(survivor, chosen, axis=1), -1)
    score = jnp.where(valid, jnp.take_along_axis(survivor_score, chosen, axis=1), -jnp.inf)
    return MinedNegatives(index, score, valid)


def _scores(sim: Array | tuple[Array, Array]) -> Float[Array, "queries documents"]:
    if not isinstance(sim, tuple):
        return at_least_float32(sim)
    if len(sim) != 2:
        raise ValueError(
            f"sim: expected scores or (query embeddings, document embeddings), got {len(sim)} arrays"
        )
    q, d = (jnp.asarray(rows) for rows in sim)
    if q.ndim != 2 or d.ndim != 2 or q.shape[1] != d.shape[1]:
        raise ValueError(
            f"sim: expected embeddings of shapes [queries, dim] and [documents, dim], "
            f"got {q.shape} and {d.shape}"
        )
    unit_rows("sim[0]", q)
    unit_rows("sim[1]", d)
    return jnp.matmul(at_least_float32(q), at_least_float32(d).T, precision="highest")


def hybrid(
    a: Int[Array, "queries a_length"],
    b: Int[Array, "queries b_length"],
    mode: str = "union",
    k: int | None = None,
    *,
    constant: float = 60.0,
) -> Int[Array, "queries k"]:
    """One ranked list of documents from two.

    "union": a's first, b's first, a's second, b's second, ... without repeats;
    "rrf": by falling sum over the lists of 1 / (constant + rank), rank from 1; ties in the order of "union"

    Args:
        a: ranked document numbers, the best first, no repeats; -1 for a missing slot.
        b: the same from another retriever.
        mode: "union" or "rrf".
        k: length of the result; None: both lengths together.
        constant: of reciprocal rank fusion, at least 0.

    Returns:
        Ranked document numbers, -1 where there are fewer than k.

    Raises:
        ValueError: an unknown mode, lists for different numbers of queries, or a k below 1.

    Source:
        Cormack, Clarke and Buettcher, SIGIR 2009, for "rrf".

    Example:
        >>> hybrid(jnp.array([[4, 7]]), jnp.array([[7, 5]]), k=3).tolist()
        [[4, 7, 5]]
    """
    one_of("mode", mode, FUSIONS)
    a, b = jnp.asarray(a), jnp.asarray(b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[0]:
        raise ValueError(f"b: expected a list for each query of a, {a.shape}, got {b.shape}")
    if constant < 0:
        raise ValueError(f"constant: expected at least 0, got {constant}")
    total = a.shape[1] + b.shape[1]
    k = total if k is None else k
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    rank = np.concatenate([np.arange(a.shape[1]), np.arange(b.shape[1])])
    turn = np.argsort(rank, kind="stable")
    ids, rank = jnp.concatenate([a, b], axis=1)[:, turn], rank[turn]
    equal = ids[:, :, None] == ids[:, None, :]
    first = (ids >= 0) & ~jnp.any(equal & jnp.tril(jnp.ones((total, total), bool), -1), axis=-1)
    if mode == "union":
        value = jnp.broadcast_to(-jnp.arange(total, dtype=jnp.float32), ids.shape)
    else:
        value = jnp.sum(equal * jnp.asarray(1.0 / (constant + 1.0 + rank), jnp.float32), axis=-1)
    value, order = jax.lax.top_k(jnp.where(first, value, -jnp.inf), min(k, total))
    merged = jnp.where(jnp.isfinite(value), jnp.take_along_axis(ids, order, axis=1), -1)
    return jnp.pad(merged, ((0, 0), (0, k - merged.shape[1])), constant_values=-1)


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
