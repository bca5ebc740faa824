"""Several retrievers' lists made one: interleaved, by reciprocal rank, or by weighted scores.

Paper: Cormack, Clarke and Buettcher, "Reciprocal rank fusion outperforms Condorcet and individual rank
learning methods", SIGIR 2009; weighted sums of min-max scores: Fox and Shaw, "Combination of multiple
searches", TREC-2, 1994 (CombSUM).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxneg.retrieval.arguments import one_of
from jaxneg.retrieval.dense_search import Retrieved
from jaxneg.retrieval.masked import at_least_float32

FUSIONS = ("union", "rrf")


def fuse_rankings(
    rankings: Sequence[Int[Array, "queries length"]],
    mode: str = "rrf",
    k: int | None = None,
    *,
    weights: Sequence[float] | None = None,
    constant: float = 60.0,
) -> Retrieved:
    """One ranked list from several, by the documents' places in them.

    "rrf": by falling sum over the lists of weight / (constant + rank), rank from 1; ties in the order of
    "union";  "union": the first of each list, then the second of each, and so on, without repeats

    Args:
        rankings: ranked document numbers of each retriever, the best first, no repeats within a list; -1 for
            a missing slot. Lengths may differ.
        mode: "rrf" or "union".
        k: length of the result; None: all lengths together.
        weights: of the retrievers in "rrf"; None: all 1.
        constant: of reciprocal rank fusion, at least 0.

    Returns:
        A `Retrieved`: the score is the sum, or minus the place for "union".

    Raises:
        ValueError: no list, an unknown mode, lists for different numbers of queries, a k below 1, a negative
            constant, or weights that are not one for each list.

    Source:
        Cormack, Clarke and Buettcher, SIGIR 2009.

    Example:
        >>> bm25, dense = jnp.array([[4, 7]]), jnp.array([[7, 5]])
        >>> fuse_rankings([bm25, dense]).index.tolist()
        [[7, 4, 5, -1]]
    """
    one_of("mode", mode, FUSIONS)
    lists = _checked_lists(rankings, k)
    if constant < 0:
        raise ValueError(f"constant: expected at least 0, got {constant}")
    weights = _checked_weights(weights, len(lists))
    turn = _turn(lists)
    ids = jnp.concatenate(lists, axis=1)[:, turn]
    if mode == "union":
        value = -np.arange(len(turn))
    else:
        rank = np.concatenate([np.arange(1, ids.shape[1] + 1) for ids in lists])[turn]
        value = np.repeat(weights, [ids.shape[1] for ids in lists])[turn] / (constant + rank)
    return _merged(ids, jnp.broadcast_to(jnp.asarray(value, jnp.float32), ids.shape), k, add=mode == "rrf")


def fuse_scores(
    rankings: Sequence[Int[Array, "queries length"]],
    scores: Sequence[Float[Array, "queries length"]],
    k: int | None = None,
    *,
    weights: Sequence[float] | None = None,
    normalise: str = "minmax",
) -> Retrieved:
    """One ranked list from several, by the weighted sum of the documents' scores.

    score = sum over the lists that hold the document of weight * (s - min s) / (max s - min s), min and max
    over the query's list; a list whose scores are all equal gives 1

    Args:
        rankings: document numbers of each retriever, no repeats within a list; -1 for a missing slot.
        scores: their scores.
        k: length of the result; None: all lengths together.
        weights: of the retrievers; None: all 1.
        normalise: "minmax", or "none" to add the scores as they are; a document that a list does not hold
            gets 0 from it.

    Returns:
        A `Retrieved`; equal sums in the order of the lists.

    Raises:
        ValueError: no list, lists for different numbers of queries, scores of other shapes, a k below 1, an
            unknown normalise, or weights that are not one for each list.

    Source:
        Fox and Shaw 1994 (CombSUM).

    Example:
        >>> lists, scores = [jnp.array([[4, 7]]), jnp.array([[7, 5]])], [jnp.array([[9.0, 3.0]])] * 2
        >>> fuse_scores(lists, scores, 2, weights=[0.3, 1.0]).index.tolist()
        [[7, 4]]
    """
    one_of("normalise", normalise, ("minmax", "none"))
    lists = _checked_lists(rankings, k)
    if len(scores) != len(lists):
        raise ValueError(f"scores: expected one array for each of {len(lists)} lists, got {len(scores)}")
    weights = _checked_weights(weights, len(lists))
    columns = []
    for number, (ids, values) in enumerate(zip(lists, scores, strict=True)):
        values = at_least_float32(values)
        if values.shape != ids.shape:
            raise ValueError(
                f"scores[{number}]: expected the shape of its list, {ids.shape}, got {values.shape}"
            )
        found = (ids >= 0) & jnp.isfinite(values)
        if normalise == "minmax":
            low = jnp.min(values, axis=1, where=found, initial=jnp.inf, keepdims=True)
            high = jnp.max(values, axis=1, where=found, initial=-jnp.inf, keepdims=True)
            spread = jnp.where(found & (high > low), high - low, 1.0)
            values = jnp.where(high > low, (values - low) / spread, 1.0)
        columns.append(weights[number] * jnp.where(found, values, 0.0))
        lists[number] = jnp.where(found, ids, -1)
    turn = _turn(lists)
    ids, value = (jnp.concatenate(parts, axis=1)[:, turn] for parts in (lists, columns))
    return _merged(ids, value, k, add=True)


def hybrid(
    a: Int[Array, "queries a_length"],
    b: Int[Array, "queries b_length"],
    mode: str = "union",
    k: int | None = None,
    *,
    constant: float = 60.0,
) -> Int[Array, "queries k"]:
    """One ranked list of documents from two; `fuse_rankings` takes more, and weights.

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
    a, b = jnp.asarray(a), jnp.asarray(b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[0]:
        raise ValueError(f"b: expected a list for each query of a, {a.shape}, got {b.shape}")
    return fuse_rankings([a, b], mode, k, constant=constant).index


def _checked_lists(rankings: Sequence[Array], k: int | None) -> list[Array]:
    lists = [jnp.asarray(ids) for ids in rankings]
    if not lists:
        raise ValueError("rankings: expected at least one list, got none")
    for number, ids in enumerate(lists):
        if ids.ndim != 2 or ids.shape[0] != lists[0].shape[0]:
            raise ValueError(
                f"rankings[{number}]: expected a list for each of {lists[0].shape[0]} queries, "
                f"got {ids.shape}"
            )
    if k is not None and k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    return lists


def _checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1.0] * count
    if len(weights) != count:
        raise ValueError(f"weights: expected one for each of {count} lists, got {len(weights)}")
    return [float(weight) for weight in weights]


def _turn(lists: list[Array]) -> np.ndarray:
    """The order in which the columns of the lists take turns: all first ones, all second ones, and so on."""
    return np.argsort(np.concatenate([np.arange(ids.shape[1]) for ids in lists]), kind="stable")


def _merged(ids: Array, value: Array, k: int | None, *, add: bool) -> Retrieved:
    """Documents by falling value; a document's values are added up, or its first is taken."""
    total = ids.shape[1]
    k = total if k is None else k
    equal = ids[:, :, None] == ids[:, None, :]
    first = (ids >= 0) & ~jnp.any(equal & jnp.tril(jnp.ones((total, total), bool), -1), axis=-1)
    if add:
        value = jnp.sum(jnp.where(equal, value[:, None, :], 0.0), axis=-1)
    score, place = jax.lax.top_k(jnp.where(first, value, -jnp.inf), min(k, total))
    missing = ((0, 0), (0, k - score.shape[1]))
    index = jnp.where(jnp.isfinite(score), jnp.take_along_axis(ids, place, axis=1), -1)
    return Retrieved(
        jnp.pad(index, missing, constant_values=-1), jnp.pad(score, missing, constant_values=-jnp.inf)
    )
