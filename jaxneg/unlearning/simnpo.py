"""SimNPO: negative preference optimisation without a reference, on length-normalised likelihoods.

Implements Fan et al., "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning",
arXiv:2410.07163, the SimNPO loss. The paper writes ``(beta/|y|) S - gamma``; the official code subtracts its
margin delta inside the product, so gamma = beta delta. The code is followed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxneg.unlearning.arguments import check_positive, floating


def simnpo_loss(
    nll: Float[Array, " batch"],
    n_tokens: Int[Array, " batch"],
    beta: float | Array = 4.5,
    delta: float = 0.0,
) -> Float[Array, " batch"]:
    """SimNPO on the forget data.

    ``L[b] = -(2/beta) log sigmoid(beta (S[b]/n[b] - delta))``.

    Args:
        nll: ``S``, the sequences' negative log-likelihoods under the policy, nats (`sequence_nll`).
        n_tokens: ``n``, the lengths of the answers (`answer_lengths`: the official code counts the unshifted
            row).
        beta: inverse temperature, above 0, in tokens/nat.
        delta: margin, nats per token.

    Returns:
        One value for each sequence, above 0. A sequence without tokens counts as S/n = 0.

    Raises:
        TypeError: nll that is not floating.
        ValueError: shapes that differ, an empty batch, beta that is not positive.

    Source:
        arXiv:2410.07163 (the SimNPO loss); margin as in the official code.

    Example:
        >>> float(simnpo_loss(jnp.array([3.0]), jnp.array([2]), beta=2.0, delta=1.5)[0]).__round__(4)
        0.6931
    """
    check_positive(beta=beta)
    (nll,) = floating(nll=nll)
    if jnp.shape(n_tokens) != nll.shape:
        raise ValueError(f"n_tokens: expected the shape of nll, {nll.shape}, got {jnp.shape(n_tokens)}")
    return 2 / beta * jax.nn.softplus(-beta * (nll / jnp.maximum(n_tokens, 1) - delta))
