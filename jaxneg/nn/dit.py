"""The diffusion transformer: a vision transformer whose norms are set by timestep and class.

Peebles and Xie 2022, Scalable Diffusion Models with Transformers (arXiv:2212.09748), Section 3.2 with the
adaLN-Zero block, and Table 1 for the sizes. Section 3.1's predicted variance is left out: the output is as
large as the input.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from jaxneg.nn.attention import attend
from jaxneg.nn.batch_sharding import over_data, reshape_examples
from jaxneg.nn.bridge import Model, bridge
from jaxneg.nn.conditioning import Conditioning
from jaxneg.nn.contraction import contract_rows

_BLOCK_RULES = (
    (r"attention/qkv/kernel", ("data", "model")),
    (r"attention/qkv/bias", ("model",)),
    (r"attention/out/kernel", ("model", "data")),
    (r"feed_forward/up/kernel", ("data", "model")),
    (r"feed_forward/up/bias", ("model",)),
    (r"feed_forward/down/kernel", ("model", "data")),
    (r"modulation/kernel", ("model", "data")),
)
DIT_RULES = (
    (r"conditioning/time/0/kernel", P("data", "model")),
    (r"conditioning/time/0/bias", P("model")),
    (r"conditioning/time/1/kernel", P("model", "data")),
    (r"conditioning/label/embedding", P(None, "data")),
    (r"patches/kernel", P(None, "data")),
    *((rf"blocks/\d+/{pattern}", P(*spec)) for pattern, spec in _BLOCK_RULES),
    *((rf"blocks/{pattern}", P(None, *spec)) for pattern, spec in _BLOCK_RULES),
    (r"final/modulation/kernel", P("model", "data")),
    (r"final/out/kernel", P("data", None)),
)
"""Tensor parallelism over the mesh axis ``model`` (heads, hidden units; Shoeybi et al. 2019,
arXiv:1909.08053, Section 3) and fully sharded data parallelism over ``data``; their sizes must divide the
shapes, and that of ``model`` the heads."""

_SINUSOIDS = 256
_SMALL = nnx.initializers.normal(0.02)
_XAVIER = nnx.initializers.xavier_uniform()


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Sizes and choices of a diffusion transformer.

    Attributes:
      size: Height and width of the latents.
      channels: Channels of the latents.
      patch: Side of the square that becomes a token, a divisor of ``size``.
      width: Size of the residual stream, a multiple of 4.
      layers: Number of blocks.
      heads: Number of attention heads, a divisor of ``width``.
      classes: Number of classes; ``None`` for a network that knows no classes.
      mlp_ratio: Hidden units of the feed-forward part over ``width``.
      scan: Whether the blocks are stacked and run in a loop, which compiles in the time of one.
      remat: Whether a block's inside is recomputed in the backward pass.
      dtype: Type of the computation; ``None`` for the parameters'. Normalisation and softmax are in float32.
    """

    size: int
    channels: int = 4
    patch: int = 2
    width: int = 192
    layers: int = 6
    heads: int = 3
    classes: int | None = None
    mlp_ratio: int = 4
    scan: bool = False
    remat: bool = False
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        for name in ("size", "channels", "patch", "width", "layers", "heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.classes is not None and self.classes < 1:
            raise ValueError(f"classes: expected at least 1, or None, got {self.classes}")
        if self.size % self.patch:
            raise ValueError(f"patch: expected a divisor of size = {self.size}, got {self.patch}")
        if self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of width = {self.width}, got {self.heads}")
        if self.width % 4:
            raise ValueError(f"width: expected a multiple of 4 for positions in a plane, got {self.width}")


DIT_S_2 = DiTConfig(size=32, width=384, layers=12, heads=6, classes=1000, scan=True)
DIT_B_2 = DiTConfig(size=32, width=768, layers=12, heads=12, classes=1000, scan=True)
DIT_L_2 = DiTConfig(size=32, width=1024, layers=24, heads=16, classes=1000, scan=True)
DIT_XL_2 = DiTConfig(size=32, width=1152, layers=28, heads=16, classes=1000, scan=True)
"""Table 1 of Peebles and Xie 2022, for ImageNet's latents 32 x 32 x 4. Their 33, 130, 458 and 675 million
parameters count the fixed positions and the last layer's outputs for the variance, which are not here."""


def plane_positions(side: int, width: int) -> np.ndarray:
    """Sinusoids of column and row for the cells of a square, row after row.

    ``sin(c w_i), cos(c w_i), sin(r w_i), cos(r w_i),  w_i = 10000^(-4 i / width)``

    Args:
      side: Cells in a row.
      width: Size of an embedding, a multiple of 4.

    Returns:
      ``[side * side, width]`` in float64.

    Source:
      He et al. 2021, arXiv:2111.06377, Appendix A.1, in the order of its code, which Peebles and Xie 2022,
      arXiv:2212.09748, use.

    Example:
      >>> from jaxneg.nn.dit import plane_positions
      >>> plane_positions(2, 4)[0].tolist()
      [0.0, 1.0, 0.0, 1.0]
    """
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    rows, columns = np.divmod(np.arange(side * side), side)
    angles = [place[:, None] * frequencies for place in (columns, rows)]
    return np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)


@functools.partial(jax.checkpoint, prevent_cse=False)
def modulated(
    x: Float[Array, "batch tokens width"],
    shift: Float[Array, "batch 1 width"],
    scale: Float[Array, "batch 1 width"],
) -> Float[Array, "batch tokens width"]:
    """``norm(x) (1 + scale) + shift``, the norm over the width in float32 and without parameters.

    The backward pass computes it again: that is faster than to read what it would keep.
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)
    return (y * (1 + scale) + shift).astype(x.dtype)


class Attention(nnx.Module):
    """Self-attention of all tokens; a head's query, key and value lie side by side in ``qkv``."""

    def __init__(self, config: DiTConfig, rngs: nnx.Rngs):
        self.heads = config.heads
        self.qkv = _linear(config, config.width, 3 * config.width, _XAVIER, rngs)
        self.out = _linear(config, config.width, config.width, _XAVIER, rngs)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Mixes the tokens."""
        qkv = self.qkv(x).reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)
        return self.out(attend(*jnp.split(qkv, 3, axis=-1)))


class FeedForward(nnx.Module):
    """``down(gelu(up(x)))``."""

    def __init__(self, config: DiTConfig, rngs: nnx.Rngs):
        hidden = config.mlp_ratio * config.width
        self.up = _linear(config, config.width, hidden, _XAVIER, rngs)
        self.down = _linear(config, hidden, config.width, _XAVIER, rngs)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Transforms each token."""
        return self.down(jax.nn.gelu(self.up(x)))


class Block(nnx.Module):
    """Attention and feed-forward, each behind a modulated norm and a gate that starts shut (adaLN-Zero)."""

    def __init__(self, config: DiTConfig, rngs: nnx.Rngs):
        self.modulation = _linear(config, config.width, 6 * config.width, nnx.initializers.zeros, rngs)
        self.attention = Attention(config, rngs)
        self.feed_forward = FeedForward(config, rngs)

    def __call__(
        self, x: Float[Array, "batch tokens width"], c: Float[Array, "batch width"]
    ) -> Float[Array, "batch tokens width"]:
        """Updates the residual stream."""
        m = self.modulation(c).reshape(c.shape[0], 6, 1, -1)
        x = x + m[:, 2] * self.attention(modulated(x, m[:, 0], m[:, 1]))
        return x + m[:, 5] * self.feed_forward(modulated(x, m[:, 3], m[:, 4]))


class Final(nnx.Module):
    """From tokens to patches."""

    def __init__(self, config: DiTConfig, rngs: nnx.Rngs):
        zeros, pixels = nnx.initializers.zeros, config.patch**2 * config.channels
        self.modulation = _linear(config, config.width, 2 * config.width, zeros, rngs)
        self.out = _linear(config, config.width, pixels, zeros, rngs)

    def __call__(
        self, x: Float[Array, "batch tokens width"], c: Float[Array, "batch width"]
    ) -> Float[Array, "batch tokens pixels"]:
        """The pixels of each patch."""
        m = self.modulation(c).reshape(c.shape[0], 2, 1, -1)
        return self.out(modulated(x, m[:, 0], m[:, 1]))


class DiT(nnx.Module):
    """The module behind :func:`dit`."""

    def __init__(self, config: DiTConfig, rngs: nnx.Rngs):
        self.config = config
        pixels = config.patch**2 * config.channels
        self.conditioning = Conditioning(
            _SINUSOIDS, config.width, config.classes, 0.02, _SMALL, config.dtype, rngs
        )
        self.patches = _linear(config, pixels, config.width, _XAVIER, rngs)
        if config.scan:
            self.blocks = nnx.vmap(lambda rngs: Block(config, rngs))(rngs.split(config.layers))
        else:
            self.blocks = nnx.List([Block(config, rngs) for _ in range(config.layers)])
        self.final = Final(config, rngs)

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        t: Num[Array, "batch"],
        label: Int[Array, "batch"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """What the network predicts of each latent, for one the noise."""
        config = self.config
        size, side, patch, channels = config.size, config.size // config.patch, config.patch, config.channels
        if x.shape[1:] != (size, size, channels):
            raise ValueError(f"x: expected latents [batch, {size}, {size}, {channels}], got shape {x.shape}")
        c = jax.nn.silu(self.conditioning(t, label))
        h = reshape_examples(x, side, patch, side, patch, channels).swapaxes(2, 3)
        h = self.patches(reshape_examples(h, side * side, patch * patch * channels))
        h = over_data(h + plane_positions(side, config.width).astype(h.dtype))

        def run(block: nnx.State, h: Array) -> Array:
            return nnx.merge(graph, block)(h, c)

        run = jax.checkpoint(run) if config.remat else run
        if config.scan:
            graph, stacked = nnx.split(self.blocks)
            h, _ = jax.lax.scan(lambda h, block: (run(block, h), None), h, stacked)
        else:
            for module in self.blocks:  # pyright: ignore[reportGeneralTypeIssues]
                graph, block = nnx.split(module)
                h = run(block, h)
        h = reshape_examples(self.final(h, c), side, side, patch, patch, channels)
        return reshape_examples(h.swapaxes(2, 3), *x.shape[1:])


def dit(config: DiTConfig) -> Model:
    """A diffusion transformer.

    ``c = silu(embedding(t, label));  h = patches(x) + positions;``
    ``h += g attention(norm(h) (1 + s) + b), h += g' mlp(norm(h) (1 + s') + b') (a block),``
    with b, s, g, b', s', g' linear in c and zero at the start, and so is the output.

    Args:
      config: Sizes and choices.

    Returns:
      ``init(key) -> params``; ``apply(params, x [batch, size, size, channels], t [batch], label=None)`` gives
      an array like ``x``. Labels are integers below ``classes``; ``classes`` itself, or None for all, means
      no class. A label beyond that gives NaN.

    Raises:
      ValueError: For sizes that do not fit each other, when ``config`` is made. From ``apply``, if an input
        has another shape, or there are labels and no classes.

    Source:
      Peebles and Xie 2022, arXiv:2212.09748, Section 3.2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import DiTConfig, dit
      >>> model = dit(DiTConfig(size=4, width=8, layers=1, heads=2))
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones((3, 4, 4, 4)), jnp.arange(3)).shape
      (3, 4, 4, 4)
    """
    return bridge(lambda rngs: DiT(config, rngs))


def _linear(
    config: DiTConfig, inputs: int, outputs: int, init: nnx.Initializer, rngs: nnx.Rngs
) -> nnx.Linear:
    return nnx.Linear(
        inputs, outputs, kernel_init=init, dtype=config.dtype, dot_general=contract_rows, rngs=rngs
    )
