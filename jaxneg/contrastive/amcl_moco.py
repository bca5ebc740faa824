"""AMCL on MoCo: several heads with a queue each, and a temperature for every pair in every head.

L. Wang et al. 2024, arXiv:2310.05615, Equations 1.2 and 5. The order of a step: queries from the first views;
`ema_update` of the key encoder and its heads; keys from the second views; this loss; the optimizer; then
`queue_enqueue`. The objective has no lower bound of its own, as in `jaxneg.contrastive.amcl_nt_xent`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxneg.contrastive.adaptive_negatives import (
    Aux,
    Negatives,
    Rule,
    Vectors,
    anchor_losses,
    checked_rule,
    summary,
)
from jaxneg.contrastive.arguments import alike, check_range, floating
from jaxneg.contrastive.cosine import normalised
from jaxneg.contrastive.shards import AxisName, explicit_axis, gathered, on_shards, over_blocks
from jaxneg.contrastive.temperature import TemperatureNet, temperature_features


def amcl_moco_loss(
    q: Float[Array, "batch heads dim"],
    k: Float[Array, "batch heads dim"],
    queue: Float[Array, "heads dim size"],
    phi: TemperatureNet,
    *,
    beta: float = 1e-4,
    tau_min: ArrayLike = 1e-5,
    tau_max: ArrayLike = 2.0,
    topk: int = 100,
    negatives: Negatives = "topk",
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> tuple[Float[Array, " batch"], Aux]:
    """AMCL's loss for MoCo: query against key and key against query, negatives from each head's queue.

    ``l_i = sum_c [dir(q, k, queue) + dir(k, q, queue)] / 2``

    with ``dir`` the anchor's loss of `amcl_nt_xent_loss`. Keys and queue get no gradient; phi does from all.

    Args:
        q: outputs of the heads for the queries, not normalised.
        k: outputs of the key encoder's heads for the same images, not normalised.
        queue: keys of length one in columns; with ``axis_name`` this device's share of them.
        phi: the temperature network, from `init_temperature_net`.
        beta: weight of the regulariser.
        tau_min: lower bound of the temperatures.
        tau_max: upper bound of the temperatures.
        topk: k, clipped to the size of the queue.
        negatives: how they enter, as in `amcl_nt_xent_loss`.
        axis_name: mesh axis over which the batch and the queue's columns lie, inside `jax.shard_map`.
        block_size: images that are compared at a time, a divisor of B (of one device's); None: all.

    Returns:
        One loss for each image, summed over the heads; and ``aux`` as in `amcl_nt_xent_loss`, the means of
        both directions.

    Raises:
        ValueError: shapes that do not fit, a queue without keys, bounds or options that do not exist.
        TypeError: arrays that are not floating.

    Source:
        arXiv:2310.05615, Equation 5, on MoCo (arXiv:1911.05722).

    Example:
        >>> from jaxneg.contrastive import init_queue, init_temperature_net
        >>> q, k = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
        >>> queue = init_queue(jax.random.key(1), 16, 8, heads=3).queue
        >>> amcl_moco_loss(q, k, queue, init_temperature_net(jax.random.key(2), 8), tau_min=0.1)[0].shape
        (5,)
    """
    q, k = alike("batch heads dim", q=q, k=k)
    queue = floating("queue", queue)
    checked_rule(Rule(beta, tau_min, tau_max, topk, negatives))
    check_range(tau_min, tau_max)
    if queue.ndim != 3 or queue.shape[:2] != q.shape[1:] or queue.shape[2] == 0:
        raise ValueError(
            f"queue: expected [{q.shape[1]}, {q.shape[2]}, size] with at least one key, got {queue.shape}"
        )
    columns = jax.lax.stop_gradient(jnp.transpose(gathered(queue, axis_name, 2), (2, 0, 1)))
    if axis_name is None and explicit_axis(q):
        own = partial(_against_columns, beta=beta, topk=topk, negatives=negatives, block_size=block_size)
        return on_shards(own, (q, k), columns, phi, (tau_min, tau_max), out_specs=(P("batch"), P()))
    return _against_columns(
        q,
        k,
        columns,
        phi,
        (tau_min, tau_max),
        beta=beta,
        topk=topk,
        negatives=negatives,
        block_size=block_size,
        axis_name=axis_name,
    )


def _against_columns(
    q: Array,
    k: Array,
    columns: Float[Array, "size heads dim"],
    phi: TemperatureNet,
    bounds: tuple[ArrayLike, ArrayLike],
    *,
    beta: float,
    topk: int,
    negatives: Negatives,
    block_size: int | None,
    axis_name: AxisName,
) -> tuple[Float[Array, " batch"], Aux]:
    """The loss with all keys of the queue at hand."""
    rule = Rule(beta, *bounds, topk, negatives)
    q, k = normalised(q), jax.lax.stop_gradient(normalised(k))
    queries, keys, candidates = (Vectors(z, temperature_features(phi, z)) for z in (q, k, columns))

    def of_block(rows: tuple[Vectors, Vectors]):
        negative = jnp.ones((1, len(columns)), bool)
        first = anchor_losses(rows[0], rows[1], candidates, negative, rule)
        second = anchor_losses(rows[1], rows[0], candidates, negative, rule)
        return jax.tree.map(lambda *of: jnp.stack(of, 1), first, second)

    losses, statistics = over_blocks(of_block, (queries, keys), block_size)
    losses = losses.mean(1)
    return losses.sum(-1), summary(losses, statistics, axis_name)
