"""Federated voting: clients label the target domain by majority.

A part of FedKA (Sun, Chong and Ochiai 2022, arXiv:2203.11635). Over a mesh only counts cross it, one number
for each example and class.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxneg.federated.arguments import one_of, wide


class Votes(NamedTuple):
    """What the clients agreed on.

    Attributes:
      labels: The class with the most votes.
      counts: Votes for each class.
      agreement: Share of the votes that the winner has; 0 where nobody voted.
    """

    labels: Int[Array, " examples"]
    counts: Int[Array, "examples classes"]
    agreement: Float[Array, " examples"]


def federated_vote(
    preds: Int[Array, "clients examples"],
    num_classes: int,
    *,
    logp: Float[Array, "clients examples classes"] | None = None,
    tie: Literal["lowest", "likelihood"] = "lowest",
    voters: Bool[Array, " clients"] | None = None,
    axis_name: str | None = None,
) -> Votes:
    """The class that most clients predict.

    ``y_n = argmax_c #{k : preds[k, n] = c}``

    Args:
      preds: The class that each client predicts. A class outside ``0 .. num_classes - 1`` is no vote.
      num_classes: Number of classes.
      logp: Log-probabilities of the clients, for ``tie="likelihood"``.
      tie: Which of several classes with equally many votes wins: the lowest, or the one whose
        log-probabilities have the largest sum over the voters.
      voters: Which clients vote; all by default. What the others hold may be anything.
      axis_name: Mesh axis over which clients are spread, inside ``shard_map``: counts are summed over it.

    Returns:
      Labels, counts and agreement, each for every example.

    Raises:
      ValueError: If ``tie`` is unknown or lacks ``logp``, or a shape does not fit.
      TypeError: If ``preds`` are not integers.

    Source:
      Sun, Chong and Ochiai 2022, arXiv:2203.11635, published code, which breaks ties arbitrarily.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.federated import federated_vote
      >>> votes = federated_vote(jnp.array([[2, 0], [2, 1], [1, 2]]), 3)
      >>> votes.labels.tolist(), votes.counts.tolist()
      ([2, 0], [[0, 1, 2], [1, 1, 1]])
    """
    one_of("tie", tie, ("lowest", "likelihood"))
    preds = jnp.asarray(preds)
    if not jnp.issubdtype(preds.dtype, jnp.integer):
        raise TypeError(f"preds: expected integers, got {preds.dtype}")
    if preds.ndim != 2 or preds.shape[0] == 0:
        raise ValueError(f"preds: expected [clients, examples], at least one client, got shape {preds.shape}")
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
    if tie == "likelihood" and (logp is None or logp.shape != (*preds.shape, num_classes)):
        raise ValueError(
            f"logp: expected shape {(*preds.shape, num_classes)} with tie='likelihood', got "
            f"{None if logp is None else logp.shape}"
        )
    clients = preds.shape[0]
    if voters is not None and voters.shape != (clients,):
        raise ValueError(f"voters: expected one for each of {clients} clients, got shape {voters.shape}")
    voting = jnp.ones(clients, bool) if voters is None else jnp.asarray(voters)

    def total(x: Array) -> Array:
        return x if axis_name is None else jax.lax.psum(x, axis_name)

    one_hot = (preds[..., None] == jnp.arange(num_classes)) & voting[:, None, None]
    counts = total(one_hot.sum(0, dtype=jnp.int32))
    most = counts.max(-1)
    if tie == "likelihood":
        assert logp is not None
        likelihood = total(jnp.where(voting[:, None, None], wide(logp), 0).sum(0))
        labels = jnp.argmax(jnp.where(counts == most[:, None], likelihood, -jnp.inf), -1)
    else:
        labels = jnp.argmax(counts, -1)
    voters_in_all = total(voting.sum(dtype=jnp.int32))
    agreement = most / jnp.maximum(voters_in_all, 1).astype(jnp.result_type(float))
    return Votes(labels.astype(jnp.int32), counts, agreement)
