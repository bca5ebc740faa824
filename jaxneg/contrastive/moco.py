"""MoCo: keys from a slowly moving encoder, kept in a queue (v2) or taken from the batch (v3).

K. He et al. 2020, "Momentum contrast for unsupervised visual representation learning", arXiv:1911.05722,
Equation 1 and Algorithm 1; X. Chen et al. 2020, arXiv:2003.04297 (v2: temperature, projector); X. Chen et al.
2021, "An empirical study of training self-supervised vision transformers", arXiv:2104.02057, Algorithm 1
(v3).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jaxneg.contrastive.arguments import alike, check_negatives, check_positive, floating
from jaxneg.contrastive.cosine import normalised
from jaxneg.contrastive.shards import AxisName, explicit_axis, gathered, on_shards, positions, shards


class KeyQueue(NamedTuple):
    """The keys of past batches, and where the next ones are written.

    Attributes:
        queue: keys in columns, ``[dim, size]``, or ``[heads, dim, size]``; each of length one.
        ptr: the next column.
    """

    queue: Float[Array, "*heads dim size"]
    ptr: Int[Array, ""]


def init_queue(
    key: PRNGKeyArray, size: int, dim: int, heads: int | None = None, *, shards: int = 1
) -> KeyQueue:
    """A queue of random directions, as MoCo begins with.

    Args:
        key: random key.
        size: columns, Q.
        dim: of a key.
        heads: heads with a queue each; None: no axis of heads.
        shards: devices that the columns will be split over.

    Returns:
        The queue.

    Raises:
        ValueError: a size that is not positive, or that the shards do not divide.

    Source:
        arXiv:1911.05722, Algorithm 1.

    Example:
        >>> init_queue(jax.random.key(0), 8, 3, heads=2).queue.shape
        (2, 3, 8)
    """
    if size < 1 or dim < 1 or (heads is not None and heads < 1):
        raise ValueError(f"size, dim, heads: expected at least 1, got {size}, {dim}, {heads}")
    if shards < 1 or size % shards:
        raise ValueError(f"size: expected a multiple of the {shards} shards, got {size}")
    columns = jax.random.normal(key, (*(() if heads is None else (heads,)), size, dim))
    return KeyQueue(jnp.swapaxes(normalised(columns), -1, -2), jnp.zeros((), jnp.int32))


def queue_enqueue(
    queue: Float[Array, "*heads dim size"],
    ptr: Int[ArrayLike, ""],
    keys: Float[Array, "batch *heads dim"],
    *,
    axis_name: AxisName = None,
) -> KeyQueue:
    """Writes the keys of a batch over the oldest ones.

    ``queue[..., (ptr + i) mod Q] <- keys[i] / |keys[i]|,  ptr <- (ptr + B) mod Q``

    Of a batch larger than the queue the last Q keys are written.

    Args:
        queue: keys in columns; with ``axis_name`` this device's share of the columns.
        ptr: the next column, of all.
        keys: of the batch; with ``axis_name`` this device's share of it. They get no gradient.
        axis_name: mesh axis over which columns and batch lie, inside `jax.shard_map`.

    Returns:
        The queue and the next column.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: arrays that are not floating.

    Source:
        arXiv:1911.05722, Algorithm 1, ``enqueue`` and ``dequeue``.

    Example:
        >>> queue, ptr = queue_enqueue(jnp.zeros((1, 3)), 2, jnp.ones((2, 1)))
        >>> queue.tolist(), int(ptr)
        ([[1.0, 0.0, 1.0]], 1)
    """
    queue, keys = jnp.asarray(queue), floating("keys", keys)
    if queue.ndim not in (2, 3) or keys.ndim != queue.ndim or keys.shape[1:] != queue.shape[:-1]:
        raise ValueError(
            f"keys: expected [batch, {', '.join(map(str, queue.shape[:-1]))}] for a queue of shape"
            f" {queue.shape}, got {keys.shape}"
        )
    keys = jax.lax.stop_gradient(normalised(gathered(keys, axis_name)))
    size = queue.shape[-1] * shards(axis_name)
    keys, ptr = keys[-size:], jnp.asarray(ptr)
    # Each column looks for its key: columns on other devices need no message.
    offset = (positions(queue.shape[-1], axis_name) - ptr) % size
    written = offset < len(keys)
    columns = jnp.moveaxis(keys[jnp.where(written, offset, 0)], 0, -1).astype(queue.dtype)
    return KeyQueue(jnp.where(written, columns, queue), jnp.asarray((ptr + len(keys)) % size, jnp.int32))


def ema_update(target: PyTree[Array], online: PyTree[Array], momentum: ArrayLike) -> PyTree[Array]:
    """Moves the key encoder towards the trained one.

    ``target <- m target + (1 - m) online``

    Args:
        target: parameters of the key encoder (or of BYOL's target).
        online: parameters of the encoder that is trained.
        momentum: m, from 0 to 1.

    Returns:
        The new target.

    Raises:
        ValueError: a momentum outside 0 to 1.

    Source:
        arXiv:1911.05722, Equation 2.

    Example:
        >>> float(ema_update(jnp.array(1.0), jnp.array(0.0), 0.75))
        0.75
    """
    if isinstance(momentum, int | float) and not 0 <= momentum <= 1:
        raise ValueError(f"momentum: expected 0 to 1, got {momentum}")
    return optax.incremental_update(online, target, 1 - momentum)  # pyright: ignore[reportArgumentType]


def cosine_momentum(step: ArrayLike, steps: int, base: float = 0.99) -> Float[Array, ""]:
    """Momentum that rises from its base to 1 along half a cosine.

    ``m = 1 - (1 - base) (1 + cos(pi step / steps)) / 2``

    Args:
        step: updates made.
        steps: updates in all.
        base: 0.99 for MoCo v3, 0.996 for BYOL.

    Returns:
        m.

    Raises:
        ValueError: steps below 1, or a base outside 0 to 1.

    Source:
        BYOL, arXiv:2006.07733, Section 3.3.

    Example:
        >>> float(cosine_momentum(10, 10))
        1.0
    """
    if steps < 1 or not 0 <= base <= 1:
        raise ValueError(f"steps, base: expected at least 1 and from 0 to 1, got {steps} and {base}")
    return 1 - (1 - base) * jnp.asarray(optax.cosine_decay_schedule(1.0, steps)(jnp.asarray(step)))


def info_nce_queue_loss(
    q: Float[Array, "batch dim"],
    k: Float[Array, "batch dim"],
    queue: Float[Array, "dim size"],
    temperature: ArrayLike = 0.1,
    *,
    axis_name: AxisName = None,
) -> Float[Array, " batch"]:
    """Cross-entropy of picking an image's key among itself and the keys of the queue.

    ``l_i = -q_i.k_i / t + log(exp(q_i.k_i / t) + sum_n exp(q_i.queue_n / t))``

    Args:
        q: queries, not normalised.
        k: keys of the same images, not normalised; they get no gradient, nor does the queue.
        queue: keys of length one in columns; with ``axis_name`` this device's share of them.
        temperature: t, positive: 0.07 in MoCo, 0.2 in v2, 0.1 in AMCL's baseline.
        axis_name: mesh axis over which the batch and the queue's columns lie, inside `jax.shard_map`.

    Returns:
        One loss for each query.

    Raises:
        ValueError: shapes that do not fit, a queue without keys, a temperature that is not positive.
        TypeError: arrays that are not floating.

    Source:
        arXiv:1911.05722, Equation 1.

    Example:
        >>> info_nce_queue_loss(jnp.eye(2), jnp.eye(2), -jnp.eye(2), 1.0).round(3).tolist()
        [0.40..., 0.40...]
    """
    q, k = alike("batch dim", q=q, k=k)
    queue = floating("queue", queue)
    check_positive(temperature=temperature)
    if queue.ndim != 2 or queue.shape[0] != q.shape[1] or queue.shape[1] == 0:
        raise ValueError(f"queue: expected [{q.shape[1]}, size] with at least one key, got {queue.shape}")
    q, k = normalised(q), jax.lax.stop_gradient(normalised(k))
    negatives = q @ jax.lax.stop_gradient(gathered(queue, axis_name, 1)) / temperature
    positive = jnp.sum(q * k, -1) / temperature
    return jnp.logaddexp(positive, jax.nn.logsumexp(negatives, -1)) - positive


def moco_v3_loss(
    q: Float[Array, "batch dim"],
    k: Float[Array, "batch dim"],
    temperature: ArrayLike = 0.2,
    *,
    axis_name: AxisName = None,
) -> Float[Array, " batch"]:
    """Cross-entropy of picking an image's key among the keys of the batch, in one direction.

    ``l_i = 2t (-q_i.k_i / t + log sum_n exp(q_i.k_n / t))``

    The method's loss is the sum of both directions, ``moco_v3_loss(q1, k2) + moco_v3_loss(q2, k1)``.

    Args:
        q: outputs of the predictor, not normalised.
        k: keys of the momentum encoder, not normalised; they get no gradient.
        temperature: t, positive.
        axis_name: mesh axis over which the batch lies, inside `jax.shard_map`: keys are those of all devices.

    Returns:
        One loss for each query.

    Raises:
        ValueError: shapes that differ, a batch without negatives, a temperature that is not positive.
        TypeError: arrays that are not floating.

    Source:
        arXiv:2104.02057, Algorithm 1.

    Example:
        >>> moco_v3_loss(jnp.eye(2), jnp.eye(2), 1.0).round(3).tolist()
        [0.62..., 0.62...]
    """
    q, k = alike("batch dim", q=q, k=k)
    check_positive(temperature=temperature)
    if axis_name is None and explicit_axis(q):
        return on_shards(moco_v3_loss, (q, k), temperature, out_specs=P("batch"))
    check_negatives("q", len(q) * shards(axis_name))
    q, k = normalised(q), jax.lax.stop_gradient(normalised(k))
    logits = q @ gathered(k, axis_name).T / temperature
    positive = jnp.sum(q * k, -1) / temperature
    return 2 * jnp.asarray(temperature) * (jax.nn.logsumexp(logits, -1) - positive)
