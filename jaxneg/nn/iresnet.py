"""The improved residual network for faces, with its embedding.

J. Deng et al., arXiv:1801.07698, Section 3.2 (the improved residual unit: a normalisation before the first
convolution, PReLU), as insightface's ``iresnet.py`` has it: a stem that keeps the size, four stages that
halve it, and an embedding of normalised, flattened features.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jaxneg.nn.batch_norm import BatchNorm, NormalisedModel
from jaxneg.nn.batch_sharding import over_data, reshape_examples
from jaxneg.nn.bridge import bridge_normalised
from jaxneg.nn.contraction import contract
from jaxneg.nn.convolution import convolve

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
"""Number of blocks in each stage, by depth."""

_NORMAL = nnx.initializers.normal(0.1)


def _convolution(
    inputs: int, outputs: int, size: int, stride: int, dtype: DTypeLike | None, rngs: nnx.Rngs
) -> nnx.Conv:
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        stride,
        padding=size // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=_NORMAL,
        conv_general_dilated=convolve,
        rngs=rngs,
    )


class PReLU(nnx.Module):
    """``max(x, 0) + slope min(x, 0)`` with a slope for each feature."""

    def __init__(self, features: int):
        self.slope = nnx.Param(jnp.full(features, 0.25))

    def __call__(self, x: Float[Array, "*axes features"]) -> Float[Array, "*axes features"]:
        """The bent features."""
        return jnp.where(x >= 0, x, self.slope[...].astype(x.dtype) * x)


class Block(nnx.Module):
    """Two 3x3 convolutions between normalisations, around a residual.

    Args:
      inputs: Features that come in.
      outputs: Features that go out.
      stride: Stride of the second convolution.
      dtype: Type of the computation.
      rngs: Random streams.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dtype: DTypeLike | None, rngs: nnx.Rngs):
        self.bn1 = BatchNorm(inputs)
        self.conv1 = _convolution(inputs, outputs, 3, 1, dtype, rngs)
        self.bn2 = BatchNorm(outputs)
        self.prelu = PReLU(outputs)
        self.conv2 = _convolution(outputs, outputs, 3, stride, dtype, rngs)
        self.bn3 = BatchNorm(outputs)
        self.downsample = nnx.List([])
        if stride != 1 or inputs != outputs:
            projection = _convolution(inputs, outputs, 1, stride, dtype, rngs)
            self.downsample = nnx.List([projection, BatchNorm(outputs)])

    def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "batch h w outputs"]:
        """The next features."""
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        y = self.bn3(self.conv2(y))
        for part in self.downsample:  # pyright: ignore[reportGeneralTypeIssues]
            x = part(x)
        return x.astype(y.dtype) + y


class IResNet(nnx.Module):
    """The module behind :func:`iresnet`; its names are insightface's."""

    def __init__(
        self,
        depth: int,
        embedding: int,
        size: int,
        width: int,
        dropout: float,
        remat: bool,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        self.size, self.dropout, self.remat = size, dropout, remat
        self.conv1 = _convolution(3, width, 3, 1, dtype, rngs)
        self.bn1 = BatchNorm(width)
        self.prelu = PReLU(width)
        inputs, stages = width, []
        for stage, blocks in enumerate(BLOCKS[depth]):
            outputs = width * 2**stage
            layer = [Block(inputs, outputs, 2, dtype, rngs)]
            layer += [Block(outputs, outputs, 1, dtype, rngs) for _ in range(blocks - 1)]
            stages.append(nnx.List(layer))
            inputs = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = BatchNorm(inputs)
        for _ in BLOCKS[depth]:
            size = -(-size // 2)
        self.fc = nnx.Linear(inputs * size**2, embedding, dtype=dtype, dot_general=contract, rngs=rngs)
        self.features = BatchNorm(embedding)

    def __call__(
        self, x: Float[Array, "batch size size 3"], dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch embedding"]:
        """Embeddings, of any length."""
        if x.ndim != 4 or x.shape[1:] != (self.size, self.size, 3):
            raise ValueError(f"x: expected images [batch, {self.size}, {self.size}, 3], got shape {x.shape}")
        x = over_data(x)
        x = self.prelu(self.bn1(self.conv1(x)))
        call = nnx.remat(Block.__call__) if self.remat else Block.__call__
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:  # pyright: ignore[reportGeneralTypeIssues]
                x = call(block, x)
        x = self.bn2(x)
        if self.dropout and dropout_key is not None:
            kept = jax.random.bernoulli(dropout_key, 1 - self.dropout, x.shape)
            x = jnp.where(kept, x / jnp.asarray(1 - self.dropout, x.dtype), 0)
        x = self.fc(reshape_examples(x, x.shape[1] * x.shape[2] * x.shape[3]))
        # The scale stays 1, as insightface has it: an embedding's lengths mean nothing to a margin head.
        frozen = jax.lax.stop_gradient(self.features.scale[...])
        self.features.scale.set_value(frozen)
        return self.features(x.astype(jnp.promote_types(x.dtype, jnp.float32)))


def iresnet(
    depth: int,
    *,
    embedding: int = 512,
    size: int = 112,
    width: int = 64,
    dropout: float = 0.0,
    remat: bool = False,
    dtype: DTypeLike | None = None,
) -> NormalisedModel:
    """A network from face images to embeddings.

    ``x <- shortcut(x) + norm(conv(prelu(norm(conv(norm(x))))))``; at last ``norm(fc(dropout(norm(x))))``

    Args:
      depth: 18, 34, 50 or 100.
      embedding: Length of an embedding.
      size: Side of the images in pixels.
      width: Features of the first stage.
      dropout: Share of the last features that are dropped in training; 0.4 in the UNPG authors' code.
      remat: Whether the backward pass computes each block again instead of keeping what is in it.
      dtype: Type of the computation; by default that of images and parameters. Normalisation and the
        embeddings are in float32.

    Returns:
      ``apply(params, x [batch, size, size, 3], dropout_key=None)`` gives embeddings ``[batch, embedding]`` of
      any length; without a key nothing is dropped. The scale of the last normalisation has no gradient.
      Parameters have insightface's names, with ``slope`` for the weight of a PReLU; features are flattened
      in the order height, width, features.

    Raises:
      ValueError: If an argument is none of these, or ``x`` is no batch of such images.

    Source:
      Deng et al. 2019, arXiv:1801.07698, Section 3.2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import iresnet
      >>> model = iresnet(18, embedding=8, size=32, width=4)
      >>> jax.eval_shape(model.apply, model.init(jax.random.key(0)), jnp.ones((2, 32, 32, 3))).shape
      (2, 8)
    """
    if depth not in BLOCKS:
        raise ValueError(f"depth: expected one of {tuple(BLOCKS)}, got {depth!r}")
    for name, value in (("embedding", embedding), ("size", size), ("width", width)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected at least 0 and less than 1, got {dropout}")
    return bridge_normalised(lambda rngs: IResNet(depth, embedding, size, width, dropout, remat, dtype, rngs))
