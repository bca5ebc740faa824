"""Negative preference optimisation: the rejected half of DPO.

Implements Zhang, Lin, Bai, Mei, "Negative Preference Optimization: From Catastrophic Collapse to Effective
Unlearning", arXiv:2404.05868, Section 3: the loss and the adaptive weights of its gradient.
"""

import jax
from jaxtyping import Array, Float

from jaxneg.unlearning.arguments import check_positive, floating


def npo_loss(
    nll: Float[Array, " batch"], ref_nll: Float[Array, " batch"], beta: float | Array = 0.1
) -> Float[Array, " batch"]:
    """Negative preference optimisation on the forget data.

    ``L[b] = (2/beta) softplus(beta (S_ref[b] - S[b])) = (2/beta) log(1 + (pi / pi_ref)^beta)``.

    Args:
        nll: ``S``, the sequences' negative log-likelihoods under the policy, nats (`sequence_nll`).
        ref_nll: ``S_ref``, the same under the reference; no gradient flows into it.
        beta: inverse temperature, above 0, in 1/nat. Towards 0 the gradient becomes that of gradient ascent.

    Returns:
        One value for each sequence, above 0.

    Raises:
        TypeError: an argument that is not floating.
        ValueError: shapes that differ, an empty batch, beta that is not positive.

    Source:
        arXiv:2404.05868, Section 3; Proposition 1 for the limit of gradient ascent.

    Example:
        >>> import jax.numpy as jnp
        >>> float(npo_loss(jnp.array([5.0]), jnp.array([5.0]), beta=2.0)[0]).__round__(4)
        0.6931
    """
    check_positive(beta=beta)
    nll, ref_nll = floating(nll=nll, ref_nll=ref_nll)
    return 2 / beta * jax.nn.softplus(beta * (jax.lax.stop_gradient(ref_nll) - nll))


def npo_weights(
    nll: Float[Array, " batch"], ref_nll: Float[Array, " batch"], beta: float | Array = 0.1
) -> Float[Array, " batch"]:
    """The weight of each example in NPO's gradient: what fades once an example is forgotten.

    ``W[b] = 2 sigmoid(beta (S_ref[b] - S[b])) = 2 pi^beta / (pi^beta + pi_ref^beta)``, with
    ``grad L_NPO = mean_b W[b] grad log pi(y_b | x_b)``.

    Args:
        nll: ``S``, the sequences' negative log-likelihoods under the policy, nats.
        ref_nll: ``S_ref``, the same under the reference.
        beta: inverse temperature, above 0, in 1/nat.

    Returns:
        Weights between 0 and 2; 1 where policy and reference agree, as at the first step.

    Raises:
        TypeError: an argument that is not floating.
        ValueError: shapes that differ, an empty batch, beta that is not positive.

    Source:
        arXiv:2404.05868, Section 3 (the adaptive smoothing weight).

    Example:
        >>> import jax.numpy as jnp
        >>> npo_weights(jnp.array([5.0, 500.0]), jnp.array([5.0, 5.0])).round(3).tolist()
        [1.0, 0.0]
    """
    check_positive(beta=beta)
    nll, ref_nll = floating(nll=nll, ref_nll=ref_nll)
    return 2 * jax.nn.sigmoid(beta * (ref_nll - nll))
