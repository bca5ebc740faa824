"""The head of DeepLabV3: atrous spatial pyramid pooling over an encoder's features.

Chen et al. 2017 (arXiv:1706.05587, Section 3.3, Figure 5), as torchvision has it. LibMTL's dense benchmarks
put one such head for each task on a dilated ResNet-50, and papers that use them call that DeepLabV3+. The
decoder of low-level features that Chen et al. 2018 (arXiv:1802.02611, Section 3.1) add is not in theirs, nor
here.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jaxneg.nn.batch_norm import BatchNorm, NormalisedModel
from jaxneg.nn.bridge import bridge_normalised
from jaxneg.nn.convolution import convolve

# The uniform distribution on +-1/sqrt(fan_in), torch's default.
_UNIFORM = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class NormalisedConvolution(nnx.Module):
    """``relu(norm(conv(x)))``."""

    def __init__(
        self, inputs: int, outputs: int, size: int, dilation: int, dtype: DTypeLike | None, rngs: nnx.Rngs
    ):
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (size, size),
            padding=dilation * (size // 2),
            kernel_dilation=dilation,
            use_bias=False,
            dtype=dtype,
            kernel_init=_UNIFORM,
            conv_general_dilated=convolve,
            rngs=rngs,
        )
        self.norm = BatchNorm(outputs)

    def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "batch h w outputs"]:
        """The next features."""
        return jax.nn.relu(self.norm(self.conv(x)))


class DeepLabHead(nnx.Module):
    """The module behind :func:`deeplab_head`."""

    def __init__(
        self,
        features: int,
        outputs: int,
        rates: Sequence[int],
        channels: int,
        dropout: float,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        def layer(inputs: int, size: int, dilation: int = 1) -> NormalisedConvolution:
            return NormalisedConvolution(inputs, channels, size, dilation, dtype, rngs)

        self.features = features
        self.pointwise = layer(features, 1)
        self.atrous = nnx.List([layer(features, 3, rate) for rate in rates])
        self.pooled = layer(features, 1)
        self.project = layer((len(rates) + 2) * channels, 1)
        self.mix = layer(channels, 3)
        self.predict = nnx.Conv(
            channels,
            outputs,
            (1, 1),
            dtype=dtype,
            kernel_init=_UNIFORM,
            bias_init=lambda key, shape, dtype: _UNIFORM(key, (channels, *shape), dtype)[0],
            conv_general_dilated=convolve,
            rngs=rngs,
        )
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self, z: Float[Array, "batch height width features"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch height width outputs"]:
        """The predictions at each feature."""
        if z.ndim != 4 or z.shape[3] != self.features:
            raise ValueError(f"z: expected [batch, height, width, {self.features}], got shape {z.shape}")
        mean = z.mean((1, 2), dtype=jnp.promote_types(z.dtype, jnp.float32), keepdims=True).astype(z.dtype)
        branches = [self.pointwise(z), *(branch(z) for branch in self.atrous)]  # pyright: ignore
        # Interpolating a single pixel repeats it.
        branches.append(jnp.broadcast_to(self.pooled(mean), branches[0].shape))
        y = self.project(jnp.concatenate(branches, axis=-1))
        if key is not None:
            y = self.dropout(y, rngs=key)
        return self.predict(self.mix(y))


def deeplab_head(
    features: int,
    outputs: int,
    *,
    rates: Sequence[int] = (12, 24, 36),
    channels: int = 256,
    dropout: float = 0.5,
    dtype: DTypeLike | None = None,
) -> NormalisedModel:
    """Dense predictions from an encoder's features, seen at several scales.

    ``y = predict(mix(drop(project([pointwise(z), atrous_12(z), ..., atrous_36(z), pooled(mean(z))]))))``

    where all but ``predict`` are a convolution, batch normalisation and relu.

    Args:
      features: Features that the encoder gives.
      outputs: Number of predictions at each place: classes, or coordinates.
      rates: Dilations of the 3x3 convolutions, in features; those of the paper fit an output stride of 8.
      channels: Features of each branch and after it.
      dropout: Part of the projected features that are dropped.
      dtype: Type of the computation; by default that of features and parameters. Normalisation is in float32.

    Returns:
      ``apply(params, z [batch, height, width, features], key=None)`` gives
      ``[batch, height, width, outputs]``, for the caller to resize to the image. Without a key nothing is
      dropped: ``apply`` and ``statistics`` take one in training, ``evaluate`` none.

    Raises:
      ValueError: If a size is not positive, ``dropout`` is not in [0, 1), or ``z`` does not fit.

    Source:
      Chen et al. 2017, arXiv:1706.05587, Section 3.3.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import deeplab_head
      >>> head = deeplab_head(8, 13, channels=4)
      >>> jax.eval_shape(head.apply, head.init(jax.random.key(0)), jnp.ones((2, 5, 6, 8))).shape
      (2, 5, 6, 13)
    """
    for name, size in (("features", features), ("outputs", outputs), ("channels", channels)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    if any(rate < 1 for rate in rates):
        raise ValueError(f"rates: expected positive dilations, got {tuple(rates)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected at least 0 and less than 1, got {dropout}")
    return bridge_normalised(
        lambda rngs: DeepLabHead(features, outputs, tuple(rates), channels, dropout, dtype, rngs)
    )
