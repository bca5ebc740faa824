"""Residual networks for images, without the classifier.

He et al. 2016 (arXiv:1512.03385, Table 1) with a bottleneck's stride in its 3x3 convolution, as torchvision's
ResNet has it, and with dilation instead of stride in the last stages for dense prediction (Yu et al. 2017,
arXiv:1705.09914, Section 2).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxneg.nn.batch_norm import BatchNorm, NormalisedModel, Params, Stats
from jaxneg.nn.bridge import bridge_normalised
from jaxneg.nn.convolution import convolve

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Number of blocks in each stage, by depth; from depth 50 on they are bottlenecks."""

# He et al. 2015, arXiv:1502.01852, Eq. 14: keeps the variance of gradients.
_KAIMING = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")

_TORCH_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}


def _convolution(
    inputs: int,
    outputs: int,
    size: int,
    dtype: DTypeLike | None,
    rngs: nnx.Rngs,
    stride: int = 1,
    dilation: int = 1,
) -> nnx.Conv:
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        stride,
        padding=dilation * (size // 2),
        kernel_dilation=dilation,
        use_bias=False,
        dtype=dtype,
        kernel_init=_KAIMING,
        conv_general_dilated=convolve,
        rngs=rngs,
    )


class Block(nnx.Module):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1, around a residual.

    Args:
      inputs: Features that come in.
      width: Features inside.
      outputs: Features that go out: ``width``, or more for a bottleneck.
      stride: Stride of the first 3x3 convolution.
      dilations: Dilation of the first 3x3 convolution and of the second, if there is one.
      zero_init: Whether the residual is zero at the start.
      dtype: Type of the computation.
      rngs: Random streams.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        stride: int,
        dilations: tuple[int, int],
        zero_init: bool,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        first, second = dilations
        last = 0.0 if zero_init else 1.0
        if outputs == width:
            self.conv1 = _convolution(inputs, width, 3, dtype, rngs, stride, first)
            self.bn1 = BatchNorm(width)
            self.conv2 = _convolution(width, width, 3, dtype, rngs, 1, second)
            self.bn2 = BatchNorm(width, scale=last)
            self.conv3 = None
        else:
            self.conv1 = _convolution(inputs, width, 1, dtype, rngs)
            self.bn1 = BatchNorm(width)
            self.conv2 = _convolution(width, width, 3, dtype, rngs, stride, first)
            self.bn2 = BatchNorm(width)
            self.conv3 = _convolution(width, outputs, 1, dtype, rngs)
            self.bn3 = BatchNorm(outputs, scale=last)
        self.downsample = nnx.List([])
        if stride != 1 or inputs != outputs:
            projection = _convolution(inputs, outputs, 1, dtype, rngs, stride)
            self.downsample = nnx.List([projection, BatchNorm(outputs)])

    def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "batch h w outputs"]:
        """The next features."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.conv3 is not None:
            y = self.bn3(self.conv3(jax.nn.relu(y)))
        for part in self.downsample:  # pyright: ignore[reportGeneralTypeIssues]
            x = part(x)
        return jax.nn.relu(x.astype(y.dtype) + y)


class ResNet(nnx.Module):
    """The module behind :func:`resnet`; its names are torchvision's."""

    def __init__(
        self,
        depth: int,
        output_stride: int,
        width: int,
        small_images: bool,
        zero_init: bool,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        self.small_images = small_images
        size, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = _convolution(3, width, size, dtype, rngs, stride)
        self.bn1 = BatchNorm(width)
        inputs, total, dilation = width, 4, 1
        stages = []
        for stage, blocks in enumerate(BLOCKS[depth]):
            inner = width * 2**stage
            outputs = inner * (4 if depth >= 50 else 1)
            stride, before = (1 if stage == 0 else 2), dilation
            if total * stride > output_stride:  # the features keep their size, and the kernels grow instead
                dilation, stride = dilation * stride, 1
            total *= stride
            layer = [Block(inputs, inner, outputs, stride, (before, dilation), zero_init, dtype, rngs)]
            for _ in range(blocks - 1):
                layer.append(Block(outputs, inner, outputs, 1, (dilation, dilation), zero_init, dtype, rngs))
            inputs = outputs
            stages.append(nnx.List(layer))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def __call__(self, x: Float[Array, "batch height width 3"]) -> Float[Array, "batch h w features"]:
        """The features of the last stage."""
        if x.ndim != 4 or x.shape[3] != 3:
            raise ValueError(f"x: expected images [batch, height, width, 3], got shape {x.shape}")
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        if not self.small_images:
            x = nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:  # pyright: ignore[reportGeneralTypeIssues]
                x = block(x)
        return x


def resnet(
    depth: int,
    *,
    output_stride: int = 32,
    width: int = 64,
    small_images: bool = False,
    zero_init: bool = False,
    dtype: DTypeLike | None = None,
) -> NormalisedModel:
    """A residual network up to its last features: the encoder that tasks share.

    ``x <- relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))``

    Args:
      depth: 18 or 34 with basic blocks, 50 with bottlenecks.
      output_stride: Pixels of the image for each of the last features: 32, or 16 or 8 with dilated kernels in
        the last stages. An image's side is divided by it and rounded up.
      width: Features of the first stage.
      small_images: Begins with a 3x3 convolution and no pooling, as for images of 32 x 32, which leaves all
        features four times larger than ``output_stride`` says.
      zero_init: Starts the last scale of each block at 0 (Goyal et al. 2017, arXiv:1706.02677, Section 5.1).
      dtype: Type of the computation; by default that of images and parameters. Normalisation is in float32.

    Returns:
      ``apply(params, x [batch, height, width, 3])`` gives ``[batch, height / output_stride,
      width / output_stride, features]`` with features 8 times the width, or 32 times at depth 50. Parameters
      have torchvision's names.

    Raises:
      ValueError: If an argument is none of these, or ``x`` is no batch of images.

    Source:
      He et al. 2016, arXiv:1512.03385, Table 1; dilation: Yu et al. 2017, arXiv:1705.09914, Section 2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import resnet
      >>> model = resnet(18, width=4)
      >>> jax.eval_shape(model.apply, model.init(jax.random.key(0)), jnp.ones((2, 64, 96, 3))).shape
      (2, 2, 3, 32)
    """
    return _bridged(ResNet, depth, output_stride, width, small_images, zero_init, dtype)


class PooledResNet(ResNet):
    """The module behind :func:`resnet_cifar`."""

    def __call__(self, x: Float[Array, "batch height width 3"]) -> Float[Array, "batch features"]:
        """The mean of the last features over the image."""
        return super().__call__(x).mean((1, 2))


def resnet_cifar(
    depth: int, *, width: int = 64, zero_init: bool = False, dtype: DTypeLike | None = None
) -> NormalisedModel:
    """A residual network for images of 32 x 32, up to its pooled features: what self-supervision trains.

    ``h = mean over the image of the last features``, after a 3x3 convolution without pooling at the beginning

    Args:
      depth: As in :func:`resnet`.
      width: As in :func:`resnet`.
      zero_init: As in :func:`resnet`.
      dtype: As in :func:`resnet`.

    Returns:
      ``apply(params, x [batch, height, width, 3])`` gives ``[batch, features]``, at width 64 512 features, or
      2048 at depth 50. Parameters are those of :func:`resnet` with ``small_images``.

    Raises:
      ValueError: As in :func:`resnet`.

    Source:
      Chen et al. 2020, arXiv:2002.05709, Appendix B.9.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import resnet_cifar
      >>> model = resnet_cifar(18, width=4)
      >>> jax.eval_shape(model.apply, model.init(jax.random.key(0)), jnp.ones((2, 32, 32, 3))).shape
      (2, 32)
    """
    return _bridged(PooledResNet, depth, 32, width, True, zero_init, dtype)


def _bridged(
    kind: type[ResNet],
    depth: int,
    output_stride: int,
    width: int,
    small_images: bool,
    zero_init: bool,
    dtype: DTypeLike | None,
) -> NormalisedModel:
    for name, value, allowed in (
        ("depth", depth, tuple(BLOCKS)),
        ("output_stride", output_stride, (8, 16, 32)),
    ):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {allowed}, got {value!r}")
    if width < 1:
        raise ValueError(f"width: expected at least 1, got {width}")
    return bridge_normalised(
        lambda rngs: kind(depth, output_stride, width, small_images, zero_init, dtype, rngs)
    )


def resnet_from_torch(
    state: Mapping[str, np.ndarray], depth: int, *, width: int = 64, small_images: bool = False
) -> tuple[Params, Stats]:
    """Parameters and statistics of :func:`resnet` from torchvision's ``state_dict``.

    Args:
      state: Arrays by torchvision's names, ``"layer1.0.conv1.weight"``. The classifier ``fc`` and the counts
        ``num_batches_tracked`` are ignored.
      depth: As in :func:`resnet`.
      width: As in :func:`resnet`.
      small_images: As in :func:`resnet`.

    Returns:
      ``(params, stats)``, for any output stride. torch's running variances are unbiased ones.

    Raises:
      ValueError: If an array is missing, is too much, or has another shape. The message names it.

    Example:
      >>> from jaxneg.nn import resnet_from_torch
      >>> resnet_from_torch({}, 18)
      Traceback (most recent call last):
      ValueError: state: 'bn1.bias' is missing for a ResNet-18
    """
    model = resnet(depth, width=width, small_images=small_images)
    params = jax.eval_shape(model.init, jax.random.key(0))
    stats = jax.eval_shape(model.statistics, params, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    used = set()

    def take(path: tuple[Any, ...], expected: jax.ShapeDtypeStruct) -> Array:
        *parents, leaf = (key.key for key in path[1:])  # path[0]: of the pair
        used.add(name := ".".join([*parents, _TORCH_NAMES[leaf]]))
        if name not in state:
            raise ValueError(f"state: {name!r} is missing for a ResNet-{depth}")
        array, shape = np.asarray(state[name]), expected.shape
        if leaf == "kernel":
            height, breadth, inputs, outputs = shape
            shape = (outputs, inputs, height, breadth)
        if array.shape != shape:
            raise ValueError(
                f"state: {name!r} should have shape {shape} in a ResNet-{depth}, got {array.shape}"
            )
        return jnp.asarray(array.transpose(2, 3, 1, 0) if leaf == "kernel" else array, expected.dtype)

    taken = jax.tree_util.tree_map_with_path(take, (params, stats))
    ignored = (name for name in state if name.startswith("fc.") or name.endswith(".num_batches_tracked"))
    if unknown := sorted(state.keys() - used - set(ignored)):
        raise ValueError(f"state: {unknown[0]!r} is too much for a ResNet-{depth}")
    return taken
