"""Real digits, and a classifier that judges what is made of them.

Fréchet distances are taken in the features of its last hidden layer, against all real digits; its labels say
which digit an image shows.
"""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.digits import digit_pixels
from jaxneg.diffusion import frechet_distance

HIDDEN, DECAY, RIDGE = (64, 32), 1e-3, 1e-6


class Judge(NamedTuple):
    """The layers of the classifier, first to last, and the features of all real digits."""

    kernels: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    pixels: Float[np.ndarray, "digits 64"]
    labels: Int[np.ndarray, " digits"]

    def features(self, x: Float[Array, "batch 64"]) -> Float[Array, "batch 32"]:
        """What the last hidden layer says of images, after its ReLU."""
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1], strict=True):
            x = jax.nn.relu(x @ kernel + bias)
        return x

    def label(self, x: Float[Array, "batch 64"]) -> Int[Array, " batch"]:
        """The digit that each image is taken for."""
        return jnp.argmax(self.features(x) @ self.kernels[-1] + self.biases[-1], axis=-1)

    def frechet(self, x: Float[Array, "batch 64"]) -> Float[Array, ""]:
        """Fréchet distance to all real digits, in the features."""
        real = self.features(jnp.asarray(self.pixels))
        return frechet_distance(self.features(x), real, ridge=RIDGE)

    def nearest(self, x: Float[Array, "batch 64"]) -> Float[Array, " batch"]:
        """Distance to the nearest real digit, whichever it is, in grey levels from -1 to 1."""
        real = jnp.asarray(self.pixels)
        squares = (x**2).sum(-1, keepdims=True) - 2 * x @ real.T + (real**2).sum(-1)
        return jnp.sqrt(jnp.maximum(squares.min(-1), 0))


@cache
def judge() -> Judge:
    """The classifier, trained on all digits; the same for every seed."""
    from sklearn.neural_network import MLPClassifier

    pixels = digit_pixels()
    fitted: Any = MLPClassifier(HIDDEN, alpha=DECAY, max_iter=400, random_state=0).fit(pixels.x, pixels.y)
    kernels, biases = (
        tuple(np.asarray(array, np.float32) for array in layers)
        for layers in (fitted.coefs_, fitted.intercepts_)
    )
    return Judge(kernels, biases, pixels.x, pixels.y)
