"""Perp-Neg: negative prompts that can only push sideways.

Implements Armandpour et al., "Re-imagine the Negative Prompt Algorithm: Transform 2D Diffusion into 3D,
alleviate Janus problem and Beyond", arXiv:2304.04968, Section 4, its rivals (classifier-free guidance, the
plain negative prompt, compositional energy models), and the guided denoiser for the samplers.

The rules are linear and equivariant to scale, so what is guided may be the noise, x0 or v. Everything is
summed in float32 or wider and given back in the type that came.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from jaxneg.diffusion.arguments import (
    Denoise,
    at_least_float32,
    check_range,
    one_of,
    over_trailing,
    same_shape,
)
from jaxneg.diffusion.conditions import null_like
from jaxneg.diffusion.guidance import guided_noise

# Weights of the further prompts, ``[K]`` or ``[K, batch]``.
Weights = ArrayLike | Sequence[float]


def perpendicular_component(
    a: Float[Array, "batch *shape"],
    b: Float[Array, "batch *shape"],
    *,
    eps: float = 1e-6,
    batch_axes: int = 1,
) -> Float[Array, "batch *shape"]:
    """What is left of ``a`` without its component along ``b``, for each sample.

    ``perp(a, b) = a - <a, b> / max(<b, b>, eps) b``

    Args:
        a: the direction to be changed.
        b: the direction to be perpendicular to; where it is zero, ``a`` stays as it is.
        eps: floor of the squared norm of ``b``.
        batch_axes: number of leading axes that count samples; the inner products are over all others.

    Returns:
        The component, of the type of ``a``.

    Raises:
        TypeError: an array that is not floating.
        ValueError: shapes that differ, a negative eps, or batch_axes that ``a`` does not have.

    Source:
        arXiv:2304.04968, Section 4; the floor is that of stable-dreamfusion and of threestudio.

    Example:
        >>> a, b = jnp.array([[3.0, 4.0]]), jnp.array([[2.0, 0.0]])
        >>> perpendicular_component(a, b).tolist()
        [[0.0, 4.0]]
    """
    check_range("eps", eps, 0, np.inf)
    wide, along = at_least_float32("a", a), at_least_float32("b", b)
    same_shape("b", along, "a", wide)
    check_range("batch_axes", batch_axes, 0, wide.ndim)
    return _perpendicular(wide, along, eps, batch_axes).astype(_kind(a))


def perp_neg_guidance(
    eps_uncond: Float[Array, "batch *shape"],
    eps_pos: Float[Array, "batch *shape"],
    eps_neg: Float[Array, "prompts batch *shape"],
    weights: Weights,
    scale: ArrayLike,
    *,
    eps: float = 1e-6,
    compat: Literal["official2d", "comfy"] | None = None,
    orthogonalize_negatives: bool = False,
) -> Float[Array, "batch *shape"]:
    """Guidance by a prompt and by further prompts, each made perpendicular to the first.

    ``eps_u + s (d_p + sum_k w_k perp(d_k, d_p))`` with ``d = eps - eps_u``. Along ``d_p`` the result is that
    of classifier-free guidance, whatever the weights; a further prompt that equals the first changes nothing.

    Args:
        eps_uncond: prediction for the empty prompt.
        eps_pos: prediction for the main prompt, whose weight is 1.
        eps_neg: predictions for K further prompts, K may be 0.
        weights: ``[K]`` or ``[K, batch]``; negative for what is unwanted, positive for what is to be added.
        scale: guidance scale ``s``, one number or ``[batch]``.
        eps: floor of ``<d_p, d_p>``.
        compat: ``"official2d"``: the pairing of the authors' 2D code, where ``weights`` has one entry more,
            the main prompt's first, positive prompts come before negative ones, and each positive one takes
            the weight of the one before it. ``"comfy"``: ComfyUI's, whose inner products run over the whole
            batch and so couple its samples. None: neither.
        orthogonalize_negatives: make each further prompt perpendicular to those before it too, which the
            paper does not.

    Returns:
        The guided prediction.

    Raises:
        TypeError: an array that is not floating.
        ValueError: shapes that do not fit, a negative eps, or an unknown compat.

    Source:
        arXiv:2304.04968, Section 4.

    Example:
        >>> uncond, pos, neg = jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]), jnp.array([[[1.0, 1.0]]])
        >>> perp_neg_guidance(uncond, pos, neg, [-1.5], 2.0).tolist()
        [[2.0, -3.0]]
    """
    check_range("eps", eps, 0, np.inf)
    if compat is not None:
        one_of("compat", compat, ("official2d", "comfy"))
    batch_axes = 0 if compat == "comfy" else 1
    uncond, pos, neg, w, s = _prompts(eps_uncond, eps_pos, eps_neg, weights, scale, compat == "official2d")
    if compat == "official2d":
        w = jnp.where(w[1:] > 0, w[:-1], -jnp.abs(w[1:]))

    d_pos = pos - uncond
    # One by one, not as an array of prompts: so XLA fuses each with its sums, and nothing is written out.
    sideways: list[Array] = []
    for each in neg:
        direction = _perpendicular(each - uncond, d_pos, eps, batch_axes)
        for other in sideways if orthogonalize_negatives else ():
            direction = _perpendicular(direction, other, eps, batch_axes)
        sideways.append(direction)
    total = sum((w[k] * direction for k, direction in enumerate(sideways)), d_pos)
    return (uncond + s * total).astype(_kind(eps_uncond))


def cfg_guidance(
    eps_uncond: Float[Array, "batch *shape"], eps_pos: Float[Array, "batch *shape"], scale: ArrayLike
) -> Float[Array, "batch *shape"]:
    """Classifier-free guidance.

    ``eps_u + s (eps_p - eps_u)``

    Args:
        eps_uncond: prediction for the empty prompt.
        eps_pos: prediction for the prompt.
        scale: guidance scale ``s``, one number or ``[batch]``.

    Returns:
        The guided prediction.

    Raises:
        TypeError: an array that is not floating.
        ValueError: shapes that do not fit.

    Source:
        Ho and Salimans, arXiv:2207.12598, equation 6.

    Example:
        >>> cfg_guidance(jnp.zeros((1, 2)), jnp.ones((1, 2)), 3.0).tolist()
        [[3.0, 3.0]]
    """
    return _away_from("eps_uncond", eps_uncond, eps_pos, scale)


def plain_negative_guidance(
    eps_neg: Float[Array, "batch *shape"], eps_pos: Float[Array, "batch *shape"], scale: ArrayLike
) -> Float[Array, "batch *shape"]:
    """The negative prompt of most image tools: it stands in for the empty prompt.

    ``eps_n + s (eps_p - eps_n)``

    Args:
        eps_neg: prediction for the negative prompt.
        eps_pos: prediction for the prompt.
        scale: guidance scale ``s``, one number or ``[batch]``.

    Returns:
        The guided prediction.

    Raises:
        TypeError: an array that is not floating.
        ValueError: shapes that do not fit.

    Source:
        A baseline of arXiv:2304.04968, as diffusers' pipelines have it.

    Example:
        >>> plain_negative_guidance(jnp.ones((1, 2)), jnp.zeros((1, 2)), 3.0).tolist()
        [[-2.0, -2.0]]
    """
    return _away_from("eps_neg", eps_neg, eps_pos, scale)


def cebm_guidance(
    eps_uncond: Float[Array, "batch *shape"],
    eps_pos: Float[Array, "batch *shape"],
    eps_neg: Float[Array, "prompts batch *shape"],
    weights: Weights,
    scale: ArrayLike,
    *,
    normalize: bool = False,
) -> Float[Array, "batch *shape"]:
    """Composition of energy-based models: every prompt's direction with its weight, overlaps included.

    ``eps_u + s (d_p + sum_k w_k d_k)`` with ``d = eps - eps_u``. With ``normalize``, ``n + s (p - n)`` of the
    weighted means over the prompts of positive weight, the main one among them with weight 1, and over those
    of negative weight; where there are none of these, the empty prompt's.

    Args:
        eps_uncond: prediction for the empty prompt.
        eps_pos: prediction for the main prompt, whose weight is 1.
        eps_neg: predictions for K further prompts, K may be 0.
        weights: ``[K]`` or ``[K, batch]``; negative for what is unwanted, positive for what is to be added.
        scale: guidance scale ``s``, one number or ``[batch]``.
        normalize: as the authors' script does it; the weight of a single negative prompt then has no effect.

    Returns:
        The guided prediction.

    Raises:
        TypeError: an array that is not floating.
        ValueError: shapes that do not fit.

    Source:
        Liu et al., arXiv:2206.01714, Section 4.2; the baseline of arXiv:2304.04968.

    Example:
        >>> uncond, pos, neg = jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]), jnp.array([[[1.0, 1.0]]])
        >>> cebm_guidance(uncond, pos, neg, [-1.5], 2.0).tolist()
        [[-1.0, -3.0]]
    """
    uncond, pos, neg, w, s = _prompts(eps_uncond, eps_pos, eps_neg, weights, scale)
    if normalize:
        added, removed = jnp.maximum(w, 0), jnp.maximum(-w, 0)
        total = removed.sum(0)
        mean = (removed * neg).sum(0) / jnp.where(total > 0, total, 1)
        base = jnp.where(total > 0, mean, uncond)
        guided = base + s * ((pos + (added * neg).sum(0)) / (1 + added.sum(0)) - base)
    else:
        total = sum((w[k] * (each - uncond) for k, each in enumerate(neg)), pos - uncond)
        guided = uncond + s * total
    return guided.astype(_kind(eps_uncond))


def guide_perp_neg(
    denoise: Denoise,
    *,
    scale: float | Array,
    null_cond: Any,
    neg_cond: Any,
    weights: Weights,
    interval: tuple[float, float] | None = None,
    rescale: float | Array = 0.0,
    eps: float = 1e-6,
    orthogonalize_negatives: bool = False,
) -> Denoise:
    """The denoiser that Perp-Neg guides, for every sampler.

    ``denoise'(x, t, c) = perp_neg_guidance(denoise(x, t, null), denoise(x, t, c), denoise(x, t, neg), w, s)``

    All prompts of a step are one call of the network, on a batch that is as many times larger. What has no
    part in the result, by numbers known at trace time, is not computed: further prompts of weight 0; all but
    the empty prompt for scale 0; the empty prompt for scale 1 where no further prompt is left.

    Args:
        denoise: ``(x [batch, *shape], t [batch], cond) -> prediction``.
        scale: guidance scale, one number or ``[batch]``.
        null_cond: the empty prompt, a tree whose leaves broadcast to those of ``cond``.
        neg_cond: K further prompts, a tree of arrays ``[K, ...]`` whose K parts broadcast likewise.
        weights: ``[K]`` or ``[K, batch]``; negative for what is unwanted.
        interval: lowest and highest timestep at which to guide; elsewhere the main prompt's prediction is
            taken as it is. None: everywhere.
        rescale: as in `guided_noise`, towards the standard deviation of the main prompt's prediction.
        eps: as in `perp_neg_guidance`.
        orthogonalize_negatives: as in `perp_neg_guidance`.

    Returns:
        ``(x, t, cond) -> guided prediction``; ``cond`` holds the main prompts, arrays ``[batch, ...]``.

    Raises:
        ValueError: a negative eps; when called: weights that are not one for each further prompt, conditions
            that do not fit.

    Source:
        arXiv:2304.04968, Section 4; the interval is that of Kynkäänniemi et al., arXiv:2404.07724.

    Example:
        >>> null, neg = jnp.zeros(2), jnp.ones((1, 2))
        >>> prompts = {"null_cond": null, "neg_cond": neg, "weights": [-1.5]}
        >>> guided = guide_perp_neg(lambda x, t, cond: cond, scale=2.0, **prompts)
        >>> guided(jnp.zeros((1, 2)), jnp.zeros(1, int), jnp.array([[1.0, 0.0]])).tolist()
        [[2.0, -3.0]]
    """
    check_range("eps", eps, 0, np.inf)
    known = isinstance(scale, int | float)

    def guided(x: Array, t: Array, cond: Any) -> Array:
        null = null_like(null_cond, cond)
        if known and scale == 0 and interval is None:
            return denoise(x, t, null)
        further, used = further_prompts(neg_cond, weights, cond)
        if known and scale == 1 and not further:
            return denoise(x, t, cond)
        predictions = in_one_call(denoise, x, t, [null, cond, *further])
        result = perp_neg_guidance(
            predictions[0],
            predictions[1],
            predictions[2:],
            used,
            scale,
            eps=eps,
            orthogonalize_negatives=orthogonalize_negatives,
        )
        # With scale 0 the result is the prediction to be rescaled.
        result = guided_noise(predictions[1], result, 0.0, rescale).astype(result.dtype)
        if interval is None:
            return result
        inside = (interval[0] <= t) & (t <= interval[1])
        return jnp.where(inside.reshape(-1, *[1] * (x.ndim - 1)), result, predictions[1])

    return guided


def further_prompts(neg_cond: Any, weights: Weights, cond: Any) -> tuple[list[Any], Array]:
    """The further prompts that have a part in the result, and their weights.

    Left out are those whose weight is 0 for every sample, where that is known at trace time.

    Args:
        neg_cond: a tree of arrays ``[K, ...]`` whose K parts broadcast to those of ``cond``.
        weights: ``[K]`` or ``[K, batch]``.
        cond: the main prompts, a tree of arrays ``[batch, ...]``.

    Returns:
        Trees like ``cond``, one for each prompt that is left, and the weights that belong to them.

    Raises:
        ValueError: weights that are not one for each prompt, or prompts that do not fit ``cond``.

    Example:
        >>> prompts, used = further_prompts(jnp.array([[7], [8]]), [0.0, -1.0], jnp.array([3, 3]))
        >>> prompts[0].tolist(), used.tolist()
        ([8, 8], [-1.0])
    """
    values = jnp.asarray(weights)
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(neg_cond)}
    if counts != {values.shape[:1]}:
        raise ValueError(
            f"weights: expected one for each prompt of neg_cond, whose leading axes are {sorted(counts)}, got"
            f" shape {values.shape}"
        )
    kept = list(range(values.shape[0]))
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(weights)):
        numbers = np.asarray(weights)
        kept = [k for k in kept if numbers[k].any()]
    prompts = [null_like(jax.tree.map(lambda leaf, k=k: leaf[k], neg_cond), cond) for k in kept]
    return prompts, values[np.array(kept, int)]


def in_one_call(
    denoise: Denoise, x: Float[Array, "batch *shape"], t: Array, prompts: Sequence[Any]
) -> Float[Array, "prompts batch *shape"]:
    """The predictions for several prompts of each sample, from one call of the network.

    In the call a sample's prompts are neighbours: a batch that is sharded over devices stays where it is.

    Args:
        denoise: ``(x, t, cond) -> prediction``.
        x: noisy data.
        t: timesteps, ``[batch]``.
        prompts: conditions, trees of arrays ``[batch, ...]``.

    Returns:
        The predictions, prompt by prompt.

    Example:
        >>> prompts = [jnp.ones(2), jnp.zeros(2)]
        >>> in_one_call(lambda x, t, cond: cond * x, jnp.ones(2), jnp.zeros(2, int), prompts).tolist()
        [[1.0, 1.0], [0.0, 0.0]]
    """

    def merged(*leaves: Array) -> Array:
        return jnp.stack(leaves, 1).reshape(-1, *leaves[0].shape[1:])

    number = len(prompts)
    found = denoise(merged(*[x] * number), merged(*[t] * number), jax.tree.map(merged, *prompts))
    return jnp.moveaxis(found.reshape(x.shape[0], number, *found.shape[1:]), 1, 0)


def _kind(prediction: ArrayLike) -> Any:
    return jnp.asarray(prediction).dtype


def _perpendicular(a: Array, b: Array, eps: float, batch_axes: int) -> Array:
    axes = range(batch_axes, a.ndim)
    squared = jnp.sum(b * b, axes, keepdims=True)
    return a - jnp.sum(a * b, axes, keepdims=True) / jnp.maximum(squared, eps) * b


def _away_from(name: str, base: Array, eps_pos: Array, scale: ArrayLike) -> Array:
    """``base + scale (pos - base)``."""
    start, pos = at_least_float32(name, base), at_least_float32("eps_pos", eps_pos)
    same_shape("eps_pos", pos, name, start)
    return (start + over_trailing("scale", scale, start) * (pos - start)).astype(_kind(base))


def _prompts(
    eps_uncond: Array, eps_pos: Array, eps_neg: Array, weights: Weights, scale: ArrayLike, main: bool = False
) -> tuple[Array, Array, Array, Array, Array]:
    """The arguments of a rule of several prompts in float32 or wider, weights and scale ready to broadcast.

    With ``main`` the main prompt has a weight too.
    """
    uncond, pos, neg = (
        at_least_float32(name, array)
        for name, array in (("eps_uncond", eps_uncond), ("eps_pos", eps_pos), ("eps_neg", eps_neg))
    )
    same_shape("eps_pos", pos, "eps_uncond", uncond)
    if neg.shape[1:] != uncond.shape or neg.ndim == uncond.ndim:
        raise ValueError(
            f"eps_neg: expected a leading axis of prompts before the shape of eps_uncond, {uncond.shape}, got"
            f" {neg.shape}"
        )
    number = neg.shape[0] + main
    w = jnp.asarray(weights, neg.dtype)
    if w.shape not in ((number,), (number, *uncond.shape[:1])):
        first = ", the main prompt's first" if main else ""
        raise ValueError(
            f"weights: expected shape {(number,)} or {(number, *uncond.shape[:1])}{first}, got {w.shape}"
        )
    return (
        uncond,
        pos,
        neg,
        w.reshape(*w.shape, *[1] * (neg.ndim - w.ndim)),
        over_trailing("scale", scale, uncond),
    )
