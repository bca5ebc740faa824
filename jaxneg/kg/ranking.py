"""Filtered ranking evaluation of link prediction, exact about ties.

The protocol of Bordes et al., NeurIPS 2013 (filtered), with the three ranks of ties of Berrendorf et al.,
"On the ambiguity of rank-based evaluation of entity alignment or link prediction methods", arXiv:2002.06914.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from jaxneg.kg.arguments import SIDES, at_least, ids_in_range, one_of, triple_rows
from jaxneg.kg.known_triples import KnownTriples, known_range, known_triples
from jaxneg.kg.scores import MODELS, Params, make_query, score_all

RANK_TYPES = ("optimistic", "pessimistic", "realistic")


class FilteredRanks(NamedTuple):
    """Ranks of the true heads and tails, 1 is best.

    Attributes:
        optimistic: the true entity before those with an equal score; columns: head, tail.
        pessimistic: behind them.
    """

    optimistic: Int[Array, "triples 2"]
    pessimistic: Int[Array, "triples 2"]

    @property
    def realistic(self) -> Float[Array, "triples 2"]:
        """The mean of both: the expected rank if equal scores are shuffled."""
        return (self.optimistic + self.pessimistic) / 2


def filtered_ranks(
    params: Params,
    test: Int[Array, "triples 3"],
    known: KnownTriples | ArrayLike,
    chunk: int = 32,
    *,
    model: str | Callable[[Params, Array, Array, str], Array],
    num_entities: int | None = None,
    longest: int | None = None,
) -> FilteredRanks:
    """Ranks of the true head and tail of each triple among all entities that make no other known triple.

    rank = 1 + #{strictly higher}, plus the number of equal ones for the pessimistic rank. A score that is
    not a number counts as higher than the true one, and a true score that is not a number ranks last.

    All comparisons are within one array of scores ``[chunk, entities]``, so that equal embeddings tie, bit
    for
    bit.

    Args:
        params: tables as of `kge_init`.
        test: triples to rank; an entity that training has not seen is ranked like any other.
        known: `known_triples` of training, validation and test, or these triples.
        chunk: triples that are scored at once.
        model: one of `MODELS`, or ``(params, entity ids, relation ids, side) -> scores [chunk, entities]``
            with the entity that is known and the side of the one that is not.
        num_entities: entities are the table's rows below this; None: as many as ``known`` has, or all rows.
        longest: known triples of the most frequent pair of entity and relation, which is found in
            ``known`` by default.

    Returns:
        A `FilteredRanks`.

    Raises:
        ValueError: an unknown model, chunk below 1, ids out of range (outside of ``jit``).

    Source:
        Bordes et al. 2013, Section 4.2; arXiv:2002.06914, Section 3.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"entity": jnp.array([[0.0], [1.0], [5.0]]), "relation": jnp.ones((1, 1)), "gamma": 6.0}
        >>> ranks = filtered_ranks(params, jnp.array([[0, 0, 2]]), [[0, 0, 1], [0, 0, 2]], model="TransE")
        >>> ranks.realistic.tolist()
        [[3.0, 2.0]]
    """
    at_least("chunk", chunk, 1)
    test = triple_rows("test", test)
    rows = params["entity"].shape[0]
    if not isinstance(known, KnownTriples):
        known = known_triples(known, num_entities or rows)
    entities = num_entities or known.num_entities
    if not 1 <= entities <= rows:
        raise ValueError(f"num_entities: expected from 1 to the table's {rows} rows, got {entities}")
    if not isinstance(test, Tracer):
        ids_in_range("test", np.asarray(test), entities, params["relation"].shape[0])
    if isinstance(model, str):
        one_of("model", model, MODELS)
    length = longest or max(known.tails.longest, known.heads.longest)
    if not test.shape[0]:
        return FilteredRanks(jnp.zeros((0, 2), jnp.int32), jnp.zeros((0, 2), jnp.int32))
    chunk = min(chunk, test.shape[0])
    padded = jnp.concatenate([test, jnp.broadcast_to(test[:1], (-test.shape[0] % chunk, 3))])
    ranks = _ranks(params, padded, known, chunk, model, entities, length)
    return FilteredRanks(*(each[: test.shape[0]] for each in ranks))


@jax.jit(static_argnums=(3, 4, 5, 6))
def _ranks(
    params: Params,
    padded: Array,
    known: KnownTriples,
    chunk: int,
    model: str | Callable,
    entities: int,
    length: int,
) -> FilteredRanks:
    def of_side(triples: Array, side: str) -> tuple[Array, Array]:
        entity, true = (triples[:, i] for i in ((0, 2) if side == "tail" else (2, 0)))
        if isinstance(model, str):
            query = make_query(model, params, entity, triples[:, 1], side)
            scores = score_all(model, params, query, params["entity"])[:, :entities]
        else:
            scores = model(params, entity, triples[:, 1], side)[:, :entities]
        own = jnp.take_along_axis(scores, true[:, None], axis=1)
        # Known entities are subtracted: they are few beside all.
        first, end = known_range(known, triples, side)
        place = first[:, None] + jnp.arange(length)
        other = known.of_side(side).other.at[place].get(mode="clip")
        removed = (place < end[:, None]) & (other != true[:, None])
        theirs = jnp.take_along_axis(scores, jnp.where(removed, other, 0), axis=1)

        def counted(compare: Callable[[Array], Array]) -> Array:
            return jnp.sum(compare(scores), axis=1) - jnp.sum(compare(theirs) & removed, axis=1)

        at_least_as_high = counted(lambda s: ~(s < own)) - 1  # without the true one
        not_equal_higher = counted(lambda s: ~(s <= own))
        higher = jnp.minimum(not_equal_higher, at_least_as_high)  # of a NaN the true one is counted in both
        return 1 + higher, 1 + at_least_as_high

    def of_chunk(triples: Array) -> tuple[Array, Array]:
        sides = [of_side(triples, side) for side in SIDES]
        optimistic, pessimistic = (jnp.stack(ranks, axis=1) for ranks in zip(*sides, strict=True))
        return optimistic, pessimistic

    optimistic, pessimistic = jax.lax.map(of_chunk, padded.reshape(-1, chunk, 3))
    return FilteredRanks(*(ranks.reshape(-1, 2) for ranks in (optimistic, pessimistic)))


def ranking_metrics(
    ranks: Float[Array, "*ranks"] | Int[Array, "*ranks"], ks: Sequence[int] = (1, 3, 10)
) -> dict[str, Float[Array, ""]]:
    """Means over all ranks: MRR of 1 / rank, MR of the rank, HITS@k of rank <= k.

    Args:
        ranks: of one of the three types; both sides count alike.
        ks: cut-offs.

    Returns:
        "MRR", "MR" and "HITS@k" for each k.

    Raises:
        ValueError: no ranks, a k below 1.

    Source:
        Bordes et al. 2013, Section 4.2.

    Example:
        >>> import jax.numpy as jnp
        >>> metrics = ranking_metrics(jnp.array([[1.0, 2.0]]), ks=(1,))
        >>> {name: float(value) for name, value in metrics.items()}
        {'MRR': 0.75, 'MR': 1.5, 'HITS@1': 0.5}
    """
    ranks = jnp.asarray(ranks)
    if not ranks.size:
        raise ValueError("ranks: expected at least one, got none")
    for k in ks:
        at_least("k", k, 1)
    ranks = ranks.astype(jnp.promote_types(ranks.dtype, jnp.float32))
    metrics = {"MRR": jnp.mean(1 / ranks), "MR": jnp.mean(ranks)}
    return metrics | {f"HITS@{k}": jnp.mean((ranks <= k).astype(ranks.dtype)) for k in ks}
