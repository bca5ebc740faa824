"""A convolutional network from noisy images to their noise, with a path back for every size.

Ho et al. 2020, Denoising Diffusion Probabilistic Models (arXiv:2006.11239), Appendix B: residual blocks with
group normalisation that see the timestep, self-attention at some sizes, no dropout. A class is added to the
timestep, as Dhariwal and Nichol 2021 (arXiv:2105.05233, Section 3) have it.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from jaxneg.nn.attention import attend
from jaxneg.nn.batch_sharding import over_data, reshape_examples
from jaxneg.nn.bridge import Model, bridge
from jaxneg.nn.conditioning import Conditioning
from jaxneg.nn.contraction import contract_rows
from jaxneg.nn.convolution import convolve

_XAVIER = nnx.initializers.xavier_uniform()
_ZEROS = nnx.initializers.zeros


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes and choices of a U-Net.

    Attributes:
      size: Height and width of the images, divisible by 2 once for every level after the first.
      channels: Channels of the images.
      width: Features of the first level, a multiple of ``groups``, and sinusoids of the timestep.
      multipliers: Features of each level over ``width``; each level has half the size of the one before.
      blocks: Residual blocks of a level on the way down; there is one more on the way up.
      attention: Sizes at which attention follows each block; it is always between the two blocks at the
        smallest size.
      heads: Number of attention heads, a divisor of the features where there is attention.
      groups: Groups of a normalisation.
      classes: Number of classes; ``None`` for a network that knows no classes.
      dtype: Type of the computation; ``None`` for the parameters'. Normalisation and softmax are in float32.
    """

    size: int
    channels: int = 3
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    heads: int = 1
    groups: int = 32
    classes: int | None = None
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        for name in ("size", "channels", "width", "blocks", "heads", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.classes is not None and self.classes < 1:
            raise ValueError(f"classes: expected at least 1, or None, got {self.classes}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers: expected positive numbers, got {self.multipliers}")
        if self.size % 2 ** (len(self.multipliers) - 1):
            raise ValueError(
                f"size: expected a multiple of {2 ** (len(self.multipliers) - 1)}, since there are"
                f" {len(self.multipliers)} levels, got {self.size}"
            )
        if self.width % self.groups:
            raise ValueError(f"groups: expected a divisor of width = {self.width}, got {self.groups}")
        if self.width % 2:
            raise ValueError(f"width: expected an even number for the sinusoids, got {self.width}")
        if unknown := set(self.attention) - set(self.sizes):
            raise ValueError(f"attention: expected sizes among {self.sizes}, got {min(unknown)}")
        for size, features in zip(self.sizes, self.features, strict=True):
            if (size in self.attention or size == self.sizes[-1]) and features % self.heads:
                raise ValueError(
                    f"heads: expected a divisor of the {features} features at size {size}, got {self.heads}"
                )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The size of each level."""
        return tuple(self.size // 2**level for level in range(len(self.multipliers)))

    @property
    def features(self) -> tuple[int, ...]:
        """The features of each level."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)


class Norm(nnx.Module):
    """Group normalisation in float32."""

    def __init__(self, features: int, config: UNetConfig, rngs: nnx.Rngs):
        self.group = nnx.GroupNorm(features, config.groups, epsilon=1e-6, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: Float[Array, "batch height width features"]) -> Float[Array, "batch h w features"]:
        """The normalised features."""
        return self.group(x).astype(x.dtype)


class Residual(nnx.Module):
    """``shortcut(x) + conv(silu(norm(conv(silu(norm(x))) + dense(e))))``, conv2 0 at first."""

    def __init__(self, inputs: int, outputs: int, config: UNetConfig, rngs: nnx.Rngs):
        self.norm1 = Norm(inputs, config, rngs)
        self.conv1 = _convolution(inputs, outputs, config, rngs)
        self.told = nnx.Linear(
            4 * config.width,
            outputs,
            kernel_init=_XAVIER,
            dtype=config.dtype,
            dot_general=contract_rows,
            rngs=rngs,
        )
        self.norm2 = Norm(outputs, config, rngs)
        self.conv2 = _convolution(outputs, outputs, config, rngs, init=_ZEROS)
        same = inputs == outputs
        self.shortcut = None if same else _convolution(inputs, outputs, config, rngs, kernel=1)

    def __call__(
        self, x: Float[Array, "batch height width inputs"], e: Float[Array, "batch embedding"]
    ) -> Float[Array, "batch height width outputs"]:
        """The next features."""
        y = self.conv1(jax.nn.silu(self.norm1(x))) + self.told(e)[:, None, None]
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return (x if self.shortcut is None else self.shortcut(x)) + y


class Attention(nnx.Module):
    """Self-attention of all pixels around a residual, zero at first."""

    def __init__(self, features: int, config: UNetConfig, rngs: nnx.Rngs):
        def linear(outputs: int, init: nnx.Initializer) -> nnx.Linear:
            return nnx.Linear(
                features, outputs, kernel_init=init, dtype=config.dtype, dot_general=contract_rows, rngs=rngs
            )

        self.heads = config.heads
        self.norm = Norm(features, config, rngs)
        self.qkv = linear(3 * features, _XAVIER)
        self.out = linear(features, _ZEROS)

    def __call__(
        self,
        x: Float[Array, "batch height width features"],
        hook: Callable[..., Array] | None,
        name: str,
    ) -> Float[Array, "batch h w features"]:
        """Mixes the pixels; the hook changes the result."""
        tokens = x.shape[1] * x.shape[2]
        qkv = reshape_examples(self.qkv(self.norm(x)), tokens, self.heads, 3 * x.shape[3] // self.heads)
        mixed = attend(*jnp.split(qkv.swapaxes(1, 2), 3, axis=-1))
        if hook is None:
            return x + reshape_examples(self.out(mixed), *x.shape[1:])
        result = reshape_examples(x, *mixed.shape[1:]) + self.out(mixed)
        changed = hook(result, name)
        if changed.shape != result.shape:
            raise ValueError(
                f"attention_hook: expected a result of shape {result.shape}, got {changed.shape}"
            )
        return reshape_examples(changed, *x.shape[1:])


class Level(nnx.Module):
    """The blocks at one size, with attention after each or none."""

    def __init__(
        self,
        name: str,
        inputs: list[int],
        outputs: int,
        attention: bool,
        config: UNetConfig,
        rngs: nnx.Rngs,
    ):
        self.name = name
        self.blocks = nnx.List([Residual(features, outputs, config, rngs) for features in inputs])
        count = len(inputs) if attention else 0
        self.attention = nnx.List([Attention(outputs, config, rngs) for _ in range(count)])

    def step(self, i: int, x: Array, e: Array, hook: Callable[..., Array] | None) -> Array:
        """Block i, and its attention."""
        x = self.blocks[i](x, e)
        return self.attention[i](x, hook, f"{self.name}.attentions.{i}") if len(self.attention) else x


class UNet(nnx.Module):
    """The module behind :func:`unet`."""

    def __init__(self, config: UNetConfig, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        self.conditioning = Conditioning(width, 4 * width, config.classes, 0.02, _XAVIER, config.dtype, rngs)
        self.inputs = _convolution(config.channels, width, config, rngs)
        down, smaller, kept, features = [], [], [width], width
        for level, (size, outputs) in enumerate(zip(config.sizes, config.features, strict=True)):
            inputs = [features] + [outputs] * (config.blocks - 1)
            attention = size in config.attention
            down.append(Level(f"down_blocks.{level}", inputs, outputs, attention, config, rngs))
            kept += [outputs] * config.blocks
            features = outputs
            if level < len(config.sizes) - 1:
                smaller.append(_convolution(features, features, config, rngs, stride=2))
                kept.append(features)
        self.down, self.smaller = nnx.List(down), nnx.List(smaller)
        self.middle1 = Residual(features, features, config, rngs)
        self.attention = Attention(features, config, rngs)
        self.middle2 = Residual(features, features, config, rngs)
        up, larger = [], []
        for level, (size, outputs) in reversed(
            list(enumerate(zip(config.sizes, config.features, strict=True)))
        ):
            inputs = []
            for _ in range(config.blocks + 1):
                inputs.append(features + kept.pop())
                features = outputs
            attention = size in config.attention
            up.append(Level(f"up_blocks.{len(up)}", inputs, outputs, attention, config, rngs))
            if level:
                larger.append(_convolution(features, features, config, rngs))
        self.up, self.larger = nnx.List(up), nnx.List(larger)
        self.norm = Norm(features, config, rngs)
        self.outputs = _convolution(features, config.channels, config, rngs, init=_ZEROS)

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        t: Num[Array, "batch"],
        label: Int[Array, "batch"] | None = None,
        *,
        attention_hook: Callable[..., Array] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """What the network predicts of each image, for one the noise."""
        config = self.config
        shape = (config.size, config.size, config.channels)
        if x.shape[1:] != shape:
            raise ValueError(f"x: expected images {['batch', *shape]}, got shape {x.shape}")
        e = jax.nn.silu(self.conditioning(t, label))
        h = over_data(self.inputs(x))
        kept = [h]
        for level in range(len(config.sizes)):
            for i in range(config.blocks):
                h = self.down[level].step(i, h, e, attention_hook)
                kept.append(h)
            if level < len(config.sizes) - 1:
                h = self.smaller[level](h)
                kept.append(h)
        h = self.attention(self.middle1(h, e), attention_hook, "mid_block.attentions.0")
        h = self.middle2(h, e)
        for level in range(len(config.sizes)):
            for i in range(config.blocks + 1):
                h = jnp.concatenate([h, kept.pop()], axis=-1)
                h = self.up[level].step(i, h, e, attention_hook)
            if level < len(config.sizes) - 1:
                h = self.larger[level](_doubled(h))
        return self.outputs(jax.nn.silu(self.norm(h)))


def unet(config: UNetConfig) -> Model:
    """A U-Net that predicts noise.

    ``h = conv(x);  h = level_i(h, e), half the size (down);  middle;  h = level_i([h, kept_i], e), twice the
    size (up);  conv(silu(norm(h)))`` with ``e = embedding(t, label)``; the last convolution starts at 0.

    Args:
      config: Sizes and choices.

    Returns:
      ``init(key) -> params``; ``apply(params, x [batch, size, size, channels], t [batch], label=None, *,
      attention_hook=None)`` gives an array like ``x``. Labels are integers below ``classes``; ``classes``
      itself, or None for all, means no class. A label beyond that gives NaN.
      ``attention_hook(h [batch, pixels, features], block)`` changes the result of each attention, residual
      included; ``block`` is "down_blocks.0.attentions.1", "mid_block.attentions.0" or
      "up_blocks.0.attentions.1", the first level upwards being the smallest.

    Raises:
      ValueError: For sizes that do not fit each other, when ``config`` is made. From ``apply``, if an input
        has another shape, there are labels and no classes, or the hook returns another shape.

    Source:
      Ho et al. 2020, arXiv:2006.11239, Appendix B.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import UNetConfig, unet
      >>> model = unet(UNetConfig(size=8, width=4, multipliers=(1, 2), blocks=1, attention=(), groups=2))
      >>> params = jax.eval_shape(model.init, jax.random.key(0))
      >>> jax.eval_shape(model.apply, params, jnp.ones((5, 8, 8, 3)), jnp.arange(5)).shape
      (5, 8, 8, 3)
    """
    return bridge(lambda rngs: UNet(config, rngs))


def _convolution(
    inputs: int,
    outputs: int,
    config: UNetConfig,
    rngs: nnx.Rngs,
    *,
    kernel: int = 3,
    stride: int = 1,
    init: nnx.Initializer = _XAVIER,
) -> nnx.Conv:
    return nnx.Conv(
        inputs,
        outputs,
        (kernel, kernel),
        stride,
        kernel_init=init,
        dtype=config.dtype,
        conv_general_dilated=convolve,
        rngs=rngs,
    )


def _doubled(x: Array) -> Array:
    """Each pixel four times."""
    _, height, width, features = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (x.shape[0], height, 2, width, 2, features))
    return reshape_examples(x, 2 * height, 2 * width, features)
