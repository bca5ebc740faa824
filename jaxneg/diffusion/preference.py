"""Diffusion-NPO: preference optimisation of a diffusion model, with the preference reversed.

Wang, Shui, Piao, Sun and Li 2025, "Diffusion-NPO", arXiv:2505.11245 (ICLR 2025), on the objective of
Diffusion-DPO (Wallace et al. 2024, arXiv:2311.12908, equation (14)). A pair of images shares one timestep and
one noise; an image's likelihood is stood for by how well the network denoises it. The negative model is
trained with the image that people like less in the winner's place, and takes the place of the unconditional
model in classifier-free guidance. Pairs without a preference carry nothing: leave them out.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from jaxneg.diffusion.arguments import alpha_bar, at_least_float32, check_positive, one_of, same_shape
from jaxneg.diffusion.conditions import drop_condition
from jaxneg.diffusion.losses import denoising_loss
from jaxneg.diffusion.predictions import Prediction


class PreferenceErrors(NamedTuple):
    """How far a network and its reference are from the noise in both images of each pair.

    Attributes:
        model_w: mean squared error of the network on the preferred image.
        model_l: on the other one.
        ref_w: of the frozen reference on the preferred image.
        ref_l: on the other one.
    """

    model_w: Float[Array, " batch"]
    model_l: Float[Array, " batch"]
    ref_w: Float[Array, " batch"]
    ref_l: Float[Array, " batch"]


def preference_errors(
    params: Any,
    reference: Any,
    batch: Mapping[str, Any],
    key: PRNGKeyArray,
    denoise: Callable[[Any, Array, Array, Any], Array],
    alphas_cumprod: Float[ArrayLike, " timesteps"],
    *,
    null_cond: Any = None,
    p_null: float = 0.0,
    prediction: Prediction = "epsilon",
) -> PreferenceErrors:
    """The denoising errors of a batch of pairs, which the losses and the accuracy take.

    ``m = mean (denoise(params, x_t, t, c) - eps)^2`` for both images, ``r`` likewise with the reference;
    ``t ~ U{0..T-1}`` and ``eps ~ N(0, I)`` are shared by a pair.

    Args:
        params: parameters of the network.
        reference: those before fine-tuning; no gradient flows into them.
        batch: ``"x_w"`` and ``"x_l"`` ``[B, ...]``, the images that people like more and less, and
            ``"cond"``, a tree with B rows, or None.
        key: for timesteps, noise and conditions.
        denoise: ``(params, x [B, ...], t [B], cond) -> prediction``.
        alphas_cumprod: ``[T]``, alpha-bar of the schedule.
        null_cond: what stands for no condition, a tree that broadcasts to ``cond``.
        p_null: probability that a pair's condition is replaced by it, in [0, 1].
        prediction: what the network predicts; its error is taken of that.

    Returns:
        One value for each pair, four times.

    Raises:
        ValueError: images whose shapes differ, an empty batch, ``p_null`` outside [0, 1].

    Source:
        arXiv:2505.11245, Section 3; arXiv:2311.12908, equation (14).

    Example:
        >>> denoise = lambda w, x, t, c: w * x
        >>> batch = {"x_w": jnp.ones((2, 3)), "x_l": jnp.zeros((2, 3)), "cond": None}
        >>> errors = preference_errors(1.0, 1.0, batch, jax.random.key(0), denoise, jnp.array([0.9, 0.5]))
        >>> errors.model_w.shape, bool((errors.model_l == errors.ref_l).all())
        ((2,), True)
    """
    x_w, x_l, cond = batch["x_w"], batch["x_l"], batch["cond"]
    same_shape("batch['x_l']", x_l, "batch['x_w']", x_w)
    if not x_w.size:
        raise ValueError(f"batch['x_w']: expected at least one pair, got shape {x_w.shape}")
    time_key, noise_key, null_key = jax.random.split(key, 3)
    cond = drop_condition(null_key, cond, null_cond, p_null)
    t = jax.random.randint(time_key, x_w.shape[:1], 0, len(alpha_bar(alphas_cumprod)))
    noise = jax.random.normal(noise_key, x_w.shape, jnp.promote_types(x_w.dtype, jnp.float32))

    def errors(weights: Any, x: Array) -> Array:
        network = partial(denoise, weights)
        return denoising_loss(network, x, t, noise, alphas_cumprod, cond=cond, prediction=prediction)

    frozen = jax.lax.stop_gradient(reference)
    return PreferenceErrors(
        errors(params, x_w), errors(params, x_l), errors(frozen, x_w), errors(frozen, x_l)
    )


def diffusion_dpo_loss(
    model_w: Float[Array, " batch"],
    model_l: Float[Array, " batch"],
    ref_w: Float[Array, " batch"],
    ref_l: Float[Array, " batch"],
    beta: float | Array = 500.0,
    kind: Literal["sigmoid", "hinge", "ipo"] = "sigmoid",
) -> Float[Array, " batch"]:
    """Direct preference optimisation of a diffusion model.

    ``d = (ref_w - ref_l) - (model_w - model_l)``;
    "sigmoid": ``-log sigmoid(beta d)``, "hinge": ``max(1 - beta d, 0)``, "ipo": ``(d - 1 / (2 beta))^2``

    Args:
        model_w: mean squared errors of the network on the preferred images (`preference_errors`).
        model_l: on the others.
        ref_w: of the frozen reference on the preferred images; no gradient flows into it.
        ref_l: on the others; likewise.
        beta: inverse temperature, above 0. There is no factor T or 1/2 here: half of Diffusion-DPO's.
        kind: the form of the loss.

    Returns:
        One value for each pair.

    Raises:
        TypeError: an argument that is not floating.
        ValueError: shapes that differ, an empty batch, a beta that is not positive, an unknown kind.

    Source:
        arXiv:2311.12908, equation (14), in the scale of the code of arXiv:2505.11245; "hinge" is
        arXiv:2305.10425's, "ipo" arXiv:2310.12036's.

    Example:
        >>> round(float(diffusion_dpo_loss(*jnp.ones((4, 1)))[0]), 4)
        0.6931
    """
    one_of("kind", kind, ("sigmoid", "hinge", "ipo"))
    check_positive(beta=beta)
    d = _advantage(model_w, model_l, ref_w, ref_l)
    if kind == "sigmoid":
        return jax.nn.softplus(-beta * d)
    if kind == "hinge":
        return jax.nn.relu(1 - beta * d)
    return jnp.square(d - 1 / (2 * beta))


def diffusion_npo_loss(
    model_w: Float[Array, " batch"],
    model_l: Float[Array, " batch"],
    ref_w: Float[Array, " batch"],
    ref_l: Float[Array, " batch"],
    beta: float | Array = 500.0,
    kind: Literal["sigmoid", "hinge", "ipo"] = "sigmoid",
) -> Float[Array, " batch"]:
    """Negative preference optimisation: towards what people like less.

    ``L_NPO(w, l) = L_DPO(l, w)``

    Args:
        model_w: mean squared errors of the network on the images that people *prefer*.
        model_l: on those that they like less, which this loss favours.
        ref_w: of the frozen reference on the preferred images.
        ref_l: on the others.
        beta: as in `diffusion_dpo_loss`.
        kind: likewise.

    Returns:
        One value for each pair.

    Raises:
        TypeError: as `diffusion_dpo_loss`.
        ValueError: likewise.

    Source:
        arXiv:2505.11245, Section 3.

    Example:
        >>> better, worse = jnp.array([0.1]), jnp.array([0.2])
        >>> dpo = diffusion_dpo_loss(better, worse, worse, worse, 10.0)
        >>> bool(diffusion_npo_loss(better, worse, worse, worse, 10.0) > dpo)
        True
    """
    return diffusion_dpo_loss(model_l, model_w, ref_l, ref_w, beta, kind)


def implicit_accuracy(
    model_w: Float[Array, " batch"],
    model_l: Float[Array, " batch"],
    ref_w: Float[Array, " batch"],
    ref_l: Float[Array, " batch"],
) -> Float[Array, ""]:
    """The share of pairs that the network ranks as people do, against its reference; a tie is half.

    ``mean(1[d > 0] + 1[d = 0] / 2)``, with the d of `diffusion_dpo_loss`

    Args:
        model_w: mean squared errors of the network on the preferred images.
        model_l: on the others.
        ref_w: of the frozen reference on the preferred images.
        ref_l: on the others.

    Returns:
        A number in [0, 1]; 1/2 before fine-tuning. Training with `diffusion_npo_loss` lowers it.

    Raises:
        TypeError: an argument that is not floating.
        ValueError: shapes that differ, or an empty batch.

    Source:
        arXiv:2505.11245, its code.

    Example:
        >>> float(implicit_accuracy(jnp.array([0.1, 0.5]), jnp.array([0.5, 0.5]), *jnp.ones((2, 2))))
        0.75
    """
    return jnp.mean((1 + jnp.sign(_advantage(model_w, model_l, ref_w, ref_l))) / 2)


def _advantage(model_w: Array, model_l: Array, ref_w: Array, ref_l: Array) -> Float[Array, " batch"]:
    model_w = at_least_float32("model_w", model_w)
    model_l, ref_w, ref_l = (
        at_least_float32(name, array)
        for name, array in (("model_l", model_l), ("ref_w", ref_w), ("ref_l", ref_l))
    )
    if not model_w.size:
        raise ValueError(f"model_w: expected at least one pair, got shape {model_w.shape}")
    for name, array in (("model_l", model_l), ("ref_w", ref_w), ("ref_l", ref_l)):
        same_shape(name, array, "model_w", model_w)
    return jax.lax.stop_gradient(ref_w - ref_l) - (model_w - model_l)
