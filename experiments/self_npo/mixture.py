"""Part A: a plane with four classes, whose exact density is the preference.

Each class has six Gaussians along a spiral arm. What is preferred of two points of a class is the likelier
one, so that the reward ``log p(x | class)`` is known exactly, and so is what diversity there should be. The
network that learns it stops early, which leaves it bad in its own way, as a model of the web's images is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.self_npo.network import Task
from jaxneg.diffusion import gaussian_mixture_denoiser

CLASSES, COMPONENTS = 4, 6
STD, RADIUS, TWIST = 0.06, 1.6, 1.2
BATCH = 256
WORST_REWARD = -50.0
"""Means are taken of rewards that are no lower."""
OUTLIER = 0.01
"""Share of true points that count as outliers."""
TRUE_POINTS = 100_000


def _means() -> Float[np.ndarray, "classes components 2"]:
    along = np.linspace(0.25, 1.0, COMPONENTS)
    angle = 2 * np.pi * np.arange(CLASSES)[:, None] / CLASSES + TWIST * along
    return RADIUS * along[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


MEANS = _means()
EXACT = gaussian_mixture_denoiser(
    MEANS.reshape(-1, 2).astype(np.float32),
    np.full(MEANS.shape[0] * MEANS.shape[1], 1 / MEANS[..., 0].size, np.float32),
    np.full(MEANS[..., 0].size, STD, np.float32),
    np.ones(1),
)
"""Of clean points: the only timestep has no noise."""


class Quality(NamedTuple):
    """What samples are worth."""

    reward: Float[Array, " batch"]
    """``log p(x | class)``, nats; at least -50."""
    outliers: Float[Array, ""]
    """Share of samples that are less likely than the least likely 1 % of true points."""
    variation: Float[Array, ""]
    """Total variation between how often a class's Gaussians are met and 1/6, mean over the classes."""


def mixture_task(hidden: int) -> Task:
    """The plane.

    Args:
        hidden: width of the network.

    Returns:
        The task.
    """
    return Task(2, CLASSES, hidden, draw)


def draw(key: PRNGKeyArray, count: int = BATCH) -> tuple[Float[Array, "count 2"], Int[Array, " count"]]:
    """True points.

    Args:
        key: random key.
        count: how many.

    Returns:
        Points and their classes, which are uniform.
    """
    of_label, of_component, of_noise = jax.random.split(key, 3)
    label = jax.random.randint(of_label, (count,), 0, CLASSES)
    component = jax.random.randint(of_component, (count,), 0, COMPONENTS)
    noise = jax.random.normal(of_noise, (count, 2))
    return jnp.asarray(MEANS, noise.dtype)[label, component] + STD * noise, label


def log_density(x: Float[Array, "batch 2"], label: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """The reward.

    Args:
        x: points.
        label: their classes.

    Returns:
        ``log p(x | class)``, nats.
    """
    weights = jnp.repeat(jax.nn.one_hot(label, CLASSES), COMPONENTS, axis=1) / COMPONENTS
    return EXACT.log_density(x, jnp.zeros(label.shape, jnp.int32), weights)


@jax.jit
def outlier_threshold(key: PRNGKeyArray) -> Float[Array, ""]:
    """The reward that 1 % of true points fall below.

    Args:
        key: random key of the points.

    Returns:
        Nats.
    """
    return jnp.quantile(log_density(*draw(key, TRUE_POINTS)), OUTLIER)


def quality(x: Float[Array, "batch 2"], label: Int[Array, " batch"], threshold: Array | float) -> Quality:
    """What samples are worth.

    Args:
        x: samples.
        label: their classes, each of which is there.
        threshold: from `outlier_threshold`.

    Returns:
        Rewards, outliers and variation.
    """
    reward = log_density(x, label)
    distance = jnp.sum(jnp.square(x[:, None] - jnp.asarray(MEANS, x.dtype)[label]), axis=-1)
    nearest = jax.nn.one_hot(jnp.argmin(distance, axis=-1), COMPONENTS)
    of_class = jax.nn.one_hot(label, CLASSES)
    count = jnp.einsum("bc,bm->cm", of_class, nearest)
    frequency = count / jnp.sum(count, axis=1, keepdims=True)
    variation = jnp.mean(jnp.sum(jnp.abs(frequency - 1 / COMPONENTS), axis=1) / 2)
    return Quality(jnp.maximum(reward, WORST_REWARD), jnp.mean(reward < threshold), variation)
