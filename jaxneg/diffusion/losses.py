"""The denoising loss and its weightings by noise level.

Papers: the simple loss, arXiv:2006.11239, equation 14; Min-SNR, arXiv:2303.09556, Section 3.4; P2,
arXiv:2204.00227, equation 8.
"""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from jaxneg.diffusion.arguments import (
    Denoise,
    at_least_float32,
    at_timesteps,
    check_positive,
    check_timesteps,
    checked_output,
    marginals,
    one_of,
    over_trailing,
    same_shape,
)
from jaxneg.diffusion.predictions import Prediction


def denoising_loss(
    denoise: Denoise,
    x0: Float[Array, "batch ..."],
    t: Int[Array, " batch"],
    noise: Float[Array, "batch ..."],
    alphas_cumprod: Float[ArrayLike, " timesteps"],
    *,
    cond: Any = None,
    prediction: Prediction = "epsilon",
    weight: Float[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """The squared error of what a network predicts of noisy data.

    ``loss_b = weight_b mean_i (denoise(x_t, t, cond)_bi - target_bi)^2``, with
    ``x_t = alpha_t x_0 + sigma_t eps`` and the target ``eps``, ``x_0`` or ``alpha_t eps - sigma_t x_0``

    Args:
        denoise: any callable of (x, t, cond) that returns an array of the shape of x. It sees x_t in the
            dtype of x0; its output is compared in float32 or wider.
        x0: clean data.
        t: timesteps in 0..T-1.
        noise: eps, standard normal, of the shape of x0.
        alphas_cumprod: alpha-bar of the schedule, [T].
        cond: passed to ``denoise``.
        prediction: what the network predicts, "epsilon", "x0" or "v".
        weight: of each example, as `min_snr_weight` or `p2_weight` give it; None: 1.

    Returns:
        One value for each example: the mean over all other axes.

    Raises:
        TypeError: data that is not floating, timesteps that are not integers.
        ValueError: shapes that do not fit, timesteps outside the table, an alpha-bar that does not fall, an
            unknown prediction.

    Source:
        arXiv:2006.11239, equation 14.

    Example:
        >>> x = jnp.ones((2, 3))
        >>> denoising_loss(lambda x, t, cond: 0 * x, x, jnp.array([0, 1]), x, np.array([0.9, 0.5])).tolist()
        [1.0, 1.0]
    """
    one_of("prediction", prediction, get_args(Prediction))
    clean, noise = at_least_float32("x0", x0), at_least_float32("noise", noise)
    if clean.ndim == 0:
        raise ValueError("x0: expected a batch axis, got a scalar")
    same_shape("noise", noise, "x0", clean)
    alpha, sigma = marginals(alphas_cumprod)
    t = jnp.asarray(t)
    check_timesteps(t, clean.shape[0], len(alpha))
    alpha = over_trailing("alpha", at_timesteps(alpha, t, clean.dtype), clean)
    sigma = over_trailing("sigma", at_timesteps(sigma, t, clean.dtype), clean)
    noisy = (alpha * clean + sigma * noise).astype(jnp.result_type(x0))
    output = checked_output(denoise(noisy, t, cond), clean)
    target = {"epsilon": noise, "x0": clean, "v": alpha * noise - sigma * clean}[prediction]
    loss = jnp.mean((output - target) ** 2, axis=tuple(range(1, clean.ndim)))
    if weight is None:
        return loss
    weight = jnp.asarray(weight, loss.dtype)
    if weight.shape != loss.shape:
        raise ValueError(f"weight: expected one for each example, shape {loss.shape}, got {weight.shape}")
    return weight * loss


def min_snr_weight(snr: ArrayLike, gamma: float = 5.0, prediction: Prediction = "epsilon") -> Any:
    """Min-SNR: the weight of the x_0 loss is the signal-to-noise ratio, but at most gamma.

    ``epsilon: min(SNR, gamma) / SNR`` (1 where SNR = 0), ``x0: min(SNR, gamma)``,
    ``v: min(SNR, gamma) / (SNR + 1)``

    Args:
        snr: signal-to-noise ratios, any shape. A numpy array stays one, with its precision.
        gamma: the bound, positive.
        prediction: what the network predicts, "epsilon", "x0" or "v".

    Returns:
        Weights for the squared error of what the network predicts, of the same shape.

    Raises:
        ValueError: gamma that is not positive, or an unknown prediction.

    Source:
        arXiv:2303.09556, Section 3.4.

    Example:
        >>> min_snr_weight(np.array([0.0, 1.0, 10.0])).tolist()
        [1.0, 1.0, 0.5]
    """
    one_of("prediction", prediction, get_args(Prediction))
    check_positive(gamma=gamma)
    xp = jnp if isinstance(snr, jax.Array) else np
    ratio = xp.asarray(snr)
    if prediction == "epsilon":
        return gamma / xp.maximum(ratio, gamma)
    clipped = xp.minimum(ratio, gamma)
    return clipped if prediction == "x0" else clipped / (ratio + 1)


def p2_weight(snr: ArrayLike, gamma: float = 1.0, k: float = 1.0) -> Any:
    """P2: less weight where little noise hides little, so that the network learns what one perceives.

    ``1 / (k + SNR)^gamma``

    Args:
        snr: signal-to-noise ratios, any shape. A numpy array stays one, with its precision.
        gamma: how strongly low noise is weighted down; 0 gives ones.
        k: keeps the weight finite as SNR -> 0, positive.

    Returns:
        Weights for the squared error of epsilon, of the same shape.

    Raises:
        ValueError: k that is not positive.

    Source:
        arXiv:2204.00227, equation 8.

    Example:
        >>> p2_weight(np.array([0.0, 1.0, 3.0])).tolist()
        [1.0, 0.5, 0.25]
    """
    check_positive(k=k)
    xp = jnp if isinstance(snr, jax.Array) else np
    return (k + xp.asarray(snr)) ** -gamma
