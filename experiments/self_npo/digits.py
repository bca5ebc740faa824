"""Part B: digits as latents, with the distance to digits that were held out as the preference."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.digits import CLASSES, LATENT_DIMS, TRAIN, Latents, accuracy, features, train_classifier
from experiments.self_npo.network import Task
from jaxneg.diffusion import frechet_distance

BATCH = 125


class Judges(NamedTuple):
    """What samples are measured with."""

    latents: Latents
    eyes: list[dict[str, Array]]
    """The classifier in whose features distributions are compared."""
    second: list[dict[str, Array]]
    """The one that says whether a digit is what it should be."""


class Quality(NamedTuple):
    """What samples are worth."""

    distance: Float[Array, " batch"]
    """To the nearest digit of the class that was held out, in the space of the latents."""
    frechet: Float[Array, ""]
    """Fréchet distance to the digits trained on, in a classifier's features."""
    accuracy: Float[Array, ""]
    """Share of samples that the other classifier takes for their class."""


def digit_task(latents: Latents, hidden: int) -> Task:
    """The digits that may be trained on.

    Args:
        latents: with the components of the first 1437.
        hidden: width of the network.

    Returns:
        The task.
    """
    x, y = jnp.asarray(latents.x[:TRAIN]), jnp.asarray(latents.y[:TRAIN])

    def draw(key: Array) -> tuple[Array, Array]:
        rows = jax.random.randint(key, (BATCH,), 0, TRAIN)
        return x[rows], y[rows]

    return Task(LATENT_DIMS, CLASSES, hidden, draw)


def judges(latents: Latents) -> Judges:
    """Both classifiers, which differ in their random keys; they are the same for every seed.

    Args:
        latents: with the components of the first 1437 digits.

    Returns:
        What `quality` takes.
    """
    return Judges(latents, *(train_classifier(jax.random.key(seed)) for seed in range(2)))


def nearest(
    x: Float[Array, "batch dims"],
    label: Int[Array, " batch"],
    real: Float[Array, "real dims"],
    real_label: Int[Array, " real"],
) -> Float[Array, " batch"]:
    """The distance to the nearest real example of the class.

    Args:
        x: samples.
        label: their classes.
        real: real examples.
        real_label: their classes.

    Returns:
        One for each sample; infinite where the class has no example.
    """
    squares = jnp.sum(jnp.square(x[:, None] - real), axis=-1)
    return jnp.sqrt(jnp.min(jnp.where(label[:, None] == real_label, squares, jnp.inf), axis=1))


def quality(x: Float[Array, "batch dims"], label: Int[Array, " batch"], judges: Judges) -> Quality:
    """What samples are worth.

    Args:
        x: samples.
        label: their classes.
        judges: what they are measured with.

    Returns:
        Distances, Fréchet distance and accuracy.
    """
    latents = judges.latents
    pixels = latents.decode(x)
    known = features(judges.eyes, latents.decode(jnp.asarray(latents.x[:TRAIN])))
    held_out, of_class = latents.x[TRAIN:], np.asarray(latents.y[TRAIN:])
    return Quality(
        nearest(x, label, jnp.asarray(held_out), jnp.asarray(of_class)),
        frechet_distance(features(judges.eyes, pixels), known),
        accuracy(judges.second, pixels, label),
    )
