"""Exact denoisers of Gaussian mixtures: a diffusion model without a network or an error.

For ``x_0 ~ sum_m w_m N(mu_m, s_m^2 I)`` the noisy data is a mixture too,
``x_t ~ sum_m w_m N(alpha_t mu_m, v_m I)`` with ``v_m = alpha_t^2 s_m^2 + sigma_t^2``, so that score, noise
and clean data are known in closed form.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from jaxneg.diffusion.arguments import (
    at_least_float32,
    at_timesteps,
    check_range,
    check_timesteps,
    marginals,
    over_trailing,
)


class GaussianMixtureDenoiser(NamedTuple):
    """Functions of (x [batch, dim], t [batch]), each usable as ``denoise`` in losses and samplers.

    A third argument ``cond`` is None, or mixture weights in place of the model's own: [components], or a row
    for each example.

    Attributes:
        score: gradient of the log-density of x_t, [batch, dim].
        noise: ``E[eps | x_t] = -sigma_t score``, [batch, dim].
        x0: ``E[x_0 | x_t]``, [batch, dim].
        log_density: of x_t, nats, [batch].
    """

    score: Callable[..., Array]
    noise: Callable[..., Array]
    x0: Callable[..., Array]
    log_density: Callable[..., Array]


def gaussian_mixture_denoiser(
    means: Float[ArrayLike, "components dim"],
    weights: Float[ArrayLike, " components"],
    stds: Float[ArrayLike, " components"],
    alphas_cumprod: Float[ArrayLike, " timesteps"],
) -> GaussianMixtureDenoiser:
    """The exact diffusion model of a mixture of isotropic Gaussians.

    ``score = sum_m p_m (alpha mu_m - x) / v_m``,
    ``E[x_0 | x] = sum_m p_m (mu_m + (alpha s_m^2 / v_m) (x - alpha mu_m))``,
    ``p_m`` proportional to ``w_m N(x; alpha mu_m, v_m I)``, ``v_m = alpha^2 s_m^2 + sigma^2``

    Args:
        means: mu, [components, dim].
        weights: w, not negative; divided by their sum.
        stds: s, not negative; one number for all components is allowed.
        alphas_cumprod: alpha-bar of the schedule, [T].

    Returns:
        The functions score, noise, x0 and log_density.

    Raises:
        TypeError: arrays that are not floating; when called, timesteps that are not integers.
        ValueError: shapes that do not fit, negative weights or stds, weights that are all zero, an
            alpha-bar that does not fall; when called, timesteps outside the table.

    Source:
        Bayes' rule for Gaussians; Tweedie's formula, Efron (2011).

    Example:
        >>> exact = gaussian_mixture_denoiser(jnp.zeros((1, 2)), jnp.ones(1), jnp.ones(1), np.array([0.9]))
        >>> exact.score(jnp.ones((1, 2)), jnp.array([0])).round(4).tolist()
        [[-1.0, -1.0]]
    """
    means = at_least_float32("means", means)
    if means.ndim != 2 or means.shape[0] == 0:
        raise ValueError(f"means: expected [components, dim], components >= 1, got shape {means.shape}")
    weights, stds = at_least_float32("weights", weights), at_least_float32("stds", stds)
    components = means.shape[0]
    if weights.shape != (components,):
        raise ValueError(f"weights: expected one for each component, {(components,)}, got {weights.shape}")
    if stds.shape not in ((), (components,)):
        raise ValueError(f"stds: expected one for each component, {(components,)}, got {stds.shape}")
    for name, value in {"weights": weights, "stds": stds}.items():
        if not isinstance(value, Tracer) and not bool(np.all(np.asarray(value) >= 0)):
            raise ValueError(f"{name}: expected numbers of at least 0, got {np.asarray(value).min()}")
    if not isinstance(weights, Tracer) and not np.asarray(weights).any():
        raise ValueError("weights: expected one above 0 at least, got zeros")
    alpha_table, sigma_table = marginals(alphas_cumprod)
    dim = means.shape[1]

    def parts(x: Any, t: Any, cond: Any) -> tuple[Array, ...]:
        x, t = at_least_float32("x", x), jnp.asarray(t)
        if x.ndim != 2 or x.shape[1] != dim:
            raise ValueError(f"x: expected [batch, {dim}], got shape {x.shape}")
        check_timesteps(t, x.shape[0], len(alpha_table))
        chosen = weights if cond is None else at_least_float32("cond", cond)
        if chosen.shape not in ((components,), (x.shape[0], components)):
            raise ValueError(
                f"cond: expected mixture weights, shape {(x.shape[0], components)}, got {chosen.shape}"
            )
        alpha = at_timesteps(alpha_table, t, x.dtype)[:, None]
        sigma = at_timesteps(sigma_table, t, x.dtype)[:, None]
        return alpha, sigma, *_joint(x, alpha, sigma, means, stds, chosen)

    def score(x: Array, t: Array, cond: Any = None) -> Array:
        _, _, variance, offset, log_joint = parts(x, t, cond)
        return -jnp.sum((jax.nn.softmax(log_joint) / variance)[..., None] * offset, axis=1)

    def noise(x: Array, t: Array, cond: Any = None) -> Array:
        _, sigma, variance, offset, log_joint = parts(x, t, cond)
        return sigma * jnp.sum((jax.nn.softmax(log_joint) / variance)[..., None] * offset, axis=1)

    def x0(x: Array, t: Array, cond: Any = None) -> Array:
        alpha, _, variance, offset, log_joint = parts(x, t, cond)
        gain = alpha * stds.astype(offset.dtype) ** 2 / variance
        guess = means.astype(offset.dtype) + gain[..., None] * offset
        return jnp.sum(jax.nn.softmax(log_joint)[..., None] * guess, axis=1)

    def log_density(x: Array, t: Array, cond: Any = None) -> Array:
        return jax.nn.logsumexp(parts(x, t, cond)[-1], axis=-1)

    return GaussianMixtureDenoiser(score, noise, x0, log_density)


def gmm_eps(
    x: Float[Array, "batch dim"],
    abar: Float[ArrayLike, "*batch"],
    means: Float[ArrayLike, "components dim"],
    weights: Float[ArrayLike, "*batch components"],
    sigma0_sq: Float[ArrayLike, "*components"],
) -> Float[Array, "batch dim"]:
    """The noise in x_t of a mixture of isotropic Gaussians, at any alpha-bar and without a table of them.

    ``sqrt(1 - abar) sum_k p_k (x - sqrt(abar) mu_k) / v_k``,
    ``p_k`` proportional to ``w_k N(x; sqrt(abar) mu_k, v_k I)``, ``v_k = abar sigma0_k^2 + 1 - abar``

    Args:
        x: noisy data.
        abar: alpha-bar, one number or one for each example; below 1, or every variance above 0.
        means: mu.
        weights: w, not negative; ``[components]``, or a row for each example as a condition; divided by
            their sum.
        sigma0_sq: variance of the clean components, not negative; one number or one for each.

    Returns:
        ``E[eps | x_t]``, of the type of x.

    Raises:
        TypeError: arrays that are not floating.
        ValueError: shapes that do not fit, an alpha-bar outside 0..1.

    Source:
        Bayes' rule for Gaussians; Tweedie's formula, Efron (2011).

    Example:
        >>> x, abar = jnp.ones((1, 2)), jnp.array([0.75])
        >>> gmm_eps(x, abar, jnp.zeros((1, 2)), jnp.ones(1), 1.0).tolist()
        [[0.5, 0.5]]
    """
    kind = jnp.asarray(x).dtype
    x, means, weights, variances = (
        at_least_float32(name, value)
        for name, value in (("x", x), ("means", means), ("weights", weights), ("sigma0_sq", sigma0_sq))
    )
    if x.ndim != 2 or means.ndim != 2 or means.shape[1] != x.shape[1] or not means.shape[0]:
        raise ValueError(
            f"means: expected [components, dim] for x [batch, dim], got shapes {means.shape} and {x.shape}"
        )
    components = means.shape[0]
    if weights.shape not in ((components,), (x.shape[0], components)):
        raise ValueError(
            f"weights: expected shape {(components,)} or {(x.shape[0], components)}, got {weights.shape}"
        )
    if variances.shape not in ((), (components,)):
        raise ValueError(f"sigma0_sq: expected a number or shape {(components,)}, got {variances.shape}")
    check_range("abar", abar, 0, 1)
    level = over_trailing("abar", abar, x)
    sigma = jnp.sqrt(1 - level)
    variance, offset, log_joint = _joint(x, jnp.sqrt(level), sigma, means, jnp.sqrt(variances), weights)
    noise = sigma * jnp.sum((jax.nn.softmax(log_joint) / variance)[..., None] * offset, axis=1)
    return noise.astype(kind)


def _joint(
    x: Array, alpha: Array, sigma: Array, means: Array, stds: Array, weights: Array
) -> tuple[Array, Array, Array]:
    """Variances ``[batch, components]`` (or 1), offsets from the means, log-densities with each component.

    ``alpha`` and ``sigma`` are ``[batch, 1]``, or ``[1, 1]``.
    """
    variance = (alpha * stds.astype(x.dtype)) ** 2 + sigma**2
    offset = x[:, None] - alpha[..., None] * means.astype(x.dtype)  # [batch, components, dim]
    share = weights.astype(x.dtype) / jnp.sum(weights.astype(x.dtype), axis=-1, keepdims=True)
    log_share = jnp.where(share > 0, jnp.log(jnp.where(share > 0, share, 1)), -jnp.inf)
    squared = jnp.sum(offset**2, axis=-1)
    log_normal = -0.5 * squared / variance - 0.5 * x.shape[1] * jnp.log(2 * jnp.pi * variance)
    return variance, offset, log_share + log_normal
