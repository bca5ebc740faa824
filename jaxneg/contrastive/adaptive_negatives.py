"""The part that AMCL's losses with negatives share: one anchor, its positive, and negatives of all heads.

L. Wang et al. 2024, arXiv:2310.05615, Equations 2.1, 2.4 and 5.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxneg.contrastive.arguments import one_of
from jaxneg.contrastive.shards import AxisName, averaged
from jaxneg.contrastive.temperature import omega, score_to_temperature

Negatives = Literal["topk", "max", "lse", "infonce", "infonce_max"]
NEGATIVES = ("topk", "max", "lse", "infonce", "infonce_max")
AT_A_BOUND = 0.01
"""A temperature counts as at a bound within this share of the range."""

Aux = dict[str, Array]


class Vectors(NamedTuple):
    """Vectors of all heads, and what the temperature network makes of them."""

    z: Float[Array, "vectors heads dim"]
    """Of length one."""
    phi: Float[Array, "vectors heads dim"]


class Rule(NamedTuple):
    """How negatives enter: the arguments of the public functions."""

    beta: float
    tau_min: ArrayLike
    tau_max: ArrayLike
    topk: int
    negatives: Negatives


def checked_rule(rule: Rule) -> Rule:
    """The rule; raises ValueError for a value that does not exist."""
    one_of("negatives", rule.negatives, NEGATIVES)
    if rule.topk < 1:
        raise ValueError(f"topk: expected at least 1, got {rule.topk}")
    if isinstance(rule.beta, int | float) and not 0 <= rule.beta < float("inf"):
        raise ValueError(f"beta: expected a finite number of at least 0, got {rule.beta}")
    return rule


def anchor_losses(
    anchors: Vectors,
    positives: Vectors,
    candidates: Vectors,
    negative: Bool[Array, "anchors candidates"],
    rule: Rule,
) -> tuple[Float[Array, "anchors heads"], dict[str, Float[Array, "anchors heads"]]]:
    """The loss of each anchor in each head, and what it says about itself.

    Args:
        anchors: rows.
        positives: one for each anchor.
        candidates: columns.
        negative: which columns are an anchor's negatives.
        rule: how they enter.

    Returns:
        Losses, and statistics by name without gradient.
    """
    sim_pos = jnp.sum(anchors.z * positives.z, -1)
    tau_pos = score_to_temperature(jnp.sum(anchors.phi * positives.phi, -1), rule.tau_min, rule.tau_max)
    sim, score = (
        jnp.einsum("acd,ncd->can", of_anchors, of_candidates)
        for of_anchors, of_candidates in ((anchors.z, candidates.z), (anchors.phi, candidates.phi))
    )
    tau = score_to_temperature(score, rule.tau_min, rule.tau_max)
    pull, dim = sim / tau, anchors.z.shape[-1]
    positive = (sim_pos / tau_pos).T  # [heads, anchors]
    regulariser = omega(tau_pos, dim).T
    hardest = _largest(sim, negative, 1)
    omega_hardest = jnp.sum(hardest * omega(tau, dim), -1)
    weights = negative / jnp.maximum(jnp.sum(negative, -1, keepdims=True), 1)
    if rule.negatives == "topk":
        chosen = _largest(sim, negative, rule.topk)
        count = jnp.sum(chosen, -1)
        push = jnp.sum(chosen * pull, -1) / count
        against = jnp.sum(chosen * (jnp.log(tau) + 1 / tau), -1)
        weights = chosen / count[..., None]
    elif rule.negatives == "max":
        push, against, weights = jnp.sum(hardest * pull, -1), omega_hardest, hardest
    elif rule.negatives == "infonce_max":
        # The hardest of all, the positive among them: where it is the positive, nothing is left to learn.
        own = (sim_pos >= jnp.max(jnp.where(negative, sim, -jnp.inf), -1).T).T
        push = jnp.where(own, positive, jnp.sum(hardest * pull, -1))
        against = jnp.where(own, regulariser, omega_hardest)
        weights = hardest
    else:
        push, against = jax.nn.logsumexp(jnp.where(negative, pull, -jnp.inf), -1), omega_hardest
        if rule.negatives == "infonce":
            push = jnp.logaddexp(push, positive)
    losses = push - positive + rule.beta * (regulariser - against)
    of_negatives = _statistics("neg", sim, tau, weights, rule)
    of_positives = _statistics("pos", sim_pos.T[..., None], tau_pos.T[..., None], jnp.ones(()), rule)
    statistics = {name: value.T for name, value in (of_positives | of_negatives).items()}
    return losses.T, jax.lax.stop_gradient(statistics)


def summary(losses: Float[Array, "anchors heads"], statistics: dict[str, Array], axis_name: AxisName) -> Aux:
    """The statistics of a batch: means, and the extremes of what is an extreme.

    Args:
        losses: of each anchor and head.
        statistics: of each anchor and head, by name.
        axis_name: mesh axis over which the batch lies.

    Returns:
        Scalars by name, and ``head_losses [heads]``.
    """
    extremes = {"_min": (jnp.min, jax.lax.pmin), "_max": (jnp.max, jax.lax.pmax)}
    aux: Aux = {"head_losses": averaged(jax.lax.stop_gradient(losses).mean(0), axis_name)}
    for name, values in statistics.items():
        of_shard, of_all = extremes.get(name[-4:], (jnp.mean, jax.lax.pmean))
        aux[name] = of_shard(values) if axis_name is None else of_all(of_shard(values), axis_name)
    return aux


def pair_statistics(
    kind: str, sim: Float[Array, "anchors heads"], tau: Float[Array, "anchors heads"], rule: Rule
) -> dict[str, Float[Array, "anchors heads"]]:
    """The statistics of pairs of which each anchor has one.

    Args:
        kind: "pos" or "neg", in their names.
        sim: similarities.
        tau: temperatures.
        rule: with their bounds.

    Returns:
        Values by name, without gradient.
    """
    return jax.lax.stop_gradient(_statistics(kind, sim[..., None], tau[..., None], jnp.ones(()), rule))


def _largest(sim: Array, negative: Array, count: int) -> Array:
    """Weights of the ``count`` most similar negatives, 1 each; ties at the last place share what is left.

    They are a mask and not indices: gathering would scatter in the backward pass.
    """
    sim = jax.lax.stop_gradient(jnp.where(negative, sim, -jnp.inf))
    last = jnp.max(sim, -1, keepdims=True) if count == 1 else _kth_largest(sim, min(count, sim.shape[-1]))
    above, tied = sim > last, (sim == last) & negative
    left = count - jnp.sum(above, -1, keepdims=True)
    share = jnp.minimum(1.0, left / jnp.maximum(jnp.sum(tied, -1, keepdims=True), 1))
    return jnp.where(above, 1.0, jnp.where(tied, share, 0.0)).astype(sim.dtype)


def _kth_largest(x: Array, k: int) -> Array:
    """The k-th largest number of each row, found by halving, which is many times faster than sorting."""
    kind = np.dtype(f"int{8 * x.dtype.itemsize}")

    def ordered(bits: Array) -> Array:
        """Integers in the order of the numbers with these bits, and back."""
        return bits ^ ((bits >> (8 * kind.itemsize - 1)) & np.iinfo(kind).max)

    rank = ordered(jax.lax.bitcast_convert_type(x, kind))

    def halved(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        least, most = bounds
        middle = (least | most) - ((least ^ most) >> 1)  # their mean, rounded up, without overflow
        enough = jnp.sum(rank >= middle, -1, keepdims=True) >= k
        return jnp.where(enough, middle, least), jnp.where(enough, most, middle - 1)

    bounds = jnp.min(rank, -1, keepdims=True), jnp.max(rank, -1, keepdims=True)
    found, _ = jax.lax.fori_loop(0, 8 * kind.itemsize, halved, bounds)
    return jax.lax.bitcast_convert_type(ordered(found), x.dtype)


def _statistics(kind: str, sim: Array, tau: Array, weights: Array, rule: Rule) -> dict[str, Array]:
    place = (tau - rule.tau_min) / (jnp.asarray(rule.tau_max) - rule.tau_min)
    taken = jnp.broadcast_to(weights > 0, tau.shape)

    def mean(values: Array) -> Array:
        return jnp.sum(weights * values, -1)

    return {
        f"tau_{kind}_mean": mean(tau),
        f"tau_{kind}_min": jnp.min(jnp.where(taken, tau, jnp.inf), -1),
        f"tau_{kind}_max": jnp.max(jnp.where(taken, tau, -jnp.inf), -1),
        f"tau_{kind}_at_lower_bound": mean((place <= AT_A_BOUND).astype(tau.dtype)),
        f"tau_{kind}_at_upper_bound": mean((place >= 1 - AT_A_BOUND).astype(tau.dtype)),
        f"sim_{kind}": mean(sim),
    }
