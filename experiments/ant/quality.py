"""How good samples are: Fréchet distances to the real digits, precision and recall, and the transfer gaps."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments import digits
from experiments.ant.training import SCHEDULE, TIMESTEPS, denoiser, unflat
from jaxneg.diffusion import (
    ddim_sample,
    denoising_loss,
    frechet_distance,
    precision_recall,
    sample_with_specialist,
    sampling_timesteps,
)

SAMPLING_STEPS = 50
TRIPLES = 8
"""Timesteps at which each image is looked at for a gap of losses."""
SHOWN = 16
"""Samples in a row of the figure."""


class Judge(NamedTuple):
    """What samples are held against."""

    classifier: digits.Params
    latents: digits.Latents | None
    """What decodes the samples; None for samples that are pixels."""
    x: Float[np.ndarray, "examples features"]
    """The real examples."""
    clip: float
    """Where predicted examples are clipped in sampling."""

    def pixels(self, x: Array) -> Array:
        """Grey levels of examples."""
        return jnp.clip(x, -1.0, 1.0) if self.latents is None else self.latents.decode(x)

    def features(self, x: Array) -> Array:
        """What the classifier sees in examples."""
        return digits.features(self.classifier, self.pixels(x))


class Quality(NamedTuple):
    """Of a method's samples over the training."""

    fd: Float[np.ndarray, "seeds checkpoints"]
    """Fréchet distance in the classifier's features."""
    own_fd: Float[np.ndarray, "seeds checkpoints"]
    """The same in the space of the examples."""
    precision: Float[np.ndarray, " seeds"]
    """At the checkpoint at which methods are compared."""
    recall: Float[np.ndarray, " seeds"]


def latent_judge() -> Judge:
    """For samples in the space of 16 principal components."""
    latents = digits.digit_latents()
    return Judge(digits.train_classifier(jax.random.key(0)), latents, latents.x, 4.0)


def pixel_judge() -> Judge:
    """For samples that are images."""
    return Judge(digits.train_classifier(jax.random.key(0)), None, digits.digit_pixels().x, 1.0)


def first_noise(
    seeds: int, draws: int, samples: int, features: int
) -> Float[Array, "seeds samples features"]:
    """What the samples of each seed begin from, the same for all methods.

    Args:
        seeds: how many.
        draws: sets of samples.
        samples: in a set.
        features: numbers in one.

    Returns:
        Standard normal; the draws lie one after the other.
    """

    def of_seed(seed: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(jax.random.key(seed), 1), (draws * samples, features))

    return jax.vmap(of_seed)(jnp.arange(seeds))


@partial(jax.jit, static_argnames=("hidden", "clip"))
def draw(
    vectors: Float[Array, "networks size"],
    x_T: Float[Array, "networks samples features"],
    hidden: int,
    clip: float,
) -> Float[Array, "networks samples features"]:
    """Samples by DDIM.

    Args:
        vectors: each network's parameters.
        x_T: what each network's samples begin from.
        hidden: width of the networks.
        clip: where predicted examples are clipped.

    Returns:
        Samples.
    """
    features = x_T.shape[-1]
    denoise = denoiser(features, hidden)
    steps = sampling_timesteps(TIMESTEPS, SAMPLING_STEPS)

    def of_network(pair: tuple[Array, Array]) -> Array:
        params = unflat(pair[0], features, hidden)
        return ddim_sample(partial(denoise, params), pair[1], steps, SCHEDULE.alphas_cumprod, clip=clip)

    return jax.lax.map(of_network, (vectors, x_T))


@partial(jax.jit, static_argnames=("interval", "hidden", "clip"))
def draw_with_specialists(
    vectors: Float[Array, "networks size"],
    specialists: Float[Array, "networks size"],
    interval: tuple[int, int],
    x_T: Float[Array, "networks samples features"],
    hidden: int,
    clip: float,
) -> Float[Array, "networks samples features"]:
    """Samples by DDIM, where a specialist takes the steps in its own interval.

    Args:
        vectors: each network's parameters.
        specialists: those of its specialist.
        interval: its first timestep, and the one after its last.
        x_T: what each network's samples begin from.
        hidden: width of the networks.
        clip: where predicted examples are clipped.

    Returns:
        Samples.
    """
    features = x_T.shape[-1]
    denoise = denoiser(features, hidden)
    steps = sampling_timesteps(TIMESTEPS, SAMPLING_STEPS)

    def of_network(given: tuple[Array, Array, Array]) -> Array:
        params, own = (unflat(vector, features, hidden) for vector in given[:2])
        return sample_with_specialist(
            partial(denoise, params),
            partial(denoise, own),
            interval,
            given[2],
            steps,
            SCHEDULE.alphas_cumprod,
            clip=clip,
        )

    return jax.lax.map(of_network, (vectors, specialists, x_T))


def distances(
    samples: Float[Array, "networks samples features"], judge: Judge, draws: int
) -> tuple[Float[np.ndarray, " networks"], Float[np.ndarray, " networks"]]:
    """Fréchet distances of samples to the real digits, averaged over the draws.

    Args:
        samples: the draws lie one after the other.
        judge: what they are held against.
        draws: how many.

    Returns:
        In the classifier's features, and in the space of the samples.
    """
    sets = _sets(samples, draws)
    seen, real = judge.features(sets), judge.features(jnp.asarray(judge.x))
    pairs = ((seen, real), (sets, jnp.asarray(judge.x)))
    in_features, own = (np.asarray(_frechet(*pair)).reshape(-1, draws).mean(axis=1) for pair in pairs)
    return in_features, own


def precision_and_recall(
    samples: Float[Array, "networks samples features"], judge: Judge, draws: int
) -> tuple[Float[np.ndarray, " networks"], Float[np.ndarray, " networks"]]:
    """Precision and recall of samples in the classifier's features, averaged over the draws.

    Args:
        samples: the draws lie one after the other.
        judge: what they are held against.
        draws: how many.

    Returns:
        Both.
    """
    found = _neighbours(judge.features(jnp.asarray(judge.x)), judge.features(_sets(samples, draws)))
    precision, recall = (np.asarray(each).reshape(-1, draws).mean(axis=1) for each in found)
    return precision, recall


def _sets(samples: Array, draws: int) -> Array:
    networks, count, features = samples.shape
    return jnp.reshape(samples, (networks * draws, count // draws, features))


@jax.jit
def _frechet(sets: Array, real: Array) -> Array:
    return jax.lax.map(lambda own: frechet_distance(own, real), sets)


@jax.jit
def _neighbours(real: Array, sets: Array) -> tuple[Array, Array]:
    return jax.lax.map(lambda own: tuple(precision_recall(real, own)), sets)


@partial(jax.jit, static_argnames="hidden")
def interval_losses(
    vectors: Float[Array, "networks size"], x: Float[Array, "examples features"], bounds: Array, hidden: int
) -> Float[Array, "networks intervals"]:
    """The mean denoising loss in each interval, on the same examples, noise and timesteps for all networks.

    Args:
        vectors: each network's parameters.
        x: the examples, each of which is looked at at 8 timesteps of every interval.
        bounds: of the intervals.
        hidden: width of the networks.

    Returns:
        Losses.
    """
    denoise = denoiser(x.shape[1], hidden)
    x0 = jnp.tile(x, (TRIPLES, 1))

    def of_network(vector: Array) -> Array:
        params = unflat(vector, x.shape[1], hidden)

        def of_interval(interval: tuple[Array, Array, Array]) -> Array:
            number, low, high = interval
            of_t, of_noise = jax.random.split(jax.random.fold_in(jax.random.key(2), number))
            t = jax.random.randint(of_t, x0.shape[:1], low, high)
            noise = jax.random.normal(of_noise, x0.shape)
            return jnp.mean(denoising_loss(partial(denoise, params), x0, t, noise, SCHEDULE.alphas_cumprod))

        return jax.lax.map(of_interval, (jnp.arange(len(bounds) - 1), bounds[:-1], bounds[1:]))

    return jax.lax.map(of_network, vectors)


def halves_apart(judge: Judge, halves: int = 10) -> Float[np.ndarray, " halves"]:
    """The distance between two random halves of the real digits: what equal sets of that size have.

    Args:
        judge: with the digits.
        halves: how often they are halved.

    Returns:
        A distance for each.
    """
    real = judge.features(jnp.asarray(judge.x))
    orders = (np.random.default_rng(seed).permutation(len(real)) for seed in range(halves))
    pairs = (np.array_split(order, 2) for order in orders)
    return np.array([float(frechet_distance(real[first], real[second])) for first, second in pairs])
