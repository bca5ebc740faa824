"""Networks of digits that are told a class: a residual MLP, and an exact teacher.

They predict the noise of grey levels from -1 to 1. The exact teacher is the noise of a Gaussian mixture of
each class; its student and its adapters start from the MLP.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.digits import CLASSES, digit_pixels
from jaxneg.diffusion import drop_condition, gaussian_mixture_denoiser, scaled_linear_schedule
from jaxneg.nn.bridge import bridge
from jaxneg.nn.conditioning import Conditioning

TIMESTEPS = 1000
ALPHAS_CUMPROD = scaled_linear_schedule(TIMESTEPS).alphas_cumprod
PIXELS = 64
LABEL_DROPOUT = 0.1
SINUSOIDS = 64
COMPONENTS, VARIANCE_FLOOR = 8, 1e-2
"""Gaussians of each class of the exact teacher, and what is added to their variances."""

Params = Any


class Network(NamedTuple):
    """A network, and what it is trained on and asked for."""

    name: str
    shape: tuple[int, ...]
    init: Callable[[PRNGKeyArray], Params]
    apply: Callable[..., Array]
    """``(params, x [batch, *shape], t [batch], cond) -> noise``; a DiT also takes ``neg_cond=``
    and ``alpha=``."""
    examples: Callable[[PRNGKeyArray, int], tuple[Array, Array]]
    """Images and their conditions, some of which are dropped."""
    prompts: Callable[[PRNGKeyArray, int], Array]
    """Conditions for the student."""
    digits: Callable[[Array], Array]
    """The conditions that ask for digits."""
    null: Any
    """What stands for no condition."""
    lora_match: str
    """Kernels that get adapters."""


class Block(nnx.Module):
    """``h + second(silu(first(rms(h) (1 + scale) + shift)))``."""

    def __init__(self, hidden: int, rngs: nnx.Rngs):
        self.modulation = _linear(hidden, 2 * hidden, 1.0, rngs)
        self.first = _linear(hidden, hidden, 1.0, rngs)
        self.second = _linear(hidden, hidden, 0.1, rngs)

    def __call__(
        self, h: Float[Array, "batch hidden"], e: Float[Array, "batch hidden"]
    ) -> Float[Array, "batch hidden"]:
        """The next hidden features."""
        shift, scale = jnp.split(self.modulation(e), 2, axis=-1)
        return h + self.second(jax.nn.silu(self.first(_root_mean_square(h) * (1 + scale) + shift)))


class ResidualMLP(nnx.Module):
    """Blocks that are modulated by timestep and class."""

    def __init__(self, hidden: int, blocks: int, rngs: nnx.Rngs):
        init = _fan_in(1.0)
        self.conditioning = Conditioning(SINUSOIDS, hidden, CLASSES, 0.5, init, None, rngs)
        self.inputs = _linear(PIXELS, hidden, 1.0, rngs)
        self.blocks = nnx.List([Block(hidden, rngs) for _ in range(blocks)])
        self.outputs = _linear(hidden, PIXELS, 0.1, rngs)

    def __call__(
        self, x: Float[Array, "batch 64"], t: Int[Array, " batch"], label: Int[Array, " batch"]
    ) -> Float[Array, "batch 64"]:
        """The noise."""
        e = jax.nn.silu(self.conditioning(t, label))
        h = self.inputs(x)
        for block in self.blocks:  # pyright: ignore[reportGeneralTypeIssues]
            h = block(h, e)
        return self.outputs(_root_mean_square(h))


def residual_mlp(hidden: int, blocks: int) -> Network:
    """The MLP, told one of ten classes, or none.

    Args:
        hidden: width.
        blocks: number of residual blocks.

    Returns:
        The network.
    """
    init, apply = bridge(lambda rngs: ResidualMLP(hidden, blocks, rngs))

    def examples(key: PRNGKeyArray, batch: int) -> tuple[Array, Array]:
        of_rows, of_drop = jax.random.split(key)
        x, y = drawn(of_rows, batch)
        return x, drop_condition(of_drop, y, CLASSES, LABEL_DROPOUT)

    return Network(
        name="mlp",
        shape=(PIXELS,),
        init=init,
        apply=apply,
        examples=examples,
        prompts=lambda key, batch: jax.random.randint(key, (batch,), 0, CLASSES),
        digits=lambda digit: digit,
        null=CLASSES,
        lora_match=r"kernel$",
    )


@cache
def exact_noise() -> Callable[[Array, Array, Array], Array]:
    """The exact teacher: the noise of a mixture of spherical Gaussians fitted to each class.

    Without a class, all classes are equally likely.

    Returns:
        ``(x [batch, 64], t, label) -> noise``; label 10 is no class.
    """
    from sklearn.mixture import GaussianMixture

    pixels = digit_pixels()
    fitted: list[Any] = [
        GaussianMixture(
            COMPONENTS, covariance_type="spherical", reg_covar=VARIANCE_FLOOR, random_state=0
        ).fit(pixels.x[pixels.y == digit].astype(np.float64))
        for digit in range(CLASSES)
    ]
    means = np.concatenate([mixture.means_ for mixture in fitted]).astype(np.float32)
    stds = np.sqrt(np.concatenate([mixture.covariances_ for mixture in fitted])).astype(np.float32)
    shares = np.zeros((CLASSES + 1, CLASSES * COMPONENTS), np.float32)
    for digit, mixture in enumerate(fitted):
        own = slice(digit * COMPONENTS, (digit + 1) * COMPONENTS)
        shares[digit, own] = mixture.weights_
        shares[CLASSES, own] = mixture.weights_ / CLASSES
    noise = gaussian_mixture_denoiser(means, shares[CLASSES], stds, ALPHAS_CUMPROD).noise
    return lambda x, t, label: noise(x, t, jnp.asarray(shares)[label])


def drawn(key: PRNGKeyArray, batch: int) -> tuple[Float[Array, "batch 64"], Int[Array, " batch"]]:
    """Real digits and what they show.

    Args:
        key: random key.
        batch: how many.

    Returns:
        Pixels and labels.
    """
    pixels = digit_pixels()
    rows = jax.random.randint(key, (batch,), 0, len(pixels.y))
    return jnp.asarray(pixels.x)[rows], jnp.asarray(pixels.y)[rows]


def _fan_in(scale: float) -> nnx.Initializer:
    """Normal entries of standard deviation ``scale / sqrt(fan_in)``."""
    return nnx.initializers.variance_scaling(scale**2, "fan_in", "normal")


def _linear(inputs: int, outputs: int, scale: float, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, kernel_init=_fan_in(scale), rngs=rngs)


def _root_mean_square(h: Float[Array, "batch hidden"]) -> Float[Array, "batch hidden"]:
    """The features over the root of their mean square."""
    return h * jax.lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + 1e-6)
