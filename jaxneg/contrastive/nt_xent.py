"""NT-Xent, SimCLR's loss: each view must find the other view of its image among all views of the batch.

T. Chen et al. 2020, "A simple framework for contrastive learning of visual representations",
arXiv:2002.05709, Equation 1. Without the positive in the denominator: C.-H. Yeh et al. 2021, "Decoupled
contrastive learning", arXiv:2110.06848, Equation 6.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxneg.contrastive.arguments import alike, check_negatives, check_positive
from jaxneg.contrastive.cosine import normalised
from jaxneg.contrastive.shards import (
    AxisName,
    explicit_axis,
    gathered,
    on_shards,
    over_blocks,
    positions,
    shards,
)


def nt_xent_loss(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    temperature: ArrayLike = 0.5,
    *,
    decoupled: bool = False,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> Float[Array, "2 batch"]:
    """Cross-entropy of picking the other view of an image among the 2B - 1 other views, by cosine.

    ``l_i = -s_ip / t + log sum_{n != i} exp(s_in / t)``; decoupled: ``n != p`` too

    Args:
        z1: first views, not normalised.
        z2: second views of the same images.
        temperature: t, positive.
        decoupled: whether the positive p is left out of the sum, as in the AMCL paper's Equation 1.1.
        axis_name: mesh axis over which the batch lies, inside `jax.shard_map`: negatives are those of all
            devices.
        block_size: anchors that are compared at a time, a divisor of 2B (of one device's); None: all.

    Returns:
        One loss for each view as anchor: those of z1, then those of z2.

    Raises:
        ValueError: shapes that differ, a batch without negatives, a temperature that is not positive.
        TypeError: arrays that are not floating.

    Source:
        arXiv:2002.05709, Equation 1; decoupled: arXiv:2110.06848, Equation 6.

    Example:
        >>> z = jnp.eye(4)
        >>> [round(float(loss), 3) for loss in nt_xent_loss(z, z, 0.5)[0]]
        [0.594, 0.594, 0.594, 0.594]
    """
    z1, z2 = alike("batch dim", z1=z1, z2=z2)
    check_positive(temperature=temperature)
    if axis_name is None and explicit_axis(z1):
        own = partial(nt_xent_loss, decoupled=decoupled, block_size=block_size)
        return on_shards(own, (z1, z2), temperature, out_specs=P(None, "batch"))
    views = normalised(jnp.stack([z1, z2]))
    count, dim = z1.shape
    check_negatives("z1", count * shards(axis_name))
    candidates = gathered(views, axis_name, 1)
    columns = candidates.reshape(-1, dim)
    own = positions(count, axis_name)
    itself = jnp.concatenate([own, own + candidates.shape[1]])
    partner = jnp.concatenate([own + candidates.shape[1], own])
    positive = jnp.tile(jnp.sum(views[0] * views[1], -1), 2) / temperature

    def partition(rows: tuple[Array, Array, Array]) -> Array:
        anchors, itself, partner = rows
        at = jnp.arange(len(columns))
        left_out = at == itself[:, None]
        if decoupled:
            left_out |= at == partner[:, None]
        logits = jnp.where(left_out, -jnp.inf, anchors @ columns.T / temperature)
        return jax.nn.logsumexp(logits, -1)

    rows = (views.reshape(-1, dim), itself, partner)
    return (over_blocks(partition, rows, block_size) - positive).reshape(2, count)
