"""AMCL on SimCLR: several heads, and a temperature for every pair in every head.

L. Wang et al. 2024, "Adaptive multi-head contrastive learning", arXiv:2310.05615, Equations 2.1, 2.4 and 5.

With beta below 1 the objective has no lower bound as temperatures fall: a positive of similarity above beta
gives ``(beta - s) / tau``, each negative ``-beta / tau``, and only ``tau_min`` stops it. Train with
``tau_min`` of 0.05 or 0.1, ``negatives="lse"`` and clipped gradients, and watch the shares at the bounds in
``aux``.
"""

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
from jaxneg.contrastive.arguments import alike, check_negatives, check_range
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
from jaxneg.contrastive.temperature import TemperatureNet, temperature_features


def amcl_nt_xent_loss(
    z1: Float[Array, "batch heads dim"],
    z2: Float[Array, "batch heads dim"],
    phi: TemperatureNet,
    *,
    beta: float = 1e-4,
    tau_min: ArrayLike = 1e-5,
    tau_max: ArrayLike = 2.0,
    topk: int = 100,
    negatives: Negatives = "topk",
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> tuple[Float[Array, "2 batch"], Aux]:
    """AMCL's loss for SimCLR: each view as anchor, its image's other view, and all other views, in each head.

    ``l_i = sum_c [-s_ip / tau_ip + N_i + beta (omega(tau_ip) - R_i)]``

    with ``tau`` of `score_to_temperature`, and by ``negatives``

    - ``"topk"`` (the official code, Equation 5): N is the mean of ``s / tau`` over the k most similar
      negatives, R the sum of ``log tau + 1 / tau`` over them;
    - ``"max"`` (Equation 2.1): N is ``s / tau`` of the most similar negative, R its omega;
    - ``"lse"``: N is the log-sum-exp of ``s / tau`` over all negatives, R as for "max";
    - ``"infonce"``: as "lse", with the positive in the log-sum-exp;
    - ``"infonce_max"`` (Equation 2.4): as "max", with the positive among the candidates.

    Args:
        z1: outputs of the heads for the first views, not normalised.
        z2: for the second views of the same images.
        phi: the temperature network, from `init_temperature_net`.
        beta: weight of the regulariser.
        tau_min: lower bound of the temperatures.
        tau_max: upper bound of the temperatures.
        topk: k, clipped to the number of negatives.
        negatives: how they enter.
        axis_name: mesh axis over which the batch lies, inside `jax.shard_map`: negatives are those of all
            devices.
        block_size: anchors that are compared at a time, a divisor of 2B (of one device's); None: all.

    Returns:
        One loss for each view as anchor, summed over the heads: those of z1, then those of z2; and ``aux``
        without gradient: ``head_losses [heads]``, and for positives (``pos``) and negatives (``neg``)
        ``tau_*_mean``, ``tau_*_min``, ``tau_*_max``, ``tau_*_at_lower_bound`` and ``tau_*_at_upper_bound``
        (shares within 1 % of the range), and ``sim_*``, the mean similarity.

    Raises:
        ValueError: shapes that differ, a batch without negatives, bounds or options that do not exist.
        TypeError: arrays that are not floating.

    Source:
        arXiv:2310.05615, Equations 2.1, 2.4 and 5; one head, constant phi and ``"infonce"`` at beta 0 are
        NT-Xent, ``"lse"`` its decoupled form.

    Example:
        >>> from jaxneg.contrastive import init_temperature_net
        >>> import jax
        >>> z1, z2 = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
        >>> loss, aux = amcl_nt_xent_loss(z1, z2, init_temperature_net(jax.random.key(1), 8), tau_min=0.1)
        >>> loss.shape, aux["head_losses"].shape
        ((2, 5), (3,))
    """
    z1, z2 = alike("batch heads dim", z1=z1, z2=z2)
    rule = checked_rule(Rule(beta, tau_min, tau_max, topk, negatives))
    check_range(tau_min, tau_max)
    if axis_name is None and explicit_axis(z1):

        def own(z1: Array, z2: Array, phi: TemperatureNet, bounds: tuple[Array, Array], axis_name: AxisName):
            return amcl_nt_xent_loss(
                z1,
                z2,
                phi,
                beta=beta,
                tau_min=bounds[0],
                tau_max=bounds[1],
                topk=topk,
                negatives=negatives,
                axis_name=axis_name,
                block_size=block_size,
            )

        return on_shards(own, (z1, z2), phi, (tau_min, tau_max), out_specs=(P(None, "batch"), P()))
    count, heads, dim = z1.shape
    check_negatives("z1", count * shards(axis_name))
    z = normalised(jnp.stack([z1, z2]))
    both = Vectors(z, temperature_features(phi, z))
    partners = Vectors(*(x[::-1] for x in both))
    everyone = Vectors(*(gathered(x, axis_name, 1) for x in both))
    total = everyone.z.shape[1]
    anchors, partners, candidates = (
        Vectors(*(x.reshape(-1, heads, dim) for x in of)) for of in (both, partners, everyone)
    )
    image = jnp.tile(positions(count, axis_name), 2)

    def of_block(rows: tuple[Vectors, Vectors, Array]):
        anchors, partners, image = rows
        negative = jnp.arange(2 * total) % total != image[:, None]
        return anchor_losses(anchors, partners, candidates, negative, rule)

    losses, statistics = over_blocks(of_block, (anchors, partners, image), block_size)
    return losses.sum(-1).reshape(2, count), summary(losses, statistics, axis_name)
