"""Score distillation: what an image of a scene lacks in the eyes of a diffusion model, as its gradient.

Implements the loss of DreamFusion (Poole et al., arXiv:2209.14988, equation 3) as threestudio has it, and its
step with the prompts and weights of Perp-Neg (arXiv:2304.04968, Section 5). No gradient goes through the
network: that of the loss with respect to the image is given.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from jaxneg.diffusion.arguments import (
    Denoise,
    at_least_float32,
    at_timesteps,
    check_positive,
    explicit_sharding,
    marginals,
    one_of,
    over_trailing,
    same_shape,
)
from jaxneg.diffusion.conditions import null_like
from jaxneg.diffusion.perp_neg import Weights, further_prompts, in_one_call, perp_neg_guidance
from jaxneg.diffusion.predictions import Prediction, add_noise, predict_noise

Weighting = Literal["sds", "uniform", "fantasia3d"]
Reduction = Literal["batch_mean", "sum", "none"]


# A rule of several prompts, as `perp_neg_guidance`: (eps_uncond, eps_pos, eps_neg, weights, scale).
GuidanceRule = Callable[[Array, Array, Array, Any, Any], Array]


def sds_loss(
    x: Float[Array, "batch *shape"],
    eps_hat: Float[Array, "batch *shape"],
    noise: Float[Array, "batch *shape"],
    abar_t: Float[ArrayLike, " batch"],
    *,
    weighting: Weighting = "sds",
    guidance_weight: float | Array = 1.0,
    grad_clip: float | None = None,
    reduction: Reduction = "batch_mean",
) -> Float[Array, ""]:
    """The loss whose gradient with respect to the image is the guided noise less the true one.

    ``g = nan_to_num(lambda w(t) (eps_hat - eps))``, clipped; ``L = sum |g|^2 / (2 B)``, ``dL/dx = g / B``

    ``w(t)`` is ``1 - abar`` for "sds", 1 for "uniform", ``sqrt(abar) (1 - abar)`` for "fantasia3d".

    Args:
        x: images or latents, rendered from the scene: what the gradient goes to.
        eps_hat: the guided prediction of the noise; no gradient goes into it.
        noise: the noise that was added.
        abar_t: alpha-bar at each sample's timestep.
        weighting: ``w(t)``.
        guidance_weight: lambda, one number or ``[batch]``.
        grad_clip: bounds each entry of ``g`` to -grad_clip..grad_clip; None: no bound.
        reduction: "batch_mean"; "sum", without the division by B, as stable-dreamfusion has it; "none": one
            loss for each sample, of gradient ``g``.

    Returns:
        A scalar, or ``[batch]``, in float32 or wider.

    Raises:
        TypeError: an array that is not floating.
        ValueError: shapes that do not fit, an unknown weighting or reduction, a bound that is not positive.

    Source:
        arXiv:2209.14988, equation 3; threestudio, StableDiffusionGuidance.

    Example:
        >>> ones, abar = jnp.ones((2, 3)), jnp.array([0.5, 0.5])
        >>> jax.grad(sds_loss)(ones, 2 * ones, ones, abar).tolist()
        [[0.25, 0.25, 0.25], [0.25, 0.25, 0.25]]
    """
    one_of("weighting", weighting, ("sds", "uniform", "fantasia3d"))
    one_of("reduction", reduction, ("batch_mean", "sum", "none"))
    if grad_clip is not None:
        check_positive(grad_clip=grad_clip)
    x, eps_hat, noise = (
        at_least_float32(name, array) for name, array in (("x", x), ("eps_hat", eps_hat), ("noise", noise))
    )
    same_shape("eps_hat", eps_hat, "x", x)
    same_shape("noise", noise, "x", x)
    abar = over_trailing("abar_t", abar_t, x)
    weight = {"sds": 1 - abar, "uniform": jnp.ones_like(abar), "fantasia3d": jnp.sqrt(abar) * (1 - abar)}
    gradient = over_trailing("guidance_weight", guidance_weight, x) * weight[weighting] * (eps_hat - noise)
    gradient = jnp.nan_to_num(gradient)
    if grad_clip is not None:
        gradient = jnp.clip(gradient, -grad_clip, grad_clip)
    # x - target is the gradient itself, bit for bit: x + g - x would lose its digits.
    difference = x - jax.lax.stop_gradient(x) + jax.lax.stop_gradient(gradient)
    losses = 0.5 * jnp.sum(difference**2, axis=range(1, x.ndim))
    if reduction == "none":
        return losses
    return jnp.sum(losses) / (x.shape[0] if reduction == "batch_mean" else 1)


def perp_neg_sds_step(
    key: PRNGKeyArray,
    denoise_fn: Denoise,
    x: Float[Array, "batch *shape"],
    pos_cond: Any,
    neg_cond: Any,
    null_cond: Any,
    weights: Weights,
    alphas_cumprod: Float[ArrayLike, " timesteps"],
    *,
    scale: float | Array = 100.0,
    t_range: tuple[int, int] = (20, 980),
    guidance: GuidanceRule = perp_neg_guidance,
    prediction: Prediction = "epsilon",
    weighting: Weighting = "sds",
    guidance_weight: float | Array = 1.0,
    grad_clip: float | None = None,
    reduction: Reduction = "batch_mean",
) -> Float[Array, ""]:
    """The loss of one step of score distillation with negative prompts; its gradient with respect to x.

    ``t ~ U{t_range}``, ``eps ~ N(0, I)``, ``x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps``; then `sds_loss` of
    the guided prediction. All prompts of a sample see one ``t`` and one ``eps``, in one call of the network.

    Args:
        key: for t and eps.
        denoise_fn: ``(x_t [batch, *shape], t [batch], cond) -> prediction``; no gradient goes through it.
        x: images or latents, rendered from the scene.
        pos_cond: the main prompts, a tree of arrays ``[batch, ...]``, such as the positive embeddings of
            `view_embeddings`.
        neg_cond: K further prompts, a tree of arrays ``[K, ...]`` whose K parts broadcast to those of
            pos_cond.
        null_cond: the empty prompt, broadcasting likewise.
        weights: of the further prompts, ``[K]`` or ``[K, batch]``.
        alphas_cumprod: alpha-bar of the schedule, ``[T]``.
        scale: guidance scale.
        t_range: lowest and highest timestep, both included; 0.02 and 0.98 of T in the papers, here of 1000.
        guidance: the rule, `perp_neg_guidance` or another of its arguments, such as `cebm_guidance`.
        prediction: what the network predicts, "epsilon", "x0" or "v".
        weighting: as in `sds_loss`.
        guidance_weight: as in `sds_loss`.
        grad_clip: as in `sds_loss`.
        reduction: as in `sds_loss`.

    Returns:
        A scalar, or ``[batch]`` with reduction "none".

    Raises:
        TypeError: arrays that are not floating.
        ValueError: a range that is empty or leaves the schedule, conditions or shapes that do not fit, and
            what `sds_loss` raises.

    Source:
        arXiv:2304.04968, Section 5; threestudio, StableDiffusionGuidance.compute_grad_sds.

    Example:
        >>> def denoise(x, t, cond):
        ...     return cond * x
        >>> prompts = jnp.ones((2, 1)), jnp.zeros((1, 1)), jnp.zeros(1), [-1.0]
        >>> abar = jnp.linspace(0.99, 0.01, 1000)
        >>> perp_neg_sds_step(jax.random.key(0), denoise, jnp.ones((2, 3)), *prompts, abar).shape
        ()
    """
    alphas, sigmas = marginals(alphas_cumprod)
    low, high = t_range
    if not 0 <= low <= high < len(sigmas):
        raise ValueError(
            f"t_range: expected 0 <= low <= high < {len(sigmas)}, the length of alphas_cumprod, got {t_range}"
        )
    image = jax.lax.stop_gradient(at_least_float32("x", x))
    t_key, noise_key = jax.random.split(key)
    t = jax.random.randint(t_key, image.shape[:1], low, high + 1, out_sharding=explicit_sharding(image, 1))
    noise = jax.random.normal(noise_key, image.shape, image.dtype, out_sharding=explicit_sharding(image))
    alpha, sigma = at_timesteps(alphas, t, image.dtype), at_timesteps(sigmas, t, image.dtype)
    x_t = add_noise(image, noise, alpha, sigma)
    further, used = further_prompts(neg_cond, weights, pos_cond)
    prompts = [null_like(null_cond, pos_cond), pos_cond, *further]
    predictions = in_one_call(denoise_fn, x_t.astype(jnp.asarray(x).dtype), t, prompts)
    guided = guidance(predictions[0], predictions[1], predictions[2:], used, scale)
    eps_hat = predict_noise(guided, x_t, alpha, sigma, prediction)
    return sds_loss(
        x,
        jax.lax.stop_gradient(eps_hat),
        noise,
        alpha**2,
        weighting=weighting,
        guidance_weight=guidance_weight,
        grad_clip=grad_clip,
        reduction=reduction,
    )
