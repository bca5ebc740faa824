"""Noise schedules of diffusion models with preserved variance, discrete and continuous.

``q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)`` where ``alpha_t = sqrt(abar_t)``,
``sigma_t = sqrt(1 - abar_t)``, ``abar_t = prod_{i <= t} (1 - beta_i)``; ``SNR_t = abar_t / (1 - abar_t)``.

Discrete schedules are computed once, on the host, and kept as float64 numpy arrays: near t = 0 the noise
1 - abar would lose three digits in float32. The functions that use them take them as they are.

Papers: linear, arXiv:2006.11239, Section 4, rescaled to other T as in arXiv:2102.09672; cosine,
arXiv:2102.09672, equation 17; sigmoid, arXiv:2212.11972, Appendix B, and arXiv:2301.10972, Algorithm 1;
scaled linear, the schedule of latent diffusion, arXiv:2112.10752. Continuous log-SNR: arXiv:2107.00630.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from jaxneg.diffusion.arguments import alpha_bar, check_positive


class NoiseSchedule(NamedTuple):
    """A discrete schedule in float64 on the host; t = 0 is the least noise, t = T - 1 the most.

    Attributes:
        betas: [T], the variance added at each step.
        alphas_cumprod: [T], alpha-bar, falling.
    """

    betas: Float[np.ndarray, " timesteps"]
    alphas_cumprod: Float[np.ndarray, " timesteps"]

    @property
    def alpha(self) -> Float[np.ndarray, " timesteps"]:
        """The signal's scale, ``sqrt(abar_t)``."""
        return np.sqrt(self.alphas_cumprod)

    @property
    def sigma(self) -> Float[np.ndarray, " timesteps"]:
        """The noise's scale, ``sqrt(1 - abar_t)``."""
        return np.sqrt(1 - self.alphas_cumprod)

    @property
    def snr(self) -> Float[np.ndarray, " timesteps"]:
        """The signal-to-noise ratio, ``abar_t / (1 - abar_t)``."""
        return snr(self.alphas_cumprod)

    @property
    def log_snr(self) -> Float[np.ndarray, " timesteps"]:
        """The logarithm of the signal-to-noise ratio, in nats."""
        return np.log(self.snr)

    @property
    def posterior_variance(self) -> Float[np.ndarray, " timesteps"]:
        """Variance of ``q(x_{t-1} | x_t, x_0)``: ``beta_t (1 - abar_{t-1}) / (1 - abar_t)``, 0 at t = 0."""
        previous = np.concatenate([np.ones(1), self.alphas_cumprod[:-1]])
        return self.betas * (1 - previous) / (1 - self.alphas_cumprod)


def noise_schedule(
    betas: ArrayLike | None = None, *, alphas_cumprod: ArrayLike | None = None
) -> NoiseSchedule:
    """A schedule from its betas or from its alpha-bar, checked.

    ``abar_t = prod_{i <= t} (1 - beta_i)``

    Args:
        betas: [T], each above 0 and below 1.
        alphas_cumprod: [T], falling strictly within (0, 1); give one of the two.

    Returns:
        The schedule in float64.

    Raises:
        TypeError: values that are not floating.
        ValueError: neither or both given, no timestep, a beta outside (0, 1), an alpha-bar that does not
            fall.

    Source:
        arXiv:2006.11239, equation 4.

    Example:
        >>> noise_schedule([0.5, 0.5]).alphas_cumprod.tolist()
        [0.5, 0.25]
    """
    if (betas is None) == (alphas_cumprod is None):
        raise ValueError("noise_schedule: expected either betas or alphas_cumprod, got both or neither")
    if betas is None:
        values = np.asarray(alpha_bar(np.asarray(alphas_cumprod)))
        betas = 1 - values / np.concatenate([np.ones(1), values[:-1]])
        return NoiseSchedule(_checked_betas(betas), values)
    betas = _checked_betas(np.asarray(betas))
    return NoiseSchedule(betas, np.asarray(alpha_bar(np.cumprod(1 - betas))))


def linear_schedule(T: int, *, start: float = 1e-4, end: float = 0.02) -> NoiseSchedule:
    """Betas that grow linearly.

    ``beta_i = (1000 / T) (start + (end - start) i / (T - 1))``

    Args:
        T: number of timesteps.
        start: the first beta at T = 1000.
        end: the last beta at T = 1000.

    Returns:
        The schedule.

    Raises:
        ValueError: T below 1, or a beta outside (0, 1), as with T of 20 and fewer.

    Source:
        arXiv:2006.11239, Section 4.

    Example:
        >>> linear_schedule(1000).betas[[0, -1]].round(6).tolist()
        [0.0001, 0.02]
    """
    scale = 1000 / _checked_count(T)
    return noise_schedule(np.linspace(scale * start, scale * end, T))


def scaled_linear_schedule(T: int, *, start: float = 0.00085, end: float = 0.012) -> NoiseSchedule:
    """Betas whose square roots grow linearly: the schedule of Stable Diffusion.

    ``beta_i = (sqrt(start) + (sqrt(end) - sqrt(start)) i / (T - 1))^2``

    Args:
        T: number of timesteps; the betas are not rescaled with it.
        start: the first beta.
        end: the last beta.

    Returns:
        The schedule.

    Raises:
        ValueError: T below 1, or a beta outside (0, 1).

    Source:
        arXiv:2112.10752, the released models.

    Example:
        >>> scaled_linear_schedule(1000).betas[[0, -1]].round(6).tolist()
        [0.00085, 0.012]
    """
    check_positive(start=start, end=end)
    return noise_schedule(np.linspace(np.sqrt(start), np.sqrt(end), _checked_count(T)) ** 2)


def cosine_schedule(T: int, *, offset: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
    """Alpha-bar that falls as a squared cosine.

    ``beta_i = min(1 - f((i + 1) / T) / f(i / T), max_beta)``,
    ``f(u) = cos^2(pi/2 (u + offset) / (1 + offset))``

    Args:
        T: number of timesteps.
        offset: keeps the first betas from being too small.
        max_beta: the largest beta; without it the last would be 1.

    Returns:
        The schedule.

    Raises:
        ValueError: T below 1, or a beta outside (0, 1).

    Source:
        arXiv:2102.09672, equation 17.

    Example:
        >>> round(float(cosine_schedule(1000).alphas_cumprod[499]), 3)
        0.494
    """
    u = np.arange(_checked_count(T) + 1) / T
    f = np.cos(np.pi / 2 * (u + offset) / (1 + offset)) ** 2
    return noise_schedule(np.minimum(1 - f[1:] / f[:-1], max_beta))


def sigmoid_schedule(
    T: int, *, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> NoiseSchedule:
    """Alpha-bar that falls as a sigmoid.

    ``beta_i = min(1 - g((i + 1) / T) / g(i / T), max_beta)``,
    ``g(u) = (s(end) - s(start + u (end - start))) / (s(end) - s(start))``, ``s(z) = sigmoid(z / tau)``

    Args:
        T: number of timesteps.
        start: the sigmoid's argument at u = 0.
        end: the sigmoid's argument at u = 1, above start.
        tau: temperature, positive.
        max_beta: the largest beta; without it the last would be 1.

    Returns:
        The schedule.

    Raises:
        ValueError: T below 1, end not above start, tau that is not positive.

    Source:
        arXiv:2212.11972, Appendix B; arXiv:2301.10972, Algorithm 1.

    Example:
        >>> round(float(sigmoid_schedule(1000).alphas_cumprod[499]), 3)
        0.5
    """
    continuous = continuous_sigmoid(start=start, end=end, tau=tau, low=-60.0, high=60.0)
    g = np.concatenate([np.ones(1), continuous.alpha(np.arange(1, _checked_count(T)) / T) ** 2, np.zeros(1)])
    return noise_schedule(np.minimum(1 - g[1:] / g[:-1], max_beta))


def snr(alphas_cumprod: ArrayLike) -> Any:
    """The signal-to-noise ratio.

    ``SNR_t = abar_t / (1 - abar_t)``

    Args:
        alphas_cumprod: alpha-bar, any shape. A numpy array stays one, with its precision.

    Returns:
        The ratio, of the same shape; infinite where alpha-bar is 1.

    Source:
        arXiv:2107.00630, equation 2.

    Example:
        >>> snr(np.array([0.9, 0.5])).round(6).tolist()
        [9.0, 1.0]
    """
    if isinstance(alphas_cumprod, jax.Array):
        return alphas_cumprod / (1 - alphas_cumprod)
    values = np.asarray(alphas_cumprod)
    with np.errstate(divide="ignore"):
        return values / (1 - values)


class ContinuousSchedule(NamedTuple):
    """A schedule over continuous time u, from 0 (least noise) to 1 (most).

    Numpy arrays give numpy arrays with their precision, JAX arrays give JAX arrays.

    Attributes:
        log_snr: the logarithm of the signal-to-noise ratio as a function of u, falling.
    """

    log_snr: Callable[[ArrayLike], Any]

    def alpha(self, u: ArrayLike) -> Any:
        """The signal's scale, ``sqrt(sigmoid(log SNR))``."""
        return _exp_half_log_sigmoid(self.log_snr(u))

    def sigma(self, u: ArrayLike) -> Any:
        """The noise's scale, ``sqrt(sigmoid(-log SNR))``."""
        return _exp_half_log_sigmoid(-self.log_snr(u))

    def snr(self, u: ArrayLike) -> Any:
        """The signal-to-noise ratio."""
        log_snr = self.log_snr(u)
        return _numpy_of(log_snr).exp(log_snr)

    def discretize(self, T: int) -> NoiseSchedule:
        """The discrete schedule with ``abar_t = abar(u = (t + 1) / T)``, for losses and samplers."""
        u = np.arange(1, _checked_count(T) + 1) / T
        return noise_schedule(alphas_cumprod=self.alpha(u) ** 2)


def continuous_linear(
    *, start: float = 0.1, end: float = 20.0, low: float = -15.0, high: float = 15.0
) -> ContinuousSchedule:
    """Noise whose rate grows linearly: the variance-preserving SDE, limit of `linear_schedule`.

    ``-log abar(u) = start u + (end - start) u^2 / 2``

    Args:
        start: rate at u = 0, positive.
        end: rate at u = 1, positive.
        low: least log-SNR, nats.
        high: greatest log-SNR, nats; without it, it would be infinite at u = 0.

    Returns:
        The schedule.

    Raises:
        ValueError: a rate that is not positive, low not below high.

    Source:
        arXiv:2011.13456, equation 32.

    Example:
        >>> round(float(continuous_linear().log_snr(1.0)), 3)
        -10.05
    """
    check_positive(start=start, end=end)

    def log_snr(u: ArrayLike) -> Any:
        xp = _numpy_of(u)
        rate = xp.maximum(start * xp.asarray(u) + 0.5 * (end - start) * xp.asarray(u) ** 2, _TINY)
        return xp.clip(-rate - xp.log(-xp.expm1(-rate)), low, high)

    return _bounded(log_snr, low, high)


def continuous_cosine(*, offset: float = 0.008, low: float = -15.0, high: float = 15.0) -> ContinuousSchedule:
    """Alpha-bar that falls as a squared cosine, limit of `cosine_schedule`.

    ``abar(u) = cos^2(a(u)) / cos^2(a(0))``, ``a(u) = pi/2 (u + offset) / (1 + offset)``

    Args:
        offset: as in `cosine_schedule`; with 0, ``log SNR = -2 log tan(pi u / 2)``.
        low: least log-SNR, nats; without it, it would be infinite at u = 1.
        high: greatest log-SNR, nats; without it, it would be infinite at u = 0.

    Returns:
        The schedule.

    Raises:
        ValueError: a negative offset, low not below high.

    Source:
        arXiv:2102.09672, equation 17; arXiv:2107.00630 for the log-SNR.

    Example:
        >>> round(float(continuous_cosine(offset=0.0).log_snr(0.5)), 3) == 0
        True
    """
    if offset < 0:
        raise ValueError(f"offset: expected a number of at least 0, got {offset}")
    first = np.pi / 2 * offset / (1 + offset)

    def log_snr(u: ArrayLike) -> Any:
        xp = _numpy_of(u)
        angle = np.pi / 2 * (xp.asarray(u) + offset) / (1 + offset)
        signal = xp.maximum(xp.cos(angle), _TINY)
        # 1 - abar = sin(a - a0) sin(a + a0) / cos^2(a0), without the cancellation of the left side.
        noise = xp.maximum(xp.sin(angle - first) * xp.sin(angle + first), _TINY)
        return xp.clip(2 * xp.log(signal) - xp.log(noise), low, high)

    return _bounded(log_snr, low, high)


def continuous_sigmoid(
    *, start: float = -3.0, end: float = 3.0, tau: float = 1.0, low: float = -15.0, high: float = 15.0
) -> ContinuousSchedule:
    """Alpha-bar that falls as a sigmoid, limit of `sigmoid_schedule`.

    ``abar(u) = (s(end) - s(z)) / (s(end) - s(start))``,
    ``z = start + u (end - start)``, ``s(z) = sigmoid(z / tau)``

    Args:
        start: the sigmoid's argument at u = 0.
        end: the sigmoid's argument at u = 1, above start.
        tau: temperature, positive.
        low: least log-SNR, nats; without it, it would be infinite at u = 1.
        high: greatest log-SNR, nats; without it, it would be infinite at u = 0.

    Returns:
        The schedule.

    Raises:
        ValueError: end not above start, tau that is not positive, low not below high.

    Source:
        arXiv:2212.11972, Appendix B.

    Example:
        >>> round(float(continuous_sigmoid().log_snr(0.5)), 3)
        0.0
    """
    check_positive(tau=tau)
    if not start < end:
        raise ValueError(f"end: expected a number above start = {start}, got {end}")
    width = 0.5 * (end - start) / tau

    def log_snr(u: ArrayLike) -> Any:
        xp = _numpy_of(u)
        # s(a) - s(b) = sinh((a - b) / 2) / (2 cosh(a / 2) cosh(b / 2)); the cosh of z cancels in the ratio.
        signal = xp.log(xp.sinh(xp.maximum(width * (1 - xp.asarray(u)), _TINY)))
        noise = xp.log(xp.sinh(xp.maximum(width * xp.asarray(u), _TINY)))
        ends = np.log(np.cosh(0.5 * start / tau) / np.cosh(0.5 * end / tau))
        return xp.clip(signal - noise + ends, low, high)

    return _bounded(log_snr, low, high)


# Under the logarithms: far below what any bound of the log-SNR lets through, and normal in float32.
_TINY = 1e-30


def _bounded(log_snr: Callable[[ArrayLike], Any], low: float, high: float) -> ContinuousSchedule:
    if not low < high:
        raise ValueError(f"low: expected a number below high = {high}, got {low}")
    return ContinuousSchedule(log_snr)


def _numpy_of(value: ArrayLike) -> Any:
    return jnp if isinstance(value, jax.Array) else np


def _exp_half_log_sigmoid(log_snr: Any) -> Any:
    if isinstance(log_snr, jax.Array):
        return jnp.exp(0.5 * jax.nn.log_sigmoid(log_snr))
    return np.exp(-0.5 * np.logaddexp(0.0, -log_snr))


def _checked_betas(betas: np.ndarray) -> np.ndarray:
    if not np.issubdtype(betas.dtype, np.floating):
        raise TypeError(f"betas: expected a floating dtype, got {betas.dtype}")
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas: expected one number for each timestep, [T], got shape {betas.shape}")
    outside = ~((betas > 0) & (betas < 1))
    if outside.any():
        i = int(outside.argmax())
        raise ValueError(f"betas: expected numbers above 0 and below 1, got betas[{i}] = {betas[i]}")
    return betas.astype(np.float64)


def _checked_count(T: int) -> int:
    if not isinstance(T, int | np.integer) or T < 1:
        raise ValueError(f"T: expected a number of timesteps of at least 1, got {T}")
    return int(T)
