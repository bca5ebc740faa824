"""SimSiam: a prediction of one view must point where the other view's projection does; no negatives.

X. Chen and K. He 2021, "Exploring simple Siamese representation learning", arXiv:2011.10566, Equation 4.
"""

import jax
from jaxtyping import Array, Float

from jaxneg.contrastive.arguments import alike
from jaxneg.contrastive.cosine import cosine_similarity


def simsiam_loss(
    p1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    p2: Float[Array, "batch dim"] | None = None,
    z1: Float[Array, "batch dim"] | None = None,
) -> Float[Array, " batch"]:
    """Negative cosine of predictions and projections, of which the latter get no gradient.

    ``l = -(cos(p1, sg z2) + cos(p2, sg z1)) / 2``; without p2 and z1: ``-cos(p1, sg z2)``

    Args:
        p1: predictions from the first views.
        z2: projections of the second views.
        p2: predictions from the second views.
        z1: projections of the first views.

    Returns:
        One loss for each image.

    Raises:
        ValueError: shapes that differ, or p2 without z1.
        TypeError: arrays that are not floating.

    Source:
        arXiv:2011.10566, Equation 4.

    Example:
        >>> import jax.numpy as jnp
        >>> simsiam_loss(jnp.eye(2), jnp.eye(2)).tolist()
        [-1.0, -1.0]
    """
    pairs = both_directions(p1, z2, p2, z1)
    similarities = [cosine_similarity(p, jax.lax.stop_gradient(z)) for p, z in pairs]
    return -sum(similarities[1:], similarities[0]) / len(pairs)


def both_directions(p1: Array, z2: Array, p2: Array | None, z1: Array | None) -> list[tuple[Array, Array]]:
    """The pairs of prediction and target: both, or the first where the second is not given."""
    if p2 is None and z1 is None:
        p1, z2 = alike("batch dim", p1=p1, z2=z2)
        return [(p1, z2)]
    if p2 is None or z1 is None:
        missing, given = ("p2", "z1") if p2 is None else ("z1", "p2")
        raise ValueError(f"{missing}: expected an array, since {given} is given, got None")
    p1, z2, p2, z1 = alike("batch dim", p1=p1, z2=z2, p2=p2, z1=z1)
    return [(p1, z2), (p2, z1)]
