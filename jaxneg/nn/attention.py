"""Attention of several heads (Vaswani et al. 2017, arXiv:1706.03762, Section 3.2), without a mask."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attend(
    query: Float[Array, "batch heads tokens size"],
    key: Float[Array, "batch heads others size"],
    value: Float[Array, "batch heads others size"],
) -> Float[Array, "batch tokens width"]:
    """``softmax(q k^T / sqrt(size)) v`` of each head, its softmax in float32; then the heads side by side."""
    scores = jnp.einsum("bhtd,bhsd->bhts", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bhts,bhsd->bhtd", weights, value).swapaxes(1, 2)
    return mixed.reshape(*mixed.shape[:2], -1)
