"""Bernoulli negative sampling: the side that is more often wrong when replaced is replaced more often.

Paper: Wang et al., "Knowledge graph embedding by translating on hyperplanes", AAAI 2014, Section 3.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from numpy.typing import ArrayLike

from jaxneg.kg.arguments import concrete, ids_in_range, triple_rows
from jaxneg.kg.uniform import sample_uniform


class RelationCardinality(NamedTuple):
    """How many entities a relation connects with one.

    Attributes:
        tph: triples for each distinct head of the relation.
        hpt: triples for each distinct tail.
        head_probability: tph / (tph + hpt); 1/2 for a relation without triples.
    """

    tph: Float[Array, "relations"]
    hpt: Float[Array, "relations"]
    head_probability: Float[Array, "relations"]


def relation_cardinality(triples: ArrayLike, num_relations: int) -> RelationCardinality:
    """Counts what `sample_bernoulli` needs. Duplicates are one triple. Not under ``jit``.

    Args:
        triples: training triples, ``[triples, 3]``.
        num_relations: number of relations.

    Returns:
        Counts and the probability to replace the head.

    Raises:
        ValueError: not ``[triples, 3]``, or a relation out of range.

    Source:
        Wang et al. 2014, Section 3.2.

    Example:
        >>> relation_cardinality([[0, 0, 1], [0, 0, 2], [0, 0, 3]], 1).head_probability.tolist()
        [0.75]
    """
    rows = concrete("triples", triples)
    triple_rows("triples", rows)
    ids_in_range("triples", rows, int(rows[:, [0, 2]].max(initial=0)) + 1, num_relations)
    rows = np.unique(rows, axis=0)
    count = np.bincount(rows[:, 1], minlength=num_relations)
    heads, tails = (
        np.bincount(np.unique(rows[:, [i, 1]], axis=0)[:, 1], minlength=num_relations) for i in (0, 2)
    )
    tph, hpt = (count / np.maximum(distinct, 1) for distinct in (heads, tails))
    probability = np.where(count > 0, tph / np.where(count > 0, tph + hpt, 1), 0.5)
    return RelationCardinality(*(jnp.asarray(x) for x in (tph, hpt, probability)))


def sample_bernoulli(
    key: PRNGKeyArray,
    triples: Int[Array, "b 3"],
    head_probability: Float[Array, "relations"],
    n: int,
    num_entities: int,
) -> tuple[Int[Array, "b n"], Bool[Array, "b n"]]:
    """Uniform draws, each with the side that it replaces.

    Args:
        key: random key.
        triples: positives.
        head_probability: of `relation_cardinality`.
        n: draws for each positive.
        num_entities: number of entities.

    Returns:
        Entities, and true where they replace the head.

    Raises:
        ValueError: n or num_entities below 1.

    Source:
        Wang et al. 2014, Section 3.2.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> triples, always = jnp.array([[0, 0, 1]]), jnp.ones(1)
        >>> sample_bernoulli(jax.random.key(0), triples, always, 2, num_entities=1)[1].tolist()
        [[True, True]]
    """
    of_entity, of_side = jax.random.split(key)
    entities = sample_uniform(of_entity, triples[:, 0], n, num_entities)
    probability = head_probability[triples[:, 1]][:, None]
    return entities, jax.random.uniform(of_side, entities.shape) < probability
