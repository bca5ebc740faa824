"""InfoNCE over one positive and a ragged set of negatives, and the two training-free numbers it suggests.

Papers: InfoNCE, arXiv:1807.03748, equation 4. The frozen encoder's InfoNCE loss, its mean margin and the
proxy of its gradient norm are baselines that ECI (arXiv:2603.20990) is compared with.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxneg.retrieval.arguments import boolean_mask
from jaxneg.retrieval.masked import at_least_float32, masked_mean


def _checked(sim_pos: Array, sim_neg: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    sim_pos, sim_neg = at_least_float32(sim_pos), at_least_float32(sim_neg)
    if sim_neg.ndim == 0 or sim_pos.shape != sim_neg.shape[:-1]:
        raise ValueError(
            f"sim_pos: expected the shape of sim_neg without its last axis, {sim_neg.shape[:-1]}, "
            f"got {sim_pos.shape}"
        )
    return sim_pos, sim_neg, boolean_mask("mask", mask, sim_neg.shape)


def _positive(name: str, value: float) -> None:
    if isinstance(value, (int, float)) and value <= 0:
        raise ValueError(f"{name}: expected a positive number, got {value}")


def infonce_loss(
    sim_pos: Float[Array, "*batch"],
    sim_neg: Float[Array, "*batch negatives"],
    mask: Bool[Array, "*batch negatives"] | None = None,
    *,
    temperature: float = 0.05,
) -> Float[Array, "*batch"]:
    """Cross-entropy of picking the positive among itself and the valid negatives.

    loss_i = ln(1 + sum_k exp((s_ik - s_i+) / temperature))

    In-batch negatives are columns like any other: concatenate them to the explicit ones and mask the positive
    itself and other relevant documents.

    Args:
        sim_pos: similarity of query and positive.
        sim_neg: similarities of query and negatives.
        mask: true where the negative is valid; None: all are.
        temperature: of the softmax, positive.

    Returns:
        One loss a row, in nats; 0 where no negative is valid.

    Raises:
        ValueError: shapes that do not fit, or a temperature that is not positive.
        TypeError: a mask that is not boolean.

    Source:
        arXiv:1807.03748, equation 4.

    Example:
        >>> round(float(infonce_loss(jnp.array(0.5), jnp.array([0.5, 0.5, 0.5]))), 4)
        1.3863
    """
    _positive("temperature", temperature)
    sim_pos, sim_neg, mask = _checked(sim_pos, sim_neg, mask)
    logits = jnp.where(mask, (sim_neg - sim_pos[..., None]) / temperature, -jnp.inf)
    logits = jnp.concatenate([jnp.zeros_like(sim_pos)[..., None], logits], axis=-1)
    return jax.nn.logsumexp(logits, axis=-1)


def mean_margin(
    sim_pos: Float[Array, "*batch"],
    sim_neg: Float[Array, "*batch negatives"],
    mask: Bool[Array, "*batch negatives"] | None = None,
) -> Float[Array, "*batch"]:
    """Mean distance from the positive down to the valid negatives.

    mean_k (s_i+ - s_ik);  0 where no negative is valid

    Args:
        sim_pos: similarity of query and positive.
        sim_neg: similarities of query and negatives.
        mask: true where the negative is valid; None: all are.

    Returns:
        One margin a row, in units of the similarity.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: a mask that is not boolean.

    Source:
        A baseline of ECI, arXiv:2603.20990.

    Example:
        >>> mean_margin(jnp.array([0.5]), jnp.array([[0.5, 0.25]])).tolist()
        [0.125]
    """
    sim_pos, sim_neg, mask = _checked(sim_pos, sim_neg, mask)
    return masked_mean(sim_pos[..., None] - sim_neg, mask)


def gradient_norm_proxy(
    sim_pos: Float[Array, "*batch"],
    sim_neg: Float[Array, "*batch negatives"],
    mask: Bool[Array, "*batch negatives"] | None = None,
    *,
    temperature: float = 0.05,
) -> Float[Array, "*batch"]:
    """Mean weight that a pairwise loss gives to the valid negatives: how much gradient they would send.

    mean_k sigmoid((s_ik - s_i+) / temperature);  0 where no negative is valid

    Args:
        sim_pos: similarity of query and positive.
        sim_neg: similarities of query and negatives.
        mask: true where the negative is valid; None: all are.
        temperature: of the sigmoid, positive.

    Returns:
        One weight in [0, 1] a row.

    Raises:
        ValueError: shapes that do not fit, or a temperature that is not positive.
        TypeError: a mask that is not boolean.

    Source:
        A baseline of ECI, arXiv:2603.20990.

    Example:
        >>> gradient_norm_proxy(jnp.array([0.5]), jnp.array([[0.5]])).tolist()
        [0.5]
    """
    _positive("temperature", temperature)
    sim_pos, sim_neg, mask = _checked(sim_pos, sim_neg, mask)
    return masked_mean(jax.nn.sigmoid((sim_neg - sim_pos[..., None]) / temperature), mask)
