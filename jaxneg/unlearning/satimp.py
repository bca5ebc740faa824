"""SatImp: tokens weighed by saturation (how likely they still are) and importance (how unlikely they are).

Implements Yang et al., "Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning", arXiv:2505.11953,
the combined weight.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxneg.unlearning.arguments import check_positive
from jaxneg.unlearning.retain import ce_loss
from jaxneg.unlearning.sequence import token_nll


def satimp_loss(
    logits: Float[Array, "batch tokens vocab"],
    labels: Int[Array, "batch tokens"],
    beta1: float | Array = 5.0,
    beta2: float | Array = 1.0,
    mean_tokens: Float[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Gradient ascent weighed by saturation and importance.

    ``L[b] = -sum_t p[b,t]^beta1 (1 - p[b,t])^beta2 nll[b,t] / mean_b n[b]`` with ``p = exp(-nll)`` held
    constant, whose mean over the batch is the mean over all its tokens.

    Args:
        logits: the policy's next-token logits in any floating dtype.
        labels: token ids, -100 where a token does not count.
        beta1: exponent of the saturation, above 0.
        beta2: exponent of the importance, above 0.
        mean_tokens: tokens in a row on average, where the rows are a part of a larger batch
            (`with_token_means`).

    Returns:
        One value for each sequence, at most 0. NaN if no token counts.

    Raises:
        TypeError: logits that are not floating, labels that are not integers.
        ValueError: shapes that do not match, an empty batch, an exponent that is not positive.

    Source:
        arXiv:2505.11953 (the SatImp weight); defaults of the official code.

    Example:
        >>> float(satimp_loss(jnp.zeros((1, 2, 2)), jnp.array([[0, 1]]), 1.0, 1.0)[0] / jnp.log(2))
        -0.25
    """
    check_positive(beta1=beta1, beta2=beta2)
    nll, mask = token_nll(logits, labels)
    weights = jax.lax.stop_gradient(jnp.exp(-beta1 * nll) * (-jnp.expm1(-nll)) ** beta2)
    return -ce_loss(jnp.sum(weights * nll, -1), jnp.sum(mask, -1), mean_tokens)
