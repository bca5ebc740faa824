"""Which triples are known: membership of candidates, and the filter of false negatives.

A triple is looked up in two steps, first its relation among the triples of its known entity, then its other
entity among those of the relation, so that no key of |E| |R| |E| is ever formed: it would not fit 32 bits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray
from numpy.typing import ArrayLike

from jaxneg.kg.arguments import SIDES, at_least, concrete, ids_in_range, one_of, triple_rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SortedTriples:
    """Distinct triples, sorted by one of their entities, then by relation, then by the other entity.

    Attributes:
        start: triples of entity e are start[e] to start[e + 1].
        relation: of each triple; one more row at the end, of none.
        other: the other entity of each triple; likewise.
        steps: of a binary search in the longest stretch of one entity; static.
        longest: triples of the most frequent pair of entity and relation; static.
    """

    start: Int[Array, "entities_and_one"]
    relation: Int[Array, "triples_and_one"]
    other: Int[Array, "triples_and_one"]
    steps: int = field(metadata={"static": True})
    longest: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KnownTriples:
    """A set of triples that can be asked from both sides, made by `known_triples`; a pytree.

    Attributes:
        tails: sorted by head, to look up tails.
        heads: sorted by tail, to look up heads.
        num_entities: static.
    """

    tails: SortedTriples
    heads: SortedTriples
    num_entities: int = field(metadata={"static": True})

    def of_side(self, side: str) -> SortedTriples:
        """Where to look up the entity of ``side``."""
        return self.tails if side == "tail" else self.heads


def known_triples(triples: ArrayLike, num_entities: int, num_relations: int | None = None) -> KnownTriples:
    """Sorts triples for `is_known`. Duplicates are one triple. Not under ``jit``.

    Args:
        triples: ``[triples, 3]``, head, relation, tail.
        num_entities: ids of entities are below.
        num_relations: ids of relations are below; None: any number.

    Returns:
        The set.

    Raises:
        ValueError: not ``[triples, 3]``, or an id out of range; the message names the first such triple.
        TypeError: ids that are no integers, or an array under ``jit``.

    Example:
        >>> known_triples([[0, 0, 1], [0, 0, 1], [0, 0, 2]], num_entities=3).tails.start.tolist()
        [0, 2, 2, 2]
    """
    at_least("num_entities", num_entities, 1)
    rows = concrete("triples", triples)
    rows = rows.reshape(0, 3).astype(np.int32) if rows.size == 0 else rows
    triple_rows("triples", rows[:1])  # shape and type
    ids_in_range("triples", rows, num_entities, num_relations)
    rows = np.unique(rows.astype(np.int64), axis=0)
    return KnownTriples(
        tails=_sorted(rows, num_entities),
        heads=_sorted(rows[:, ::-1], num_entities),
        num_entities=num_entities,
    )


def _sorted(rows: np.ndarray, num_entities: int) -> SortedTriples:
    rows = rows[np.lexsort(rows.T[::-1])]
    degree = np.bincount(rows[:, 0], minlength=num_entities)
    changes = np.flatnonzero(np.any(np.diff(rows[:, :2], axis=0, prepend=-1), axis=1))
    relation, other = (
        jnp.asarray(np.append(rows[:, i], np.iinfo(np.int32).max).astype(np.int32)) for i in (1, 2)
    )
    return SortedTriples(
        start=jnp.asarray(np.append(0, np.cumsum(degree)).astype(np.int32)),
        relation=relation,
        other=other,
        steps=int(degree.max(initial=0)).bit_length(),
        longest=int(np.diff(np.append(changes, len(rows))).max(initial=0)),
    )


def known_range(
    known: KnownTriples, triples: Int[Array, "*b 3"], side: str
) -> tuple[Int[Array, "*b"], Int[Array, "*b"]]:
    """Where the known entities of ``side`` lie that go with the other two of each triple.

    Args:
        known: the set.
        triples: head, relation, tail.
        side: "head" or "tail".

    Returns:
        First and one past the last place in ``known.of_side(side).other``.
    """
    index = known.of_side(side)
    entity, relation = triples[..., 0 if side == "tail" else 2], triples[..., 1]
    low, high = index.start[entity], index.start[entity + 1]
    first = _lower_bound(index.relation, low, high, relation, index.steps)
    return first, _lower_bound(index.relation, first, high, relation + 1, index.steps)


def is_known(
    known: KnownTriples, triples: Int[Array, "*b 3"], cand: Int[Array, "*b n"], side: str
) -> Bool[Array, "*b n"]:
    """Whether a triple with the candidate in place of its entity of ``side`` is known.

    Args:
        known: the set.
        triples: head, relation, tail.
        cand: candidates of each triple.
        side: which entity they replace, "head" or "tail".

    Returns:
        True where the candidate makes a known triple.

    Raises:
        ValueError: an unknown side.

    Example:
        >>> import jax.numpy as jnp
        >>> known = known_triples([[0, 0, 1], [0, 0, 2]], num_entities=3)
        >>> is_known(known, jnp.array([[0, 0, 1]]), jnp.array([[0, 1, 2]]), "tail").tolist()
        [[False, True, True]]
    """
    one_of("side", side, SIDES)
    index = known.of_side(side)
    low, high = (jnp.broadcast_to(x[..., None], cand.shape) for x in known_range(known, triples, side))
    steps = index.longest.bit_length()
    place = _lower_bound(index.other, low, high, cand, steps)
    return (place < high) & (index.other[place] == cand)


def _lower_bound(values: Array, low: Array, high: Array, wanted: Array, steps: int) -> Array:
    """The first place in ``[low, high)`` with a value of at least ``wanted``; ``high`` if there is none."""

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) // 2
        below = (low < high) & (values[middle] < wanted)
        return jnp.where(below, middle + 1, low), jnp.where(below, high, middle)

    if steps == 0:
        return low
    return jax.lax.fori_loop(0, steps, halve, (low, high))[0]


def filter_known(
    key: PRNGKeyArray,
    cand: Int[Array, "b n"],
    triples: Int[Array, "b 3"],
    known_keys: KnownTriples,
    side: str,
    rounds: int = 4,
    *,
    draw: Callable[[PRNGKeyArray], Int[Array, "b n"]] | None = None,
) -> Int[Array, "b n"]:
    """Draws those candidates again that make a known triple.

    Rejected candidates are drawn again in each round, by ``draw``, in the last round uniformly over all
    entities. What is known even then, as all may be in a small graph, stays.

    Args:
        key: random key.
        cand: candidates of each triple.
        triples: head, relation, tail of the positives.
        known_keys: triples that are no negatives: those of training (the others would leak).
        side: which entity is replaced, "head" or "tail".
        rounds: how often to draw again; 0 leaves the candidates alone.
        draw: draws candidates of the same shape; None: uniformly over all entities.

    Returns:
        Candidates.

    Raises:
        ValueError: an unknown side, a negative number of rounds.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> known = known_triples([[0, 0, 1]], num_entities=3)
        >>> cand, triples = jnp.full((1, 50), 1), jnp.array([[0, 0, 1]])
        >>> bool((filter_known(jax.random.key(0), cand, triples, known, "tail", rounds=12) == 1).any())
        False
    """
    at_least("rounds", rounds, 0)

    def uniform(key: PRNGKeyArray) -> Array:
        return (jax.random.bits(key, cand.shape) % jnp.uint32(known_keys.num_entities)).astype(jnp.int32)

    def again(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, cand, bad = state
        fresh = jax.random.fold_in(key, number)
        drawn = uniform(fresh) if draw is None else jax.lax.cond(number == rounds - 1, uniform, draw, fresh)
        cand = jnp.where(bad, drawn, cand)
        return number + 1, cand, bad & is_known(known_keys, triples, cand, side)

    cand = cand.astype(jnp.int32)
    bad = is_known(known_keys, triples, cand, side)
    return jax.lax.while_loop(
        lambda state: (state[0] < rounds) & jnp.any(state[2]), again, (jnp.int32(0), cand, bad)
    )[1]
