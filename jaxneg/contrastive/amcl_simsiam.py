"""AMCL on SimSiam: several heads and predictors, and a temperature for every positive pair; no negatives.

L. Wang et al. 2024, arXiv:2310.05615, Equation 2.2.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxneg.contrastive.adaptive_negatives import Aux, Rule, checked_rule, pair_statistics, summary
from jaxneg.contrastive.arguments import alike, check_range
from jaxneg.contrastive.cosine import normalised
from jaxneg.contrastive.shards import AxisName
from jaxneg.contrastive.temperature import TemperatureNet, omega, score_to_temperature, temperature_scores


def amcl_simsiam_loss(
    p1: Float[Array, "batch heads dim"],
    z2: Float[Array, "batch heads dim"],
    p2: Float[Array, "batch heads dim"],
    z1: Float[Array, "batch heads dim"],
    phi: TemperatureNet,
    *,
    beta: float = 1e-4,
    tau_min: ArrayLike = 1e-5,
    tau_max: ArrayLike = 2.0,
    axis_name: AxisName = None,
) -> tuple[Float[Array, " batch"], Aux]:
    """AMCL's loss for SimSiam.

    ``l_i = sum_c [-s1 / (2 tau1) - s2 / (2 tau2) + beta (omega(tau1) + omega(tau2))]``

    with ``s1 = cos(p1, sg z2)``, ``s2 = cos(p2, sg z1)`` and the temperatures of the same pairs.

    Args:
        p1: predictions from the first views, of each head.
        z2: projections of the second views; they get no gradient.
        p2: predictions from the second views.
        z1: projections of the first views; they get no gradient.
        phi: the temperature network, from `init_temperature_net`.
        beta: weight of the regulariser.
        tau_min: lower bound of the temperatures.
        tau_max: upper bound of the temperatures.
        axis_name: mesh axis over which the batch lies, inside `jax.shard_map`; only ``aux`` needs it.

    Returns:
        One loss for each image, summed over the heads; and ``aux`` as in `amcl_nt_xent_loss`, of positives
        alone.

    Raises:
        ValueError: shapes that differ, or bounds that do not exist.
        TypeError: arrays that are not floating.

    Source:
        arXiv:2310.05615, Equation 2.2.

    Example:
        >>> from jaxneg.contrastive import init_temperature_net
        >>> p1, z2, p2, z1 = jax.random.normal(jax.random.key(0), (4, 5, 3, 8))
        >>> amcl_simsiam_loss(p1, z2, p2, z1, init_temperature_net(jax.random.key(1), 8))[0].shape
        (5,)
    """
    p1, z2, p2, z1 = alike("batch heads dim", p1=p1, z2=z2, p2=p2, z1=z1)
    check_range(tau_min, tau_max)
    rule = checked_rule(Rule(beta, tau_min, tau_max, 1, "max"))
    losses, statistics = jnp.zeros(p1.shape[:2], p1.dtype), []
    for prediction, target in ((p1, z2), (p2, z1)):
        p, z = normalised(prediction), jax.lax.stop_gradient(normalised(target))
        sim = jnp.sum(p * z, -1)
        tau = score_to_temperature(temperature_scores(phi, p, z, matrix=False), tau_min, tau_max)
        losses += -sim / (2 * tau) + beta * omega(tau, p.shape[-1])
        statistics.append(pair_statistics("pos", sim, tau, rule))
    both = jax.tree.map(lambda *of: jnp.stack(of), *statistics)
    return losses.sum(-1), summary(losses, both, axis_name)
