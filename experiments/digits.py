"""Real images for small diffusion models: scikit-learn's digits as pixels and as latents, and their features.

The latents are the first principal components over their common standard deviation: a latent diffusion model
in small, whose decoder is the inverse projection. Distances between sets of digits are taken in the features
of a small classifier, as those of photographs are in Inception's.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

TRAIN = 1437
"""How many of the 1797 digits the classifiers learn; the last 360 they never see."""
CLASSES = 10
LATENT_DIMS = 16
WIDTHS = (64, 128, 32, CLASSES)
"""Of the classifier's layers, from the pixels to the logits."""
CLASSIFIER_STEPS, CLASSIFIER_BATCH, INPUT_NOISE = 1500, 128, 0.1

Params = list[dict[str, Array]]


class Pixels(NamedTuple):
    """All digits as scikit-learn has them, in its order."""

    x: Float[np.ndarray, "digits 64"]
    """Grey levels from -1 to 1."""
    y: Int[np.ndarray, " digits"]


class Latents(NamedTuple):
    """All digits as coefficients of principal components, and the way back."""

    x: Float[np.ndarray, "digits dims"]
    """Coefficients over their common standard deviation."""
    y: Int[np.ndarray, " digits"]
    mean: Float[np.ndarray, "64"]
    components: Float[np.ndarray, "dims 64"]
    """Of length one, those of the largest variance first."""
    scale: Float[np.ndarray, ""]

    def decode(self, latents: Float[Array, "*batch dims"]) -> Float[Array, "*batch 64"]:
        """Grey levels of latents, clipped to -1 and 1."""
        return jnp.clip(latents * self.scale @ self.components + self.mean, -1.0, 1.0)


def digit_pixels() -> Pixels:
    """The 1797 digits of 8 x 8 pixels.

    Example:
        >>> digit_pixels().x.shape
        (1797, 64)
    """
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return Pixels((digits.data / 8 - 1).astype(np.float32), digits.target.astype(np.int32))


def digit_latents(fitted: int | None = None, dims: int = LATENT_DIMS) -> Latents:
    """The digits in the space of their principal components.

    Args:
        fitted: the components and the scale are those of the first so many digits; None is of all.
        dims: number of components.

    Returns:
        The latents of all digits, and what decodes them.

    Example:
        >>> digits = digit_latents()
        >>> digits.x.shape, digits.decode(digits.x).shape
        ((1797, 16), (1797, 64))
    """
    from sklearn.decomposition import PCA

    pixels = digit_pixels()
    known = pixels.x[:fitted].astype(np.float64)
    projection = PCA(dims, svd_solver="full").fit(known)
    scale = projection.transform(known).std()
    latents = projection.transform(pixels.x.astype(np.float64)) / scale
    found = (latents, projection.mean_, projection.components_, scale)
    x, mean, components, scale = (np.asarray(array, np.float32) for array in found)
    return Latents(x, pixels.y, mean, components, scale)


@partial(jax.jit, static_argnames="steps")
def train_classifier(key: jax.Array, steps: int = CLASSIFIER_STEPS) -> Params:
    """A classifier of digits, trained on the first 1437 with noise on their pixels.

    Three layers with ReLU between them, He's initialisation, AdamW at 1e-3 with decay 1e-3.

    Args:
        key: random key; another key gives a classifier that is independent of this one.
        steps: of training.

    Returns:
        Parameters for `logits` and `features`.
    """
    key, of_layers = jax.random.split(key)
    params = []
    keys = jax.random.split(of_layers, len(WIDTHS) - 1)
    for layer, rows, columns in zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=True):
        kernel = jax.random.normal(layer, (rows, columns)) * np.sqrt(2 / rows)
        params.append({"kernel": kernel, "bias": jnp.zeros(columns)})
    pixels = digit_pixels()
    x, y = jnp.asarray(pixels.x[:TRAIN]), jnp.asarray(pixels.y[:TRAIN])
    optimizer = optax.adamw(1e-3, weight_decay=1e-3)

    def loss(params: Params, x: Array, y: Array) -> Array:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y))

    def step(state: tuple[Params, Any], key: jax.Array) -> tuple[tuple[Params, Any], None]:
        params, opt_state = state
        of_rows, of_noise = jax.random.split(key)
        rows = jax.random.randint(of_rows, (CLASSIFIER_BATCH,), 0, TRAIN)
        noise = INPUT_NOISE * jax.random.normal(of_noise, (CLASSIFIER_BATCH, WIDTHS[0]))
        updates, opt_state = optimizer.update(
            jax.grad(loss)(params, x[rows] + noise, y[rows]), opt_state, params
        )
        return (optax.apply_updates(params, updates), opt_state), None  # pyright: ignore[reportReturnType]

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))
    return params


def features(params: Params, pixels: Float[Array, "*batch 64"]) -> Float[Array, "*batch 32"]:
    """What the classifier's last hidden layer says of images, after its ReLU.

    Args:
        params: from `train_classifier`.
        pixels: grey levels from -1 to 1.

    Returns:
        Features.
    """
    hidden = pixels
    for layer in params[:-1]:
        hidden = jax.nn.relu(hidden @ layer["kernel"] + layer["bias"])
    return hidden


def logits(params: Params, pixels: Float[Array, "*batch 64"]) -> Float[Array, "*batch 10"]:
    """The classifier's logits.

    Args:
        params: from `train_classifier`.
        pixels: grey levels from -1 to 1.

    Returns:
        One for each class.
    """
    return features(params, pixels) @ params[-1]["kernel"] + params[-1]["bias"]


def accuracy(params: Params, pixels: Float[Array, "batch 64"], y: Int[Array, " batch"]) -> Float[Array, ""]:
    """The share of images that the classifier takes for what they are.

    Args:
        params: from `train_classifier`.
        pixels: grey levels from -1 to 1.
        y: their classes.

    Returns:
        From 0 to 1.
    """
    return jnp.mean(jnp.argmax(logits(params, pixels), axis=-1) == y)
