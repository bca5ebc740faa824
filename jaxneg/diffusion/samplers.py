"""Samplers: DDPM, DDIM and DPM-Solver++(2M), for any network and any falling grid of timesteps.

Every one of them is the same scan. At each step the network's output gives the clean data D_i, and

    x_{i+1} = a_i x_i + b_i D_i + c_i D_{i-1} + s_i z_i,   z_i standard normal

with numbers that depend on the schedule alone and are computed on the host in float64 where it is concrete.

Papers: DDPM, arXiv:2006.11239, Algorithm 2; DDIM, arXiv:2010.02502, equation 12; DPM-Solver++(2M),
arXiv:2211.01095, Algorithm 2 and equation 9.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from jaxneg.diffusion.arguments import (
    Denoise,
    alpha_bar,
    at_least_float32,
    check_positive,
    check_range,
    checked_output,
    explicit_sharding,
    falling_timesteps,
    one_of,
)
from jaxneg.diffusion.predictions import Prediction, predict_x0

Variance = Literal["posterior", "beta"]


def sampling_timesteps(T: int, steps: int) -> Int[np.ndarray, " steps"]:
    """A falling grid of timesteps, evenly spaced from T - 1 to 0.

    ``round(linspace(T - 1, 0, steps))``

    Args:
        T: number of timesteps of the schedule.
        steps: number of sampling steps, at most T.

    Returns:
        int32 timesteps; a sampler goes from the last of them to clean data.

    Raises:
        ValueError: steps outside 1..T.

    Source:
        arXiv:2010.02502, Appendix D.2 (linear).

    Example:
        >>> sampling_timesteps(1000, 4).tolist()
        [999, 666, 333, 0]
    """
    if not 1 <= steps <= T:
        raise ValueError(f"steps: expected a number in 1..T = {T}, got {steps}")
    return np.round(np.linspace(T - 1, 0, steps)).astype(np.int32)


def ddim_sample(
    denoise: Denoise,
    x_T: Float[Array, "batch ..."],
    timesteps: Int[ArrayLike, " steps"],
    alphas_cumprod: Float[ArrayLike, " timesteps"],
    *,
    cond: Any = None,
    eta: float = 0.0,
    key: PRNGKeyArray | None = None,
    prediction: Prediction = "epsilon",
    clip: float | None = None,
    final_alpha_cumprod: float = 1.0,
) -> Float[Array, "batch ..."]:
    """DDIM: the deterministic sampler of first order, or, with eta, one with noise.

    ``x' = alpha' D + sqrt(sigma'^2 - s^2) (x - alpha D) / sigma + s z``,
    ``s^2 = eta^2 (sigma'^2 / sigma^2) (1 - abar / abar')``

    D is the clean data that the network's output stands for, a prime marks the next timestep.

    Args:
        denoise: any callable of (x, t, cond), t int32 [batch], that returns an array of the shape of x. It
            sees x in the dtype of x_T; the sampler computes in float32 or wider.
        x_T: the noise to start from, at the first timestep.
        timesteps: falling grid, as `sampling_timesteps` gives it.
        alphas_cumprod: alpha-bar of the schedule, [T].
        cond: passed to ``denoise``.
        eta: 0: deterministic; 1: the noise of DDPM.
        key: needed where eta is not 0.
        prediction: what the network predicts, "epsilon", "x0" or "v".
        clip: bounds D to -clip..clip, the noise is recomputed from it; None: no bound.
        final_alpha_cumprod: alpha-bar after the last step; 1: clean data.

    Returns:
        The samples, in the dtype of x_T.

    Raises:
        TypeError: x_T that is not floating, timesteps that are not integers.
        ValueError: a grid that does not fall or leaves the table, an alpha-bar that does not fall, eta
            outside 0..1 or without a key, clip that is not positive, an unknown prediction, an output of
            another shape.

    Source:
        arXiv:2010.02502, equations 12 and 16.

    Example:
        >>> grid, abar = sampling_timesteps(10, 5), np.linspace(0.99, 0.01, 10)
        >>> ddim_sample(lambda x, t, cond: x, jnp.ones((2, 3)), grid, abar).shape
        (2, 3)
    """
    check_range("eta", eta, 0, 1)
    noisy = not isinstance(eta, int | float) or eta != 0
    if noisy and key is None:
        raise ValueError("key: expected a random key where eta is not 0, got None")
    grid = _grid(timesteps, alphas_cumprod, final_alpha_cumprod, eta)
    xp = grid.xp
    shrink = grid.next_sigma * grid.inverse_sigma
    # sqrt(sigma'^2 - s^2) / sigma; rounding may leave a tiny negative number under the root where eta is 1.
    kept = shrink * xp.sqrt(xp.maximum(1 - eta**2 * grid.beta * grid.inverse_sigma**2, 0))
    steps = _Steps(kept, grid.next_alpha - kept * grid.alpha, 0 * kept, eta * shrink * xp.sqrt(grid.beta))
    return _sample(denoise, x_T, grid, steps, key if noisy else None, cond, prediction, clip)


def ddpm_sample(
    key: PRNGKeyArray,
    denoise: Denoise,
    x_T: Float[Array, "batch ..."],
    timesteps: Int[ArrayLike, " steps"],
    alphas_cumprod: Float[ArrayLike, " timesteps"],
    *,
    cond: Any = None,
    prediction: Prediction = "epsilon",
    clip: float | None = None,
    variance: Variance = "posterior",
    final_alpha_cumprod: float = 1.0,
) -> Float[Array, "batch ..."]:
    """DDPM: ancestral sampling, on the whole grid or any part of it.

    ``x' ~ N(alpha' D + (alpha / alpha') (sigma'^2 / sigma^2) (x - alpha D), s^2 I)``, the mean of
    ``q(x' | x, x_0 = D)``; posterior: ``s^2 = beta sigma'^2 / sigma^2``, beta: ``s^2 = beta``, with
    ``beta = 1 - abar / abar'``

    D is the clean data that the network's output stands for, a prime marks the next timestep. The step to
    clean data (alpha-bar of 1) adds no noise.

    Args:
        key: for the noise.
        denoise: any callable of (x, t, cond), t int32 [batch], that returns an array of the shape of x. It
            sees x in the dtype of x_T; the sampler computes in float32 or wider.
        x_T: the noise to start from, at the first timestep.
        timesteps: falling grid, as `sampling_timesteps` gives it.
        alphas_cumprod: alpha-bar of the schedule, [T].
        cond: passed to ``denoise``.
        prediction: what the network predicts, "epsilon", "x0" or "v".
        clip: bounds D to -clip..clip; None: no bound.
        variance: of each step: "posterior", exact for data at one point, or "beta", exact for standard normal
            data.
        final_alpha_cumprod: alpha-bar after the last step; 1: clean data.

    Returns:
        The samples, in the dtype of x_T.

    Raises:
        TypeError: x_T that is not floating, timesteps that are not integers.
        ValueError: a grid that does not fall or leaves the table, an alpha-bar that does not fall, clip that
            is not positive, an unknown prediction or variance, an output of another shape.

    Source:
        arXiv:2006.11239, Algorithm 2 and Section 3.2; on a part of the grid, arXiv:2102.09672, Section 4.

    Example:
        >>> grid, abar = sampling_timesteps(10, 5), np.linspace(0.99, 0.01, 10)
        >>> ddpm_sample(jax.random.key(0), lambda x, t, cond: x, jnp.ones((2, 3)), grid, abar).shape
        (2, 3)
    """
    one_of("variance", variance, get_args(Variance))
    grid = _grid(timesteps, alphas_cumprod, final_alpha_cumprod)
    xp = grid.xp
    shrink = grid.next_sigma * grid.inverse_sigma
    kept = grid.alpha / grid.next_alpha * shrink**2
    spread = xp.sqrt(grid.beta) * (shrink if variance == "posterior" else grid.next_sigma > 0)
    steps = _Steps(kept, grid.next_alpha - kept * grid.alpha, 0 * kept, spread)
    return _sample(denoise, x_T, grid, steps, key, cond, prediction, clip)


def dpm_solver_sample(
    denoise: Denoise,
    x_T: Float[Array, "batch ..."],
    timesteps: Int[ArrayLike, " steps"],
    alphas_cumprod: Float[ArrayLike, " timesteps"],
    *,
    cond: Any = None,
    prediction: Prediction = "epsilon",
    clip: float | None = None,
    final_alpha_cumprod: float = 1.0,
) -> Float[Array, "batch ..."]:
    """DPM-Solver++(2M): the deterministic multistep sampler of second order, one evaluation a step.

    ``x' = (sigma' / sigma) x - alpha' (exp(-h) - 1) ((1 + 1 / (2r)) D - 1 / (2r) D_previous)``,
    ``h = lambda' - lambda``, ``r = h_previous / h``, ``lambda = log(alpha / sigma)``

    D is the clean data that the network's output stands for, a prime marks the next timestep. The first step,
    and one to or from clean data, where lambda is infinite, are of first order (DDIM).

    Args:
        denoise: any callable of (x, t, cond), t int32 [batch], that returns an array of the shape of x. It
            sees x in the dtype of x_T; the sampler computes in float32 or wider.
        x_T: the noise to start from, at the first timestep.
        timesteps: falling grid, as `sampling_timesteps` gives it.
        alphas_cumprod: alpha-bar of the schedule, [T].
        cond: passed to ``denoise``.
        prediction: what the network predicts, "epsilon", "x0" or "v".
        clip: bounds D to -clip..clip; None: no bound.
        final_alpha_cumprod: alpha-bar after the last step; 1: clean data.

    Returns:
        The samples, in the dtype of x_T.

    Raises:
        TypeError: x_T that is not floating, timesteps that are not integers.
        ValueError: a grid that does not fall or leaves the table, an alpha-bar that does not fall, clip that
            is not positive, an unknown prediction, an output of another shape.

    Source:
        arXiv:2211.01095, Algorithm 2.

    Example:
        >>> grid, abar = sampling_timesteps(10, 5), np.linspace(0.99, 0.01, 10)
        >>> dpm_solver_sample(lambda x, t, cond: x, jnp.ones((2, 3)), grid, abar).shape
        (2, 3)
    """
    grid = _grid(timesteps, alphas_cumprod, final_alpha_cumprod)
    xp = grid.xp
    finite = (grid.sigma > 0) & (grid.next_sigma > 0)
    h = xp.where(finite, _half_log_snr(grid.next_alpha, grid.next_sigma, xp), 0) - xp.where(
        finite, _half_log_snr(grid.alpha, grid.sigma, xp), 0
    )
    kept = grid.next_sigma * grid.inverse_sigma
    gain = grid.next_alpha - kept * grid.alpha  # alpha' (1 - exp(-h)), finite where h is not
    # The data's slope over the previous step, continued over this one; nothing to continue at the start.
    earlier = xp.concatenate([xp.zeros_like(h[:1]), h[:-1]])
    usable = finite & (earlier > 0)
    slope = xp.where(usable, h / (2 * xp.where(usable, earlier, 1)), 0)
    steps = _Steps(kept, gain * (1 + slope), -gain * slope, 0 * kept)
    return _sample(denoise, x_T, grid, steps, None, cond, prediction, clip, multistep=True)


class _Grid(NamedTuple):
    """The schedule at each timestep of the grid and at the one after it, [S] each."""

    xp: Any  # numpy where everything is concrete
    timesteps: Any
    alpha: Any
    sigma: Any
    next_alpha: Any
    next_sigma: Any
    beta: Any  # 1 - abar / abar'
    inverse_sigma: Any  # 0 where sigma is 0: there x is clean, and nothing of it is noise


class _Steps(NamedTuple):
    """The numbers a, b, c, s of each step, [S] each."""

    x: Any
    data: Any
    previous_data: Any
    noise: Any


def _grid(timesteps: Any, alphas_cumprod: Any, final: Any, *others: Any) -> _Grid:
    abar = alpha_bar(alphas_cumprod)
    timesteps = falling_timesteps(timesteps, len(abar))
    check_range("final_alpha_cumprod", final, 0, 1)
    xp = jnp if isinstance(abar, jax.Array) else np
    # Before they lose digits: where only the timesteps are traced, they index these tables in float32.
    sigmas, logs = xp.sqrt(1 - abar), xp.log(abar)
    if any(isinstance(value, jax.Array) for value in (timesteps, final, *others)):
        xp = jnp
    sigma, log = xp.asarray(sigmas)[timesteps], xp.asarray(logs)[timesteps]
    final = xp.asarray(final, log.dtype)
    if xp is np and final < abar[timesteps[-1]]:
        raise ValueError(
            f"final_alpha_cumprod: expected at least alpha-bar at the last timestep, {abar[timesteps[-1]]}, "
            f"got {final}"
        )
    next_sigma = xp.append(sigma[1:], xp.sqrt(1 - final))
    next_log = xp.append(log[1:], xp.log(final))
    inverse = xp.where(sigma > 0, 1 / xp.where(sigma > 0, sigma, 1), 0)
    alpha, next_alpha = xp.exp(0.5 * log), xp.exp(0.5 * next_log)
    return _Grid(xp, timesteps, alpha, sigma, next_alpha, next_sigma, -xp.expm1(log - next_log), inverse)


def _half_log_snr(alpha: Any, sigma: Any, xp: Any) -> Any:
    return xp.log(alpha) - xp.log(xp.where(sigma > 0, sigma, 1))


def _sample(
    denoise: Denoise,
    x_T: Array,
    grid: _Grid,
    steps: _Steps,
    key: PRNGKeyArray | None,
    cond: Any,
    prediction: Prediction,
    clip: float | None,
    multistep: bool = False,
) -> Array:
    one_of("prediction", prediction, get_args(Prediction))
    if clip is not None:
        check_positive(clip=clip)
    x = at_least_float32("x_T", x_T)
    if x.ndim == 0:
        raise ValueError("x_T: expected a batch axis, got a scalar")
    input_dtype, dtype = jnp.result_type(x_T), x.dtype
    along_batch, along_all = explicit_sharding(x, 1), explicit_sharding(x)

    def step(carry: tuple[Array, Any], now: tuple[Any, ...]) -> tuple[tuple[Array, Any], None]:
        x, previous = carry
        t, alpha, sigma, numbers, step_key = now
        times = jnp.broadcast_to(t, x.shape[:1], out_sharding=along_batch)
        output = checked_output(denoise(x.astype(input_dtype), times, cond), x)
        data = predict_x0(output, x, alpha, sigma, prediction).astype(dtype)
        if clip is not None:
            data = jnp.clip(data, -clip, clip)
        following = numbers.x * x + numbers.data * data
        if multistep:
            following += numbers.previous_data * previous
        if step_key is not None:
            following += numbers.noise * jax.random.normal(step_key, x.shape, dtype, out_sharding=along_all)
        return (following, data if multistep else None), None

    now = (
        jnp.asarray(grid.timesteps, jnp.int32),
        jnp.asarray(grid.alpha, dtype),
        jnp.asarray(grid.sigma, dtype),
        jax.tree.map(lambda number: jnp.asarray(number, dtype), steps),
        None if key is None else jax.random.split(key, len(grid.timesteps)),
    )
    (x, _), _ = jax.lax.scan(step, (x, jnp.zeros_like(x) if multistep else None), now)
    return x.astype(input_dtype)
