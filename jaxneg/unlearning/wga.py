"""WGA: gradient ascent whose tokens weigh less, the less likely they are already.

Implements Wang et al., "Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond",
arXiv:2502.19301, the weighted gradient ascent loss.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxneg.unlearning.arguments import check_positive
from jaxneg.unlearning.retain import ce_loss
from jaxneg.unlearning.sequence import token_nll


def wga_loss(
    logits: Float[Array, "batch tokens vocab"],
    labels: Int[Array, "batch tokens"],
    beta: float | Array = 1.0,
    mean_tokens: Float[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Weighted gradient ascent on the forget data.

    ``L[b] = -sum_t p[b,t]^beta nll[b,t] / mean_b n[b]`` with ``p = exp(-nll)`` held constant, whose mean over
    the batch is the mean over all its tokens.

    Args:
        logits: the policy's next-token logits in any floating dtype.
        labels: token ids, -100 where a token does not count.
        beta: how fast a token's weight falls with its likelihood, above 0.
        mean_tokens: tokens in a row on average, where the rows are a part of a larger batch
            (`with_token_means`).

    Returns:
        One value for each sequence, at most 0. NaN if no token counts.

    Raises:
        TypeError: logits that are not floating, labels that are not integers.
        ValueError: shapes that do not match, an empty batch, beta that is not positive.

    Source:
        arXiv:2502.19301 (the WGA objective).

    Example:
        >>> float(wga_loss(jnp.zeros((1, 2, 4)), jnp.array([[0, 1]]))[0] / jnp.log(4))  # p = 1/4
        -0.25
    """
    check_positive(beta=beta)
    nll, mask = token_nll(logits, labels)
    weights = jax.lax.stop_gradient(jnp.exp(-beta * nll))
    return -ce_loss(jnp.sum(weights * nll, -1), jnp.sum(mask, -1), mean_tokens)
