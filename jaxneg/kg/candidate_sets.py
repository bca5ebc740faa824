"""Sets of candidates, one for each row, and draws from them in constant time.

Every sampler of this room that knows its candidates before training, LEMON and SANS, is such sets.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpy.typing import ArrayLike

from jaxneg.kg.arguments import at_least, share


class CandidateSets(NamedTuple):
    """Sets of entities behind each other.

    Attributes:
        members: entities of all sets.
        start: set i is members[start[i]] to members[start[i + 1]].
    """

    members: Int[Array, "members"]
    start: Int[Array, "sets_and_one"]


def candidate_sets(sets: Sequence[ArrayLike]) -> CandidateSets:
    """Puts sets of entities behind each other. Not under ``jit``.

    Args:
        sets: the entities of each set, which may be none.

    Returns:
        The sets.

    Example:
        >>> candidate_sets([[3, 4], [], [5]]).start.tolist()
        [0, 2, 2, 3]
    """
    sizes = [len(np.asarray(each)) for each in sets]
    members = np.concatenate([np.asarray(each, np.int32) for each in sets] or [np.zeros(0, np.int32)])
    return CandidateSets(jnp.asarray(members), jnp.asarray(np.append(0, np.cumsum(sizes)).astype(np.int32)))


def sample_candidates(
    key: PRNGKeyArray,
    sets: CandidateSets,
    rows: Int[Array, "b"],
    n: int,
    num_entities: int,
    mix: float | Float[Array, ""] = 0.0,
) -> Int[Array, "b n"]:
    """Independent uniform draws from the set of each row, or, with probability ``mix``, from all entities.

    Args:
        key: random key.
        sets: the sets.
        rows: which set each draw is from; -1, as an empty set, stands for all entities.
        n: draws for each row.
        num_entities: number of all entities.
        mix: share of draws from all entities, in [0, 1].

    Returns:
        Entities.

    Raises:
        ValueError: n or num_entities below 1, mix outside of [0, 1].

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> sets = candidate_sets([[7], [8]])
        >>> sample_candidates(jax.random.key(0), sets, jnp.array([1, 0]), 2, num_entities=9).tolist()
        [[8, 8], [7, 7]]
    """
    at_least("n", n, 1)
    at_least("num_entities", num_entities, 1)
    share("mix", mix)
    of_entity, of_mix = jax.random.split(key)
    # Thirty-two bits modulo a size: a float's 24 would make some of a million entities twice as likely.
    bits = jax.random.bits(of_entity, (*rows.shape, n))
    place = jnp.maximum(rows, 0)
    first, size = sets.start[place], sets.start[place + 1] - sets.start[place]
    size = jnp.where(rows < 0, 0, size)[..., None]
    everywhere = (bits % jnp.uint32(num_entities)).astype(jnp.int32)
    if sets.members.shape[0] == 0:
        return everywhere
    within = (bits % jnp.maximum(size, 1).astype(jnp.uint32)).astype(jnp.int32)
    drawn = sets.members[jnp.where(size > 0, first[..., None] + within, 0)]
    uniform = size == 0
    if isinstance(mix, jax.Array) or mix > 0:
        uniform = uniform | (jax.random.uniform(of_mix, bits.shape) < mix)
    return jnp.where(uniform, everywhere, drawn)
