"""AMCL on Barlow Twins: several heads, and a temperature for every pair of features; no negatives.

L. Wang et al. 2024, arXiv:2310.05615, Equation 2.3. The temperature network sees each feature as the vector
of its values over the batch, so that the batch size is fixed: its parameters are for that length, on several
devices for the whole batch.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxneg.contrastive.adaptive_negatives import Aux, Rule, checked_rule, pair_statistics
from jaxneg.contrastive.arguments import alike, check_negatives, check_range
from jaxneg.contrastive.barlow_twins import standardised, without_diagonal
from jaxneg.contrastive.shards import AxisName, explicit_axis, gathered, on_shards, shards, summed
from jaxneg.contrastive.temperature import (
    TemperatureNet,
    omega,
    score_to_temperature,
    temperature_scores,
)


def amcl_barlow_twins_loss(
    z1: Float[Array, "batch heads dim"],
    z2: Float[Array, "batch heads dim"],
    phi_batch: TemperatureNet,
    *,
    lambd: float = 5e-3,
    beta: float = 1e-6,
    tau_min: ArrayLike = 1e-5,
    tau_max: ArrayLike = 2.0,
    axis_name: AxisName = None,
) -> tuple[Float[Array, ""], Aux]:
    """AMCL's loss for Barlow Twins.

    ``L = sum_c [sum_l (1 - C_ll / tau_ll)^2 + lambda sum_{l != m} C_lm^2 / tau_lm
    + beta sum_l omega(tau_ll) - beta sum_{l != m} omega(tau_lm)]``

    with C the correlation of features that are standardised over the batch (unbiased), and the temperatures
    from the features as they are. It is a statistic of the batch: no axis is left.

    Args:
        z1: outputs of the heads for the first views.
        z2: for the second views of the same images.
        phi_batch: the temperature network, from ``init_temperature_net(key, batch size)``.
        lambd: weight of the off-diagonal.
        beta: weight of the regulariser.
        tau_min: lower bound of the temperatures.
        tau_max: upper bound of the temperatures.
        axis_name: mesh axis over which the batch lies, inside `jax.shard_map`: correlation and temperatures
            are those of the whole batch.

    Returns:
        The loss of the batch, summed over the heads; and ``aux`` as in `amcl_nt_xent_loss`, with the diagonal
        for positives and the rest for negatives.

    Raises:
        ValueError: shapes that differ, fewer than two images, a network for another batch size, bounds that
            do not exist.
        TypeError: arrays that are not floating.

    Source:
        arXiv:2310.05615, Equation 2.3.

    Example:
        >>> from jaxneg.contrastive import init_temperature_net
        >>> z1, z2 = jax.random.normal(jax.random.key(0), (2, 8, 3, 4))
        >>> phi = init_temperature_net(jax.random.key(1), 8)
        >>> amcl_barlow_twins_loss(z1, z2, phi)[0].shape
        ()
    """
    z1, z2 = alike("batch heads dim", z1=z1, z2=z2)
    check_range(tau_min, tau_max)
    rule = checked_rule(Rule(beta, tau_min, tau_max, 1, "max"))
    if axis_name is None and explicit_axis(z1):
        given = {"lambd": lambd, "beta": beta, "tau_min": tau_min, "tau_max": tau_max}
        own = partial(amcl_barlow_twins_loss, **given)
        return on_shards(own, (z1, z2), phi_batch, out_specs=(P(), P()))
    count, dim = len(z1) * shards(axis_name), z1.shape[-1]
    check_negatives("z1", count)
    a1, a2 = (standardised(z, "unbiased", axis_name) for z in (z1, z2))
    correlation = summed(jnp.einsum("bcl,bcm->clm", a1, a2), axis_name) / count
    channels = (jnp.moveaxis(gathered(z, axis_name), 0, -1) for z in (z1, z2))
    score = temperature_scores(phi_batch, *channels, matrix=True)
    if axis_name is not None:  # the same on every device, which the compiler is told by an average
        score = jax.lax.pmean(score, axis_name)
    tau = score_to_temperature(score, tau_min, tau_max)
    on, tau_on = (jnp.diagonal(x, axis1=1, axis2=2) for x in (correlation, tau))
    regulariser = omega(tau, dim)
    regulariser_on = jnp.diagonal(regulariser, axis1=1, axis2=2)
    losses = (
        jnp.sum(jnp.square(1 - on / tau_on), -1)
        + lambd * jnp.sum(without_diagonal(jnp.square(correlation) / tau), (1, 2))
        + beta * jnp.sum(regulariser_on, -1)
        - beta * jnp.sum(without_diagonal(regulariser), (1, 2))
    )
    aux: Aux = {"head_losses": jax.lax.stop_gradient(losses)}
    off = ~jnp.eye(dim, dtype=bool)
    weight = off / jnp.maximum(off.sum(), 1)
    positive = pair_statistics("pos", on, tau_on, rule)
    negative = pair_statistics("neg", correlation, tau, rule)
    for name, values in positive.items():
        aux[name] = {"_min": jnp.min, "_max": jnp.max}.get(name[-4:], jnp.mean)(values)
    for name, values in negative.items():
        if name[-4:] in ("_min", "_max"):
            worst, extreme = (jnp.inf, jnp.min) if name.endswith("_min") else (-jnp.inf, jnp.max)
            aux[name] = extreme(jnp.where(off, values, worst))
        else:
            aux[name] = jnp.sum(weight * values) / len(losses)
    return jnp.sum(losses), aux
