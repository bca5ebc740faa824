"""MACL: NT-Xent whose one temperature follows how well the positives of the batch agree.

Z. Huang et al. 2023, "Model-aware contrastive learning: towards escaping the dilemmas", arXiv:2207.07874;
in the form of lightly's ``MACLLoss``.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxneg.contrastive.arguments import alike, check_positive
from jaxneg.contrastive.cosine import cosine_similarity
from jaxneg.contrastive.nt_xent import nt_xent_loss
from jaxneg.contrastive.shards import AxisName, averaged, explicit_axis, on_shards

EPSILON = 1e-8


def macl_loss(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    temperature: float = 0.1,
    *,
    alpha: float = 0.5,
    a_0: float = 0.0,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> Float[Array, "2 batch"]:
    """NT-Xent at a temperature that rises with the alignment, each anchor weighted up as it is learnt.

    ``l_i = sg(1 / (1 - p_i)) (-log p_i)``, p_i the softmax of the positive at the temperature
    ``t (1 + alpha (A - A_0))``, A the mean similarity of the positives, without gradient

    Args:
        z1: first views, not normalised.
        z2: second views of the same images.
        temperature: t, positive.
        alpha: how much the temperature follows, from 0 to 1.
        a_0: alignment at which it is t, from 0 to 1.
        axis_name: mesh axis over which the batch lies, inside `jax.shard_map`.
        block_size: anchors that are compared at a time, as in `nt_xent_loss`.

    Returns:
        One loss for each view as anchor: those of z1, then those of z2.

    Raises:
        ValueError: shapes that differ, a batch without negatives, numbers out of range.
        TypeError: arrays that are not floating.

    Source:
        arXiv:2207.07874.

    Example:
        >>> macl_loss(jnp.eye(4), jnp.eye(4), 0.5).shape
        (2, 4)
    """
    z1, z2 = alike("batch dim", z1=z1, z2=z2)
    check_positive(temperature=temperature)
    for name, value in (("alpha", alpha), ("a_0", a_0)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected 0 to 1, got {value}")
    if axis_name is None and explicit_axis(z1):
        own = partial(macl_loss, temperature=temperature, alpha=alpha, a_0=a_0, block_size=block_size)
        return on_shards(own, (z1, z2), out_specs=P(None, "batch"))
    alignment = averaged(jnp.mean(cosine_similarity(z1, z2)), axis_name)
    aware = temperature * (1 + alpha * (jax.lax.stop_gradient(alignment) - a_0))
    losses = nt_xent_loss(z1, z2, aware, axis_name=axis_name, block_size=block_size)
    return losses * jax.lax.stop_gradient(1 / (1 - jnp.exp(-losses) + EPSILON))
