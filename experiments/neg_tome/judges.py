"""What samples of digits are measured with: pixels, and a small classifier's features and probabilities."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.digits import CLASSES, digit_pixels
from experiments.neg_tome.network import SIZE
from jaxneg.diffusion import frechet_distance, inception_score, mean_pairwise_cosine, vendi_score

HIDDEN, ITERATIONS, PENALTY = (64, 32), 100, 1e-3
RIDGE = 1e-6
"""On both covariances of the Fréchet distance."""


class Judge(NamedTuple):
    """Real digits and a classifier of them."""

    layers: list[tuple[Array, Array]]
    """Matrix and vector of each layer."""
    pixels: Float[Array, "digits 64"]
    features: Float[Array, "digits 32"]
    """Of the real digits, from the last hidden layer."""
    mean: Float[Array, "64"]
    """Of the real digits' pixels."""


class Quality(NamedTuple):
    """Of the samples of one setting."""

    similarity: Float[Array, ""]
    """Mean cosine of two images of a group, around the mean of the data, in pixels; lower is more diverse."""
    vendi: Float[Array, ""]
    """Effective number of different images in a group, in the classifier's features."""
    frechet: Float[Array, ""]
    """Fréchet distance of features to the real digits."""
    inception: Float[Array, ""]
    """Inception score with the classifier."""
    accuracy: Float[Array, ""]
    """Share of images that show what they are to show."""
    nearest: Float[Array, ""]
    """Mean distance to the nearest real digit, in pixels."""


class Likeness(NamedTuple):
    """How much samples look like a reference."""

    similarity: Float[Array, ""]
    """Mean cosine to it around the mean of the data, in pixels."""
    upper: Float[Array, ""]
    """The same of the upper halves."""
    lower: Float[Array, ""]
    """The same of the lower halves."""
    frechet: Float[Array, ""]
    accuracy: Float[Array, ""]


def fit_judge() -> Judge:
    """Scikit-learn's perceptron of two hidden layers, on all digits.

    Returns:
        What `quality` and `likeness` take.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    digits = digit_pixels()
    classifier: Any = MLPClassifier(HIDDEN, alpha=PENALTY, max_iter=ITERATIONS, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(digits.x, digits.y)
    layers = [
        (jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32))
        for kernel, bias in zip(classifier.coefs_, classifier.intercepts_, strict=True)
    ]
    pixels = jnp.asarray(digits.x)
    return Judge(layers, pixels, _features(layers, pixels), pixels.mean(0))


def class_medoids() -> Float[np.ndarray, "classes 8 8 1"]:
    """Of each class the digit that is nearest to the mean of the class."""
    digits = digit_pixels()
    found = []
    for label in range(CLASSES):
        of_class = digits.x[digits.y == label]
        found.append(of_class[np.square(of_class - of_class.mean(0)).sum(1).argmin()])
    return np.stack(found).reshape(CLASSES, SIZE, SIZE, 1)


def quality(
    judge: Judge, images: Float[Array, "batch 8 8 1"], label: Int[Array, " batch"], group: int
) -> Quality:
    """What samples are worth.

    Args:
        judge: of `fit_judge`.
        images: samples; those of a group lie next to each other.
        label: what they are to show.
        group: images in a group.

    Returns:
        Numbers.
    """
    pixels = images.reshape(len(images), -1)
    features, probabilities = _features(judge.layers, pixels), _probabilities(judge.layers, pixels)

    def over_groups(measure: Any, rows: Array) -> Array:
        return jax.vmap(measure)(rows.reshape(-1, group, rows.shape[1])).mean()

    squares = (pixels**2).sum(1)[:, None] - 2 * pixels @ judge.pixels.T + (judge.pixels**2).sum(1)
    return Quality(
        over_groups(mean_pairwise_cosine, pixels - judge.mean),
        over_groups(vendi_score, features),
        frechet_distance(features, judge.features, ridge=RIDGE),
        inception_score(probabilities),
        jnp.mean(probabilities.argmax(1) == label),
        jnp.sqrt(jnp.maximum(squares.min(1), 0)).mean(),
    )


def likeness(
    judge: Judge,
    images: Float[Array, "batch 8 8 1"],
    label: Int[Array, " batch"],
    references: Float[Array, "batch 8 8 1"],
) -> Likeness:
    """How much samples look like their references.

    Args:
        judge: of `fit_judge`.
        images: samples.
        label: what they are to show.
        references: one for each sample.

    Returns:
        Numbers.
    """
    pixels, other = (x.reshape(len(x), -1) - judge.mean for x in (images, references))
    half = pixels.shape[1] // 2
    features = _features(judge.layers, pixels + judge.mean)
    predicted = _probabilities(judge.layers, pixels + judge.mean).argmax(1)
    return Likeness(
        _cosine(pixels, other),
        _cosine(pixels[:, :half], other[:, :half]),
        _cosine(pixels[:, half:], other[:, half:]),
        frechet_distance(features, judge.features, ridge=RIDGE),
        jnp.mean(predicted == label),
    )


def _features(layers: list[tuple[Array, Array]], pixels: Array) -> Array:
    for kernel, bias in layers[:-1]:
        pixels = jax.nn.relu(pixels @ kernel + bias)
    return pixels


def _probabilities(layers: list[tuple[Array, Array]], pixels: Array) -> Array:
    kernel, bias = layers[-1]
    return jax.nn.softmax(_features(layers, pixels) @ kernel + bias)


def _cosine(a: Array, b: Array) -> Array:
    lengths = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
    return jnp.mean((a * b).sum(1) / jnp.maximum(lengths, 1e-12))
