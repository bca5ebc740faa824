"""NSCaching: a cache of hard negatives for each pair of entity and relation.

Paper: Zhang et al., "NSCaching: Simple and efficient negative sampling for knowledge graph embedding",
arXiv:1812.06410, Algorithms 2 and 3.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxneg.kg.arguments import at_least


def nscaching_refresh(
    key: PRNGKeyArray,
    cache: Int[Array, "rows n1"],
    score: Callable[[Int[Array, "rows candidates"]], Float[Array, "rows candidates"]],
    n2: int,
    num_entities: int,
) -> Int[Array, "rows n1"]:
    """New caches: of the old entities and random ones, high scores stay with a higher probability.

    The candidates are the cache and n2 uniform draws, each entity once; n1 of them are drawn without
    replacement with probabilities that are proportional to exp(score), by the Gumbel top-k trick. Entities
    are repeated only where there are fewer than n1 distinct candidates.

    Args:
        key: random key.
        cache: the old caches, one a row.
        score: of candidates, one row of them for each cache: the model with the row's relation and entity.
        n2: random candidates of each cache.
        num_entities: number of entities.

    Returns:
        The new caches.

    Raises:
        ValueError: n2 or num_entities below 1.

    Source:
        arXiv:1812.06410, Algorithm 3.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> favour_three = lambda candidates: jnp.where(candidates == 3, 99.0, 0.0)
        >>> nscaching_refresh(jax.random.key(0), jnp.array([[3]]), favour_three, 5, 9).tolist()
        [[3]]
    """
    at_least("n2", n2, 1)
    at_least("num_entities", num_entities, 1)
    of_entity, of_noise = jax.random.split(key)
    bits = jax.random.bits(of_entity, (cache.shape[0], n2))
    fresh = (bits % jnp.uint32(num_entities)).astype(cache.dtype)
    candidates = jnp.sort(jnp.concatenate([cache, fresh], axis=1), axis=1)
    repeated = jnp.concatenate(
        [jnp.zeros((cache.shape[0], 1), bool), candidates[:, 1:] == candidates[:, :-1]], axis=1
    )
    scores = score(candidates).astype(jnp.float32)
    noisy = jnp.where(repeated, -jnp.inf, scores + jax.random.gumbel(of_noise, scores.shape))
    _, kept = jax.lax.top_k(noisy, cache.shape[1])
    return jnp.take_along_axis(candidates, kept, axis=1)


def sample_cache(
    key: PRNGKeyArray, cache: Int[Array, "rows n1"], rows: Int[Array, "b"], n: int
) -> Int[Array, "b n"]:
    """Independent uniform draws from a cache.

    Args:
        key: random key.
        cache: caches, one a row.
        rows: which cache each positive draws from.
        n: draws for each.

    Returns:
        Entities.

    Raises:
        ValueError: n below 1.

    Source:
        arXiv:1812.06410, Algorithm 2.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> sample_cache(jax.random.key(0), jnp.array([[5, 5]]), jnp.array([0]), 3).tolist()
        [[5, 5, 5]]
    """
    at_least("n", n, 1)
    return cache[rows[:, None], jax.random.randint(key, (*rows.shape, n), 0, cache.shape[1])]
