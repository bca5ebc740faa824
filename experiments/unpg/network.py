"""The small encoder of both data sets: three convolutions, as products of matrices.

XLA runs gradients of convolutions in a loop tens of times slower on a CPU than outside. Here a convolution
takes the nine shifted images side by side and multiplies them by one matrix: the same numbers, in a loop too.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxneg.nn import BatchNorm, NormalisedModel, bridge_normalised

WIDTHS = (8, 16, 32)
EMBEDDING = 48
SIDE = 28


class Convolution(nnx.Module):
    """A 3x3 convolution of stride 2 with zero padding by 1, followed by normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        scale = math.sqrt(2 / (9 * inputs))  # He et al. 2015, arXiv:1502.01852
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), (9 * inputs, outputs)))
        self.norm = BatchNorm(outputs)

    def __call__(self, x: Float[Array, "batch side side inputs"]) -> Float[Array, "batch s s outputs"]:
        """The next features."""
        return jax.nn.relu(self.norm(patches(x) @ self.kernel[...]))


class Encoder(nnx.Module):
    """Convolutions of widths 8, 16 and 32, and a linear layer, each normalised."""

    def __init__(self, rngs: nnx.Rngs):
        inputs, side, layers = 1, SIDE, []
        for width in WIDTHS:
            layers.append(Convolution(inputs, width, rngs))
            inputs, side = width, -(-side // 2)
        self.layers = nnx.List(layers)
        self.linear = nnx.Linear(inputs * side**2, EMBEDDING, rngs=rngs)
        self.norm = BatchNorm(EMBEDDING)

    def __call__(self, x: Float[Array, "batch side side"]) -> Float[Array, "batch embedding"]:
        """Embeddings, of any length."""
        x = x[..., None]
        for layer in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
            x = layer(x)
        return self.norm(self.linear(x.reshape(len(x), -1)))


def patches(x: Float[Array, "batch side side inputs"]) -> Float[Array, "batch s s window"]:
    """The 3x3 surroundings of every second pixel, with zeros around the image, row by row.

    Example:
        >>> patches(jnp.ones((1, 4, 4, 2))).shape
        (1, 2, 2, 18)
    """
    side = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate(
        [padded[:, i : i + side : 2, j : j + side : 2] for i in range(3) for j in range(3)], axis=-1
    )


def encoder() -> NormalisedModel:
    """The encoder as pure functions of images ``[batch, 28, 28]``."""
    return bridge_normalised(Encoder)
