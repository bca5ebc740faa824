"""RMU: representation misdirection. A layer's states on the forget data are pushed to a random direction.

Implements Li et al., "The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning",
arXiv:2403.03218, Section 4: the forget and the retain loss on hidden states. The official code divides a
``[batch]`` array by a ``[batch, 1]`` one, so that its mean runs over all pairs of rows; ``own_length=False``
follows it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxneg.unlearning.arguments import check_positive


def rmu_loss(
    h: Float[Array, "batch tokens width"],
    target: Float[Array, "*#batch #tokens width"],
    mask: Bool[Array, "batch tokens"],
    *,
    own_length: bool = True,
    mean_tokens: Float[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Squared distance of hidden states to a target, the mean over a row's tokens and the width.

    ``L[b] = sum_t m[b,t] mean_D (h[b,t] - target)^2 / sum_t m[b,t]``.

    Args:
        h: hidden states of one layer, in any floating dtype.
        target: the direction `rmu_control_vector` on the forget data, the reference's hidden states on the
            retain data; no gradient flows into it.
        mask: the tokens that count.
        own_length: whether a row is divided by its own number of tokens; False divides all rows by the
            harmonic mean of theirs, which is what the official code's mean over pairs of rows amounts to.
        mean_tokens: that harmonic mean, where the rows are a part of a larger batch (`with_token_means`).

    Returns:
        One value for each sequence; 0 for a row of which no token counts, where ``own_length``.

    Raises:
        TypeError: hidden states or a target that are not floating.
        ValueError: shapes that do not fit, an empty batch.

    Source:
        arXiv:2403.03218, Section 4, the forget and the retain loss.

    Example:
        >>> rmu_loss(jnp.ones((1, 2, 4)), jnp.zeros(4), jnp.array([[True, False]])).tolist()
        [1.0]
    """
    for name, array in (("h", h), ("target", target)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name}: expected a floating dtype, got {array.dtype}")
    if h.ndim != 3 or h.size == 0:
        raise ValueError(f"h: expected the shape [batch, tokens, width], none of them 0, got {h.shape}")
    if mask.shape != h.shape[:2]:
        raise ValueError(f"mask: expected the shape [batch, tokens] of h, {h.shape[:2]}, got {mask.shape}")
    sizes = (1,) * (3 - target.ndim) + target.shape
    if target.ndim > 3 or any(size not in (1, full) for size, full in zip(sizes, h.shape, strict=True)):
        raise ValueError(f"target: expected a shape that broadcasts to h's, {h.shape}, got {target.shape}")
    wide = jnp.promote_types(h.dtype, jnp.float32)
    distance = jnp.mean((h.astype(wide) - jax.lax.stop_gradient(target).astype(wide)) ** 2, -1)
    total = jnp.sum(jnp.where(mask, distance, 0), -1)
    lengths = jnp.sum(mask, -1, dtype=wide)
    if own_length:
        return total / jnp.maximum(lengths, 1)
    return total / (harmonic_mean(lengths) if mean_tokens is None else mean_tokens)


def rmu_control_vector(key: PRNGKeyArray, width: int, steering: float = 2.0) -> Float[Array, " width"]:
    """The direction to which RMU pushes the forget data's states; drawn once and kept.

    ``c u / ||u||`` with ``u ~ U(0, 1)^width``.

    Args:
        key: random key.
        width: of the hidden states.
        steering: c, the vector's length, above 0 (20 in WMDP).

    Returns:
        A vector.

    Raises:
        ValueError: a width below 1, or steering that is not positive.

    Source:
        arXiv:2403.03218, Section 4.

    Example:
        >>> float(jnp.linalg.norm(rmu_control_vector(jax.random.key(0), 8))).__round__(4)
        2.0
    """
    check_positive(width=width, steering=steering)
    direction = jax.random.uniform(key, (width,))
    return steering * direction / jnp.linalg.norm(direction)


def harmonic_mean(lengths: Float[Array, " batch"]) -> Float[Array, ""]:
    """The harmonic mean; 0 where one of them is.

    Args:
        lengths: of the rows.

    Returns:
        A scalar.

    Example:
        >>> float(harmonic_mean(jnp.array([1.0, 3.0])))
        1.5
    """
    return 1 / jnp.mean(1 / lengths)
