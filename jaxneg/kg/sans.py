"""SANS: negatives from the graph neighbourhood of the entity that stays.

Paper: Ahrabian et al., "Structure aware negative sampling in knowledge graphs", arXiv:2009.11355; official
code ``kahrabian/SANS``. Its matrix for k hops is A^(k-1) A + A^(k-1): walks of exactly k or k - 1 steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpy.typing import ArrayLike
from scipy import sparse

from jaxneg.kg.arguments import at_least, concrete, ids_in_range, one_of, triple_rows
from jaxneg.kg.candidate_sets import CandidateSets, candidate_sets, sample_candidates

MODES = ("walk", "reach")


def khop_neighbourhoods(triples: ArrayLike, num_entities: int, k: int, mode: str = "walk") -> CandidateSets:
    """The entities within k hops of each entity, whatever relation and direction. Not under ``jit``.

    Args:
        triples: training triples, ``[triples, 3]``.
        num_entities: number of entities.
        k: hops, at least 1.
        mode: "walk": ends of walks of exactly k or k - 1 steps, as the official code has it; "reach":
            entities at a distance of at most k, the entity itself included.

    Returns:
        A set for each entity.

    Raises:
        ValueError: an unknown mode, k below 1, an id out of range.

    Source:
        arXiv:2009.11355, Section 3; ``kahrabian/SANS``.

    Example:
        >>> khop_neighbourhoods([[0, 0, 1], [1, 0, 2]], 3, k=1).start.tolist()
        [0, 2, 5, 7]
    """
    one_of("mode", mode, MODES)
    at_least("k", k, 1)
    adjacency = _adjacency(triples, num_entities)
    identity = sparse.identity(num_entities, format="csr").astype(bool)
    if mode == "reach":
        reached = identity
        for _ in range(k):
            reached = (reached @ adjacency + reached).astype(bool)
    else:
        shorter = identity
        for _ in range(k - 1):
            shorter = (shorter @ adjacency).astype(bool)
        reached = (shorter @ adjacency + shorter).astype(bool)
    reached = sparse.csr_matrix(reached)
    reached.sort_indices()
    return CandidateSets(
        jnp.asarray(reached.indices.astype(np.int32)), jnp.asarray(reached.indptr.astype(np.int32))
    )


def random_walk_neighbourhoods(
    key: PRNGKeyArray, triples: ArrayLike, num_entities: int, k: int, walks: int
) -> CandidateSets:
    """RW-SANS: the distinct ends of random walks of k steps from each entity. Not under ``jit``.

    An entity without neighbours gets random entities.

    Args:
        key: random key.
        triples: training triples, ``[triples, 3]``.
        num_entities: number of entities.
        k: steps of a walk.
        walks: from each entity.

    Returns:
        A set for each entity, of at most ``walks`` entities.

    Raises:
        ValueError: k or walks below 1, an id out of range.

    Source:
        arXiv:2009.11355, Section 3.

    Example:
        >>> import jax
        >>> random_walk_neighbourhoods(jax.random.key(0), [[0, 0, 1]], 2, k=1, walks=3).members.tolist()
        [1, 0]
    """
    at_least("k", k, 1)
    at_least("walks", walks, 1)
    adjacency = _adjacency(triples, num_entities)
    start, neighbours = adjacency.indptr, np.append(adjacency.indices, 0)
    degree = np.diff(start)
    bits = np.asarray(jax.random.bits(key, (k + 1, num_entities, walks)))
    ends = np.broadcast_to(np.arange(num_entities)[:, None], (num_entities, walks))
    for step in range(k):
        place = start[ends] + bits[step] % np.maximum(degree[ends], 1)
        ends = np.where(degree[ends] > 0, neighbours[np.minimum(place, len(neighbours) - 1)], ends)
    ends = np.where(degree[:, None] > 0, ends, bits[k] % num_entities)
    return candidate_sets([np.unique(row) for row in ends])


def sample_sans(
    key: PRNGKeyArray,
    neighbourhoods: CandidateSets,
    kept: Int[Array, "b"],
    n: int,
    num_entities: int,
    mix: float | Float[Array, ""] = 0.0,
) -> Int[Array, "b n"]:
    """Draws from the neighbourhood of the entity that stays; over all entities where it has none.

    Args:
        key: random key.
        neighbourhoods: of `khop_neighbourhoods` or `random_walk_neighbourhoods`.
        kept: the entities that stay: heads where tails are replaced.
        n: draws for each.
        num_entities: number of entities.
        mix: share of draws from all entities.

    Returns:
        Entities.

    Raises:
        ValueError: n or num_entities below 1, mix outside of [0, 1].

    Source:
        arXiv:2009.11355, Section 3.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> sets = khop_neighbourhoods([[0, 0, 1], [1, 0, 1]], 2, k=1)
        >>> bool((sample_sans(jax.random.key(0), sets, jnp.array([0]), 9, num_entities=2) < 2).all())
        True
    """
    return sample_candidates(key, neighbourhoods, kept, n, num_entities, mix)


def _adjacency(triples: ArrayLike, num_entities: int) -> sparse.csr_matrix:
    rows = concrete("triples", triples)
    triple_rows("triples", rows)
    ids_in_range("triples", rows, num_entities, None)
    ones = np.ones(len(rows), bool)
    edges = sparse.coo_matrix((ones, (rows[:, 0], rows[:, 2])), shape=(num_entities, num_entities))
    adjacency = ((edges + edges.T) > 0).tocsr()
    adjacency.sort_indices()
    return adjacency
