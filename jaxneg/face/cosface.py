"""CosFace and NormFace: a margin on the cosine, or none.

Papers: H. Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", arXiv:1801.09414,
equation 4; F. Wang et al., "NormFace", arXiv:1704.06369, the same without a margin.
"""

from jaxtyping import Array, Float

from jaxneg.face.arguments import check_range, wide


def cosface_cosine(cosine: Float[Array, "..."], m: float = 0.5) -> Float[Array, "..."]:
    """The cosine at the true class, less a margin.

    ``cos(theta) - m``; NormFace is ``m = 0``

    Args:
        cosine: between examples and the centres of their classes.
        m: margin, from 0 to 1. The UNPG authors take 0.5, the CosFace paper 0.35.

    Returns:
        What stands in for the cosine, before scaling.

    Raises:
        TypeError: a cosine that is not floating.
        ValueError: a margin outside 0..1.

    Source:
        arXiv:1801.09414, equation 4.

    Example:
        >>> import jax.numpy as jnp
        >>> float(cosface_cosine(jnp.array(0.75), 0.5))
        0.25
    """
    check_range("m", m, 0, 1)
    return wide("cosine", cosine) - m
