"""Kahneman-Tversky optimisation with the forget answers as the undesired ones.

Implements the KTO baseline of Zhang et al., arXiv:2404.05868, equation (18) of the appendix (Ethayarajh et
al., arXiv:2402.01306), both forms of the official code. The code neither multiplies the baseline z by beta
nor clamps it at zero, as the papers do; the code is followed, ``scale_z`` and ``clamp_z`` follow the papers.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.unlearning.arguments import check_positive, floating


def kto_loss(
    nll: Float[Array, " batch"],
    ref: Float[Array, " batch"],
    z: Float[Array, ""] | float,
    beta: float | Array = 0.1,
    kind: Literal["logsigmoid", "sigmoid"] = "logsigmoid",
    *,
    scale_z: bool = False,
    clamp_z: bool = False,
) -> Float[Array, " batch"]:
    """Kahneman-Tversky optimisation on the forget data.

    ``L[b] = 1 - (2/beta) log sigmoid(z - beta (S_ref[b] - S[b]))``, or the same without the logarithm.

    Args:
        nll: ``S``, negative log-likelihoods of the forget answers under the policy, nats.
        ref: ``S_ref``, the same under the reference; no gradient flows into it.
        z: the baseline, a scalar (`kto_baseline`); no gradient flows into it.
        beta: inverse temperature, above 0, in 1/nat.
        kind: "logsigmoid" or "sigmoid".
        scale_z: multiplies z by beta.
        clamp_z: raises a negative z to 0.

    Returns:
        One value for each sequence.

    Raises:
        TypeError: an argument that is not floating.
        ValueError: shapes that differ, an empty batch, a z that is not scalar, beta that is not positive, a
            kind that does not exist.

    Source:
        arXiv:2404.05868, equation (18).

    Example:
        >>> float(kto_loss(jnp.array([1.0]), jnp.array([1.0]), z=0.0, beta=2.0, kind="sigmoid")[0])
        0.5
    """
    check_positive(beta=beta)
    nll, ref = floating(nll=nll, ref=ref)
    if kind not in ("logsigmoid", "sigmoid"):
        raise ValueError(f"kind: expected 'logsigmoid' or 'sigmoid', got {kind!r}")
    if jnp.shape(z) != ():
        raise ValueError(f"z: expected a scalar, got shape {jnp.shape(z)}")
    ref, z = jax.lax.stop_gradient((ref, z))
    if clamp_z:
        z = jnp.maximum(z, 0)
    if scale_z:
        z = beta * z
    value = jax.nn.log_sigmoid if kind == "logsigmoid" else jax.nn.sigmoid
    return 1 - 2 / beta * value(z - beta * (ref - nll))


def kto_baseline(nll: Float[Array, " batch"], ref: Float[Array, " batch"]) -> Float[Array, ""]:
    """KTO's baseline: how far the policy has moved on answers that it should not forget.

    ``z = mean_b(S_ref[b] - S[b])``, without gradient; the official code takes the refusals.

    Args:
        nll: ``S``, the answers' negative log-likelihoods under the policy, nats.
        ref: ``S_ref``, the same under the reference.

    Returns:
        A scalar, nats.

    Raises:
        TypeError: an argument that is not floating.
        ValueError: shapes that differ, an empty batch.

    Source:
        arXiv:2404.05868, equation (18).

    Example:
        >>> float(kto_baseline(jnp.array([1.0, 2.0]), jnp.array([2.0, 2.0])))
        0.5
    """
    nll, ref = floating(nll=nll, ref=ref)
    return jax.lax.stop_gradient(jnp.mean(ref - nll))
