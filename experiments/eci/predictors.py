"""Everything that might foretell how well a source trains, computed on the frozen encoder."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from experiments.eci.fine_tuning import Arrays
from jaxneg.retrieval import eci, eci_sem, gradient_norm_proxy, infonce_loss, mean_margin

PREDICTORS = (
    "ECI",
    "ECI, product of means",
    "ECI, mean-margin safety",
    "ECI, fraction safety",
    "ECI, threshold safety",
    "ECI_sem",
    "efficiency",
    "safety",
    "mean-margin safety",
    "safe rate",
    "hardness",
    "capacity",
    "mean margin",
    "InfoNCE loss",
    "gradient proxy",
)
"""The keys of `predictions`."""


@partial(jax.jit, static_argnames="triples")
def predictions(
    arrays: Arrays,
    overlap: Float[Array, "queries documents"],
    index: Int[Array, "seeds rows negatives"],
    valid: Bool[Array, "seeds rows negatives"],
    *,
    triples: int,
    temperature: float,
) -> dict[str, Float[Array, "seeds"]]:
    """Every predictor of a source, one number a seed.

    Args:
        arrays: the frozen collection.
        overlap: lexical overlap of queries and documents.
        index: documents of the explicit negatives.
        valid: true where the slot holds one.
        triples: sample of ECI_sem.
        temperature: of the InfoNCE loss and the gradient proxy.

    Returns:
        Value by predictor.
    """
    query, positive = arrays.queries[arrays.row_query], arrays.docs[arrays.row_positive]
    sim_pos = jnp.sum(query * positive, axis=-1)

    def of_seed(seed: Int[Array, ""], index: Array, valid: Array) -> dict[str, Float[Array, ""]]:
        sim_neg = jnp.einsum("rd,rkd->rk", query, arrays.docs[index])
        sets = sim_pos, sim_neg, valid
        plain = eci(*sets)
        by_mean = eci(*sets, safety="mean")
        key = jax.random.fold_in(jax.random.key(0), seed)
        slot = jax.random.choice(key, valid.size, (triples,), p=valid.ravel() / jnp.sum(valid))
        row, document = slot // valid.shape[1], index.ravel()[slot]
        semantic = eci_sem(
            query[row], positive[row], arrays.docs[document], overlap[arrays.row_query[row], document]
        )
        return {
            "ECI": plain.score,
            "ECI, product of means": eci(*sets, aggregate="product_of_means").score,
            "ECI, mean-margin safety": by_mean.score,
            "ECI, fraction safety": eci(*sets, safety="fraction").score,
            "ECI, threshold safety": eci(*sets, safety="threshold").score,
            "ECI_sem": semantic.score,
            "efficiency": jnp.mean(plain.efficiency),
            "safety": jnp.mean(plain.safety),
            "mean-margin safety": jnp.mean(by_mean.safety),
            "hardness": jnp.mean(plain.hardness),
            "capacity": jnp.mean(plain.capacity),
            "mean margin": jnp.mean(mean_margin(*sets)),
            "safe rate": 1.0 - plain.unsafe_rate,
            "InfoNCE loss": jnp.mean(infonce_loss(*sets, temperature=temperature)),
            "gradient proxy": jnp.mean(gradient_norm_proxy(*sets, temperature=temperature)),
        }

    return jax.lax.map(lambda each: of_seed(*each), (jnp.arange(len(index)), index, valid))
