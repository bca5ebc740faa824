"""Direct preference optimisation towards an alternate answer (IdkDPO, AltPO).

Implements the DPO baseline of Zhang et al., arXiv:2404.05868, equation (2), with the forget answer as the
rejected one (Rafailov et al., arXiv:2305.18290; Mekala et al., arXiv:2409.13474). The official code
multiplies by 2/beta where the paper's equation has 1/beta; the code is followed, and ``factor`` says which.
"""

import jax
from jaxtyping import Array, Float

from jaxneg.unlearning.arguments import check_positive, floating


def dpo_loss(
    nll_w: Float[Array, " batch"],
    ref_w: Float[Array, " batch"],
    nll_l: Float[Array, " batch"],
    ref_l: Float[Array, " batch"],
    beta: float | Array = 0.1,
    factor: float = 2.0,
) -> Float[Array, " batch"]:
    """Direct preference optimisation of a wanted answer w over the forget answer l.

    ``L[b] = (factor/beta) softplus(-beta ((S_ref^w - S^w) - (S_ref^l - S^l)))``.

    Args:
        nll_w: ``S^w``, negative log-likelihoods of the wanted answers (a refusal, say) under the policy,
            nats.
        ref_w: ``S_ref^w``, the same under the reference; no gradient flows into it.
        nll_l: ``S^l``, negative log-likelihoods of the forget answers under the policy, nats.
        ref_l: ``S_ref^l``, the same under the reference; no gradient flows into it.
        beta: inverse temperature, above 0, in 1/nat.
        factor: 2 as in the official code, 1 as in the paper's equation.

    Returns:
        One value for each pair, above 0.

    Raises:
        TypeError: an argument that is not floating.
        ValueError: shapes that differ, an empty batch, beta or factor that is not positive.

    Source:
        arXiv:2404.05868, equation (2).

    Example:
        >>> import jax.numpy as jnp
        >>> float(dpo_loss(*jnp.ones((4, 1)), beta=2.0)[0]).__round__(4)
        0.6931
    """
    check_positive(beta=beta, factor=factor)
    nll_w, ref_w, nll_l, ref_l = floating(nll_w=nll_w, ref_w=ref_w, nll_l=nll_l, ref_l=ref_l)
    ref_w, ref_l = jax.lax.stop_gradient((ref_w, ref_l))
    return factor / beta * jax.nn.softplus(-beta * ((ref_w - nll_w) - (ref_l - nll_l)))
