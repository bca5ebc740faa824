"""Classifier-free guidance with any negative branch: the null condition, a negative prompt, or another model.

Papers: classifier-free guidance, arXiv:2207.12598, equation 6; the rescaling, arXiv:2305.08891, Section 3.4;
another model as the negative branch, Diffusion-NPO, arXiv:2505.11245, and Self-NPO, arXiv:2505.11777.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.diffusion.arguments import Denoise, at_least_float32, check_range
from jaxneg.diffusion.conditions import null_like


def guided_noise(
    eps_pos: Float[Array, "batch ..."],
    eps_neg: Float[Array, "batch ..."],
    scale: float | Float[Array, ""],
    rescale: float | Float[Array, ""] = 0.0,
) -> Float[Array, "batch ..."]:
    """Pushes a prediction away from a negative one.

    ``g = eps_neg + scale (eps_pos - eps_neg)``, then ``rescale g std(eps_pos) / std(g) + (1 - rescale) g``

    The standard deviations are unbiased, over all axes but the batch. The rule is linear: velocities and
    estimates of x_0 may stand for the noises.

    Args:
        eps_pos: the positive prediction, with the condition.
        eps_neg: the negative prediction.
        scale: 1: the positive prediction alone; in the papers' other notation ``w + 1``.
        rescale: phi, share of the rescaled prediction, 0..1.

    Returns:
        The guided prediction, in float32 or wider.

    Raises:
        TypeError: predictions that are not floating.
        ValueError: predictions of two shapes, rescale outside 0..1.

    Source:
        arXiv:2505.11777, the guided inference of both papers; arXiv:2305.08891, equations 15 and 16.

    Example:
        >>> guided_noise(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 1.0]]), 3.0).tolist()
        [[3.0, 4.0]]
    """
    check_range("rescale", rescale, 0, 1)
    positive, negative = at_least_float32("eps_pos", eps_pos), at_least_float32("eps_neg", eps_neg)
    if positive.shape != negative.shape:
        raise ValueError(
            f"eps_neg: expected the shape of eps_pos, {positive.shape}, got {negative.shape}: the negative "
            "model must predict arrays of the positive model's shape"
        )
    guided = negative + scale * (positive - negative)
    if isinstance(rescale, int | float) and rescale == 0:
        return guided
    axes = tuple(range(1, guided.ndim))
    wanted, got = (jnp.var(array, axis=axes, ddof=1, keepdims=True) for array in (positive, guided))
    ratio = jnp.sqrt(jnp.where(got > 0, wanted / jnp.where(got > 0, got, 1), 1))
    return guided * (rescale * ratio + (1 - rescale))


def guide(
    denoise: Denoise,
    *,
    scale: float | Float[Array, ""],
    null_cond: Any,
    negative: Denoise | None = None,
    rescale: float | Float[Array, ""] = 0.0,
) -> Denoise:
    """A guided network out of a conditional one, for every sampler.

    ``denoise'(x, t, cond) = guided_noise(denoise(x, t, cond), negative(x, t, null_cond), scale, rescale)``

    Without ``negative`` both branches are one forward pass of twice the batch; the two inputs of an example
    stand side by side, so that on a mesh none of them moves.

    Args:
        denoise: the positive network, any callable of (x, t, cond).
        scale: of the guidance; 1 (a Python number): ``denoise`` itself, at its own cost.
        null_cond: the condition of the negative branch, a tree like ``cond`` whose leaves broadcast to
            those of ``cond``: the null class, the null embedding, a negative prompt. None goes to
            ``negative`` as it is.
        negative: another network for the negative branch; None: the same one.
        rescale: as in `guided_noise`.

    Returns:
        A callable of (x, t, cond).

    Raises:
        ValueError: when called: predictions of two shapes, a null condition that does not broadcast to cond.

    Source:
        arXiv:2207.12598, Algorithm 2; arXiv:2505.11245 and arXiv:2505.11777 for another negative network.

    Example:
        >>> double = guide(lambda x, t, c: c[:, None] * x, scale=2.0, null_cond=0.0)
        >>> double(jnp.ones((2, 1)), jnp.zeros(2, int), jnp.array([1.0, 3.0])).tolist()
        [[2.0], [6.0]]
    """
    if isinstance(scale, int | float) and scale == 1:
        return denoise

    def guided(x: Array, t: Array, cond: Any) -> Array:
        if negative is not None:
            null = None if null_cond is None else null_like(null_cond, cond)
            return guided_noise(denoise(x, t, cond), negative(x, t, null), scale, rescale)
        null = null_like(null_cond, cond)
        output = denoise(_interleave(x, x), _interleave(t, t), jax.tree.map(_interleave, cond, null))
        if output.shape[:1] != (2 * x.shape[0],):
            raise ValueError(
                f"denoise: expected an output for each of {2 * x.shape[0]} rows, got shape {output.shape}"
            )
        pairs = output.reshape(x.shape[0], 2, *output.shape[1:])
        return guided_noise(pairs[:, 0], pairs[:, 1], scale, rescale)

    return guided


def _interleave(first: Array, second: Array) -> Array:
    return jnp.stack([first, second], axis=1).reshape(2 * first.shape[0], *first.shape[1:])
