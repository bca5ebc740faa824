"""GradNorm: loss weights are learned so that the tasks' weighted gradients have lengths that suit their pace.

Chen et al., arXiv:1711.02257, Equations 1 and 2, with weights that are a softmax, as LibMTL has them: they
stay positive and sum to T.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gradnorm_weights(s: Float[Array, " tasks"]) -> Float[Array, " tasks"]:
    """The weights of the losses.

    ``w = T softmax(s)``

    Args:
        s: ``[T]``, learned; equal numbers at first.

    Returns:
        Weights ``[T]`` that sum to T.

    Source:
        LibMTL, GradNorm; the paper renormalises w itself to sum to T.

    Example:
        >>> import jax.numpy as jnp
        >>> gradnorm_weights(jnp.ones(2)).tolist()
        [1.0, 1.0]
    """
    return s.shape[0] * jax.nn.softmax(s)


def gradnorm_loss(
    s: Float[Array, " tasks"],
    norms: Float[Array, " tasks"],
    L: Float[Array, " tasks"],
    L0: Float[Array, " tasks"],
    alpha: float = 1.5,
) -> Float[Array, ""]:
    """What the weights of the losses learn from.

    ``sum_i | w_i d_i - mean_j(w_j d_j) r_i^alpha |`` with the relative pace
    ``r_i = (L_i / L0_i) / mean_j(L_j / L0_j)``; the target is a constant, so that the derivative reaches s
    through ``w_i d_i`` alone.

    Args:
        s: ``[T]``, see `gradnorm_weights`.
        norms: d ``[T]``, the norms of the tasks' unweighted gradients, on the last shared layer in the paper.
        L: losses ``[T]``.
        L0: ``[T]``, the losses at the start, positive.
        alpha: how strongly slow tasks are favoured.

    Returns:
        A scalar; differentiate with respect to s.

    Raises:
        ValueError: shapes that differ.

    Source:
        arXiv:1711.02257, Equation 2.

    Example:
        >>> import jax.numpy as jnp
        >>> ones = jnp.ones(2)
        >>> float(gradnorm_loss(ones, jnp.array([1.0, 3.0]), ones, ones))
        2.0
    """
    for name, array in {"norms": norms, "L": L, "L0": L0}.items():
        if array.shape != s.shape:
            raise ValueError(f"{name}: expected shape {s.shape}, as s has it, got {array.shape}")
    weighted = gradnorm_weights(s) * jax.lax.stop_gradient(norms)
    pace = L / L0
    target = jnp.mean(weighted) * (pace / jnp.mean(pace)) ** alpha
    return jnp.sum(jnp.abs(weighted - jax.lax.stop_gradient(target)))
