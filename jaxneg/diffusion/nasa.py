"""Negative prompts inside cross-attention: NASA, and its successor NAG.

NASA: Nguyen et al. 2024, "SNOOPI: Supercharged One-step Diffusion Distillation with Proper Guidance",
arXiv:2412.02687 (third version, equations 7 to 9, Algorithm 1): what the negative prompt would bring into a
layer is taken away from what the positive one brings, before the out-projection. A model of one step can so
have a negative prompt, where a blend of two of its outputs breaks.

NAG: Chen et al. 2025, "Normalized Attention Guidance", arXiv:2505.21179, equations 7 to 10: extrapolation
whose length is bounded.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxneg.diffusion.arguments import at_least_float32, check_positive, over_trailing, same_shape

_Prompt = tuple[Array, Array, Array | None]

_ROWS = 1024
"""Image tokens whose attention weights are in memory at a time."""


def nasa_combine(
    z_pos: Float[Array, "batch ..."], z_neg: Float[Array, "batch ..."], alpha: float | Array
) -> Float[Array, "batch ..."]:
    """The attention output of the positive prompt less some of the negative one's.

    ``z_pos - alpha z_neg``, and not ``(1 + alpha) z_pos - alpha z_neg``

    Args:
        z_pos: attention output with the positive prompt, heads merged or not.
        z_neg: with the negative prompt, of the same shape.
        alpha: strength, one number or one for each example; 0 is the plain model.

    Returns:
        The combined output, at least in float32.

    Raises:
        TypeError: outputs that are not floating.
        ValueError: shapes that do not fit.

    Source:
        arXiv:2412.02687, equation 9.

    Example:
        >>> nasa_combine(jnp.ones((1, 2)), jnp.ones((1, 2)), 0.25).tolist()
        [[0.75, 0.75]]
    """
    z_pos, z_neg = _pair(z_pos, z_neg)
    return z_pos - over_trailing("alpha", alpha, z_pos) * z_neg


def nag_combine(
    z_pos: Float[Array, "batch ... width"],
    z_neg: Float[Array, "batch ... width"],
    scale: float | Array,
    tau: float | Array = 2.5,
    alpha: float | Array = 0.5,
) -> Float[Array, "batch ... width"]:
    """Extrapolation away from the negative prompt's attention output, bounded in length and blended.

    ``z' = z_pos + scale (z_pos - z_neg);  R = |z'|_1 / |z_pos|_1;
    alpha min(R, tau) / R z' + (1 - alpha) z_pos``, each token by itself

    Args:
        z_pos: attention output with the positive prompt, heads merged.
        z_neg: with the negative prompt, of the same shape.
        scale: strength, one number or one for each example.
        tau: how much longer than ``z_pos`` a token may become, in the 1-norm, positive.
        alpha: share of the extrapolation in the result.

    Returns:
        The combined output, at least in float32.

    Raises:
        TypeError: outputs that are not floating.
        ValueError: shapes that do not fit, a tau that is not positive.

    Source:
        arXiv:2505.21179, equations 7 to 10.

    Example:
        >>> nag_combine(jnp.ones((1, 2)), jnp.zeros((1, 2)), 3.0, tau=2.0, alpha=0.5).tolist()
        [[1.5, 1.5]]
    """
    check_positive(tau=tau)
    z_pos, z_neg = _pair(z_pos, z_neg)
    scale, tau, alpha = (
        over_trailing(name, x, z_pos) for name, x in (("scale", scale), ("tau", tau), ("alpha", alpha))
    )
    away = z_pos + scale * (z_pos - z_neg)
    length, allowed = (jnp.abs(z).sum(-1, keepdims=True) for z in (away, z_pos))
    # min(R, tau) / R without the quotient R, which a token of zeros does not have.
    shrink = jnp.where(length > tau * allowed, tau * allowed / jnp.where(length > 0, length, 1), 1)
    return alpha * shrink * away + (1 - alpha) * z_pos


def paired_attention(
    q: Float[Array, "batch tokens heads size"],
    k_pos: Float[Array, "batch pos heads size"],
    v_pos: Float[Array, "batch pos heads size"],
    k_neg: Float[Array, "batch neg heads size"],
    v_neg: Float[Array, "batch neg heads size"],
    *,
    mask_pos: Bool[Array, "batch pos"] | None = None,
    mask_neg: Bool[Array, "batch neg"] | None = None,
) -> tuple[Float[Array, "batch tokens heads size"], Float[Array, "batch tokens heads size"]]:
    """Cross-attention of the same queries to two prompts, which may differ in length.

    ``softmax(q k_pos^T / sqrt(size)) v_pos``, ``softmax(q k_neg^T / sqrt(size)) v_neg``

    Args:
        q: queries of the image tokens; where a layer norms queries and keys, both prompts' keys are normed.
        k_pos: keys of the positive prompt.
        v_pos: its values.
        k_neg: keys of the negative prompt, by the same projection.
        v_neg: its values.
        mask_pos: true for tokens of the positive prompt that are no padding; None: all.
        mask_neg: likewise of the negative prompt.

    Returns:
        Both outputs, in the dtype of the values; `nasa_combine` and `nag_combine` combine them. A prompt
        without any token gives zeros.

    Raises:
        TypeError: arrays that are not floating, masks that are not boolean.
        ValueError: shapes that do not fit.

    Source:
        arXiv:2412.02687, equations 7 and 8.

    Example:
        >>> q, k = jnp.ones((1, 9, 2, 4)), jnp.ones((1, 3, 2, 4))
        >>> [z.shape for z in paired_attention(q, k, k, k, 2 * k)]
        [(1, 9, 2, 4), (1, 9, 2, 4)]
    """
    pos = k_pos, v_pos, _checked("pos", q, k_pos, v_pos, mask_pos)
    neg = k_neg, v_neg, _checked("neg", q, k_neg, v_neg, mask_neg)
    z_pos, z_neg = _attend(q, (pos, neg), lambda z_pos, z_neg: (z_pos, z_neg))
    return z_pos.astype(v_pos.dtype), z_neg.astype(v_neg.dtype)


def nasa_cross_attention(
    q: Float[Array, "batch tokens heads size"],
    k_pos: Float[Array, "batch pos heads size"],
    v_pos: Float[Array, "batch pos heads size"],
    k_neg: Float[Array, "batch neg heads size"],
    v_neg: Float[Array, "batch neg heads size"],
    alpha: float | Array,
    *,
    mask_pos: Bool[Array, "batch pos"] | None = None,
    mask_neg: Bool[Array, "batch neg"] | None = None,
) -> Float[Array, "batch tokens heads size"]:
    """Cross-attention to the positive prompt less alpha times that to the negative prompt.

    ``softmax(q k_pos^T / sqrt(size)) v_pos - alpha softmax(q k_neg^T / sqrt(size)) v_neg``

    Args:
        q: queries of the image tokens.
        k_pos: keys of the positive prompt.
        v_pos: its values.
        k_neg: keys of the negative prompt, by the same projection; its length may differ.
        v_neg: its values.
        alpha: strength, one number or one for each example; 0 is the plain model. (The paper: 0.1 for models
            from SD 1.5, 0.2 from SD 2.1, 0.5 from PixArt-alpha.)
        mask_pos: true for tokens of the positive prompt that are no padding; None: all.
        mask_neg: likewise of the negative prompt.

    Returns:
        What goes, heads merged, into the layer's out-projection; in the dtype of the values.

    Raises:
        TypeError: arrays that are not floating, masks that are not boolean.
        ValueError: shapes that do not fit.

    Source:
        arXiv:2412.02687, equations 7 to 9, Algorithm 1.

    Example:
        >>> q, k = jnp.ones((1, 9, 2, 4)), jnp.ones((1, 3, 2, 4))
        >>> nasa_cross_attention(q, k, k, k, 2 * k, 0.25)[0, 0, 0].round(3).tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    pos = k_pos, v_pos, _checked("pos", q, k_pos, v_pos, mask_pos)
    neg = k_neg, v_neg, _checked("neg", q, k_neg, v_neg, mask_neg)
    strength = over_trailing("alpha", alpha, at_least_float32("q", q))
    return _attend(q, (pos, neg), lambda z_pos, z_neg: z_pos - strength * z_neg).astype(v_pos.dtype)


def _attend(q: Array, prompts: Sequence[_Prompt], combine: Callable[..., Any]) -> Any:
    """``combine`` of the prompts' outputs ``[B, H, N, d]``, block after block, as ``[B, N, H, d]``."""
    # With the heads in front, once, each block's products are plain ones; and keys are fewer than scores.
    scale = q.shape[-1] ** -0.5
    prompts = [(k.swapaxes(1, 2) * scale, v.swapaxes(1, 2), mask) for k, v, mask in prompts]
    blocks = []
    for start in range(0, q.shape[1], _ROWS):
        own = q[:, start : start + _ROWS].swapaxes(1, 2)
        combined = combine(*(_output(own, *prompt) for prompt in prompts))
        blocks.append(jax.tree.map(lambda z: z.swapaxes(1, 2), combined))
    return jax.tree.map(lambda *z: jnp.concatenate(z, axis=1), *blocks)


def _output(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    """``softmax(q k^T) v`` of ``[B, H, N, d]``; it is the outputs that are divided by the sum."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=wide)
    if mask is not None:
        # A finite number, so that a prompt of padding alone gives no NaN.
        scores = jnp.where(mask[:, None, None], scores, -1e30)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    if mask is not None:
        weights = jnp.where(mask[:, None, None], weights, 0)
    # The largest weight is 1, so that the sum is smaller for a prompt of padding alone.
    total = jnp.maximum(weights.sum(-1, keepdims=True), 1)
    return jnp.einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v, preferred_element_type=wide) / total


def _pair(z_pos: Array, z_neg: Array) -> tuple[Array, Array]:
    z_pos, z_neg = at_least_float32("z_pos", z_pos), at_least_float32("z_neg", z_neg)
    same_shape("z_neg", z_neg, "z_pos", z_pos)
    return z_pos, z_neg


def _checked(side: str, q: Array, k: Array, v: Array, mask: Array | None) -> Array | None:
    """The mask, once queries, keys and values fit each other."""
    for name, x in (("q", q), (f"k_{side}", k), (f"v_{side}", v)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{name}: expected a floating dtype, got {x.dtype}")
        if x.ndim != 4:
            raise ValueError(f"{name}: expected [batch, tokens, heads, size], got shape {x.shape}")
    batch, _, heads, size = q.shape
    if (k.shape[0], *k.shape[2:]) != (batch, heads, size):
        raise ValueError(
            f"k_{side}: expected {batch} examples with {heads} heads of size {size}, got shape {k.shape}"
        )
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v_{side}: expected the tokens and heads of k_{side}, {k.shape[:3]}, got {v.shape}")
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"mask_{side}: expected booleans, got dtype {mask.dtype}")
    if mask.shape != k.shape[:2]:
        raise ValueError(f"mask_{side}: expected shape {k.shape[:2]}, got {mask.shape}")
    return mask
