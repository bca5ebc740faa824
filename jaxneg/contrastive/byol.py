"""BYOL: predictions of one view must meet the other view's projection by a slowly moving target network.

J.-B. Grill et al. 2020, "Bootstrap your own latent", arXiv:2006.07733, Equation 2. The target moves by
`jaxneg.contrastive.ema_update`, its momentum by `jaxneg.contrastive.cosine_momentum` with base 0.996.
"""

import jax
from jaxtyping import Array, Float

from jaxneg.contrastive.cosine import cosine_similarity
from jaxneg.contrastive.simsiam import both_directions


def byol_loss(
    p1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    p2: Float[Array, "batch dim"] | None = None,
    z1: Float[Array, "batch dim"] | None = None,
) -> Float[Array, " batch"]:
    """Squared distance of normalised predictions and targets, of which the latter get no gradient.

    ``l = (2 - 2 cos(p1, sg z2)) + (2 - 2 cos(p2, sg z1))``; without p2 and z1 the first alone

    Args:
        p1: predictions from the first views.
        z2: the target network's projections of the second views.
        p2: predictions from the second views.
        z1: the target network's projections of the first views.

    Returns:
        One loss for each image.

    Raises:
        ValueError: shapes that differ, or p2 without z1.
        TypeError: arrays that are not floating.

    Source:
        arXiv:2006.07733, Equation 2.

    Example:
        >>> import jax.numpy as jnp
        >>> byol_loss(jnp.eye(2), -jnp.eye(2)).tolist()
        [4.0, 4.0]
    """
    pairs = both_directions(p1, z2, p2, z1)
    return sum(2 - 2 * cosine_similarity(p, jax.lax.stop_gradient(z)) for p, z in pairs)  # pyright: ignore[reportReturnType]
