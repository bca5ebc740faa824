"""Reductions over the valid slots of a ragged set, accumulated in float32 at least."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def at_least_float32(values: Array) -> Array:
    """The values in float32, or as they are where they have more bits."""
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def masked_mean(
    values: Float[Array, "*batch slots"], mask: Bool[Array, "*batch slots"]
) -> Float[Array, "*batch"]:
    """Mean over the valid slots of the last axis; 0 where no slot is valid."""
    total = jnp.sum(values, axis=-1, where=mask)
    return total / jnp.maximum(jnp.sum(mask, axis=-1), 1).astype(total.dtype)


def masked_max(
    values: Float[Array, "*batch slots"], mask: Bool[Array, "*batch slots"]
) -> Float[Array, "*batch"]:
    """Maximum over the valid slots of the last axis; minus infinity where no slot is valid."""
    return jnp.max(values, axis=-1, where=mask, initial=-jnp.inf)


def one_zero(scores: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The scores with 0 in the place of -0, which ``jax.lax.top_k`` would rank below it."""
    return jnp.where(scores == 0.0, 0.0, scores)
