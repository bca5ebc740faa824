"""MLP-Mixer: patches of an image, mixed across places and across channels in turn, without convolution.

Tolstikhin et al. 2021, arXiv:2105.01601, Section 2. A small one trains fast on a CPU, where the gradients of
convolutions are slow.
"""

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxneg.nn.bridge import Model, bridge
from jaxneg.nn.contraction import contract_rows


class MixerLayer(nnx.Module):
    """One mixing across places and one across channels, each a perceptron around a residual.

    Args:
      tokens: Number of patches.
      width: Channels.
      token_hidden: Units of the perceptron across places.
      channel_hidden: Units of the perceptron across channels.
      dtype: Type of the computation.
      rngs: Random streams.
    """

    def __init__(
        self,
        tokens: int,
        width: int,
        token_hidden: int,
        channel_hidden: int,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        def linear(n: int, m: int) -> nnx.Linear:
            return nnx.Linear(n, m, dtype=dtype, dot_general=contract_rows, rngs=rngs)

        self.token_norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.token_up, self.token_down = linear(tokens, token_hidden), linear(token_hidden, tokens)
        self.channel_norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.channel_up, self.channel_down = linear(width, channel_hidden), linear(channel_hidden, width)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """The mixed features."""
        y = self.token_norm(x).swapaxes(1, 2)
        x = x + self.token_down(jax.nn.gelu(self.token_up(y))).swapaxes(1, 2)
        return x + self.channel_down(jax.nn.gelu(self.channel_up(self.channel_norm(x))))


class MLPMixer(nnx.Module):
    """The module behind :func:`mlp_mixer`."""

    def __init__(
        self,
        size: int,
        patch: int,
        width: int,
        layers: int,
        token_hidden: int,
        channel_hidden: int,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        self.size, self.patch = size, patch
        tokens = (size // patch) ** 2
        self.embed = nnx.Linear(3 * patch**2, width, dtype=dtype, dot_general=contract_rows, rngs=rngs)
        self.layers = nnx.List(
            [MixerLayer(tokens, width, token_hidden, channel_hidden, dtype, rngs) for _ in range(layers)]
        )
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch size size 3"]) -> Float[Array, "batch width"]:
        """The mean of the last features over the patches."""
        if x.shape[1:] != (self.size, self.size, 3):
            raise ValueError(f"x: expected images [batch, {self.size}, {self.size}, 3], got shape {x.shape}")
        side, patch = self.size // self.patch, self.patch
        x = x.reshape(len(x), side, patch, side, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        x = self.embed(x.reshape(len(x), side * side, -1))
        for layer in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
            x = layer(x)
        return self.norm(x).mean(1)


def mlp_mixer(
    size: int,
    *,
    patch: int = 4,
    width: int = 64,
    layers: int = 2,
    token_hidden: int = 32,
    channel_hidden: int = 128,
    dtype: DTypeLike | None = None,
) -> Model:
    """An image encoder of perceptrons.

    ``x <- x + mlp(norm(x)^T)^T,  x <- x + mlp(norm(x)),  h = mean norm(x)``

    Args:
      size: Side of the square images.
      patch: Side of a patch; divides the size.
      width: Channels.
      layers: Mixer layers.
      token_hidden: Units of the perceptron across places.
      channel_hidden: Units of the perceptron across channels.
      dtype: Type of the computation; by default that of images and parameters.

    Returns:
      ``apply(params, x [batch, size, size, 3])`` gives ``[batch, width]``.

    Raises:
      ValueError: If a size is not positive, the patches do not fill the image, or ``x`` is no such batch.

    Source:
      Tolstikhin et al. 2021, arXiv:2105.01601, Section 2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import mlp_mixer
      >>> model = mlp_mixer(8, width=6)
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 8, 8, 3))).shape
      (5, 6)
    """
    if min(size, patch, width, layers, token_hidden, channel_hidden) < 1:
        raise ValueError(
            "size, patch, width, layers, token_hidden, channel_hidden: expected at least 1, got "
            f"{size}, {patch}, {width}, {layers}, {token_hidden}, {channel_hidden}"
        )
    if size % patch:
        raise ValueError(f"patch: expected a divisor of size {size}, got {patch}")
    return bridge(
        lambda rngs: MLPMixer(size, patch, width, layers, token_hidden, channel_hidden, dtype, rngs)
    )
