"""The diffusion transformer: a vision transformer whose norms are set by timestep and class.

Peebles and Xie 2022, Scalable Diffusion Models with Transformers (arXiv:2212.09748), Section 3.2 with the
adaLN-Zero block, and Table 1 for the sizes. Section 3.1's predicted variance is left out: the output is as
large as the input. A network of texts has cross-attention between a block's two parts, as PixArt-alpha does
(Chen et al. 2023, arXiv:2310.00426, Section 2.3), without its layers in front of the embeddings.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num

from jaxneg.nn.attention import attend
from jaxneg.nn.batch_sharding import over_data, reshape_examples
from jaxneg.nn.bridge import Model, bridge
from jaxneg.nn.conditioning import Conditioning
from jaxneg.nn.contraction import contract_rows

_BLOCK_RULES = (
    (r"attention/qkv/kernel", ("data", "model")),
    (r"attention/qkv/bias", ("model",)),
    (r"attention/out/kernel", ("model", "data")),
    (r"text_attention/query/kernel", ("data", "model")),
    (r"text_attention/query/bias", ("model",)),
    (r"text_attention/key_value/kernel", ("data", "model")),
    (r"text_attention/key_value/bias", ("model",)),
    (r"text_attention/out/kernel", ("model", "data")),
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

AttentionHook = Callable[..., Array]
"""``(h [batch, tokens, width], block) -> h``: changes what self-attention has mixed. ``block`` is the block's
name, ``"blocks.0"``, ``"blocks.1"``, ...; it is not given where the blocks run in a loop."""

CrossAttention = Callable[[Array, Array, Array, Array | None], Array]
"""``(q [batch, tokens, heads, size], k [batch, text, heads, size], v, mask [batch, text]) -> like q``."""


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
      text: Size of the embeddings of a text's tokens; ``None`` for a network that knows no texts.
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
    text: int | None = None
    scan: bool = False
    remat: bool = False
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        for name in ("size", "channels", "patch", "width", "layers", "heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("classes", "text"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, or None, got {value}")
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

    def __call__(
        self, x: Float[Array, "batch tokens width"], hook: Callable[[Array], Array] | None = None
    ) -> Float[Array, "batch tokens width"]:
        """Mixes the tokens; the hook changes them before the last projection."""
        qkv = self.qkv(x).reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)
        mixed = attend(*jnp.split(qkv, 3, axis=-1))
        return self.out(mixed if hook is None else _same_shape("attention_hook", hook(mixed), mixed))


def text_attention(
    query: Float[Array, "batch tokens heads size"],
    key: Float[Array, "batch text heads size"],
    value: Float[Array, "batch text heads size"],
    mask: Bool[Array, "batch text"] | None = None,
) -> Float[Array, "batch tokens heads size"]:
    """``softmax(q k^T / sqrt(size)) v`` over a text's tokens, in float32 inside; zeros where it has none."""
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=wide) * query.shape[-1] ** -0.5
    if mask is not None:
        mask = mask[:, None, None]
        # A finite number, so that a text of padding alone gives no NaN.
        scores = jnp.where(mask, scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1)
    weights = weights if mask is None else jnp.where(mask, weights, 0)
    return jnp.einsum("bhnm,bmhd->bnhd", weights.astype(value.dtype), value)


class Text(NamedTuple):
    """What the blocks are told of each image's text, and how they attend to it."""

    embeddings: Float[Array, "batch text embedding"]
    mask: Bool[Array, "batch text"] | None
    attention: CrossAttention


class TextAttention(nnx.Module):
    """Attention of the image's tokens to the text's; a head's key and value lie side by side."""

    def __init__(self, config: DiTConfig, embedding: int, rngs: nnx.Rngs):
        self.heads = config.heads
        self.query = _linear(config, config.width, config.width, _XAVIER, rngs)
        self.key_value = _linear(config, embedding, 2 * config.width, _XAVIER, rngs)
        self.out = _linear(config, config.width, config.width, nnx.initializers.zeros, rngs)

    def __call__(
        self, x: Float[Array, "batch tokens width"], text: Text
    ) -> Float[Array, "batch tokens width"]:
        """What the text says to each token."""
        q = self.query(x).reshape(*x.shape[:2], self.heads, -1)
        pairs = self.key_value(text.embeddings).reshape(*text.embeddings.shape[:2], self.heads, -1)
        k, v = jnp.split(pairs, 2, axis=-1)
        mixed = _same_shape("cross_attention", text.attention(q, k, v, text.mask), q)
        return self.out(mixed.reshape(x.shape))


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
        self.text_attention = None if config.text is None else TextAttention(config, config.text, rngs)

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        c: Float[Array, "batch width"],
        text: Text | None,
        hook: Callable[[Array], Array] | None,
    ) -> Float[Array, "batch tokens width"]:
        """Updates the residual stream."""
        m = self.modulation(c).reshape(c.shape[0], 6, 1, -1)
        x = x + m[:, 2] * self.attention(modulated(x, m[:, 0], m[:, 1]), hook)
        if self.text_attention is not None and text is not None:
            x = x + self.text_attention(x, text)
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
        text: Float[Array, "batch text embedding"] | None = None,
        *,
        text_mask: Bool[Array, "batch text"] | None = None,
        attention_hook: AttentionHook | None = None,
        cross_attention: CrossAttention | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """What the network predicts of each latent, for one the noise."""
        config = self.config
        size, side, patch, channels = config.size, config.size // config.patch, config.patch, config.channels
        if x.shape[1:] != (size, size, channels):
            raise ValueError(f"x: expected latents [batch, {size}, {size}, {channels}], got shape {x.shape}")
        _check_text(config, x.shape[0], text, text_mask, cross_attention)
        c = jax.nn.silu(self.conditioning(t, label))
        h = reshape_examples(x, side, patch, side, patch, channels).swapaxes(2, 3)
        h = self.patches(reshape_examples(h, side * side, patch * patch * channels))
        h = over_data(h + plane_positions(side, config.width).astype(h.dtype))

        told = None if text is None else Text(text, text_mask, cross_attention or text_attention)

        def runner(graph: nnx.GraphDef, hook: Callable[[Array], Array] | None) -> Callable[..., Array]:
            """A function for each hook: jax.checkpoint remembers what a function did at its first call."""

            def run(block: nnx.State, h: Array) -> Array:
                return nnx.merge(graph, block)(h, c, told, hook)

            return jax.checkpoint(run) if config.remat else run

        if config.scan:
            graph, stacked = nnx.split(self.blocks)
            run = runner(graph, _of_any_block(attention_hook))
            h, _ = jax.lax.scan(lambda h, block: (run(block, h), None), h, stacked)
        else:
            for i, module in enumerate(self.blocks):  # pyright: ignore[reportArgumentType]
                graph, block = nnx.split(module)
                hook = attention_hook and functools.partial(_called, attention_hook, f"blocks.{i}")
                h = runner(graph, hook)(block, h)
        h = reshape_examples(self.final(h, c), side, side, patch, patch, channels)
        return reshape_examples(h.swapaxes(2, 3), *x.shape[1:])


def dit(config: DiTConfig) -> Model:
    """A diffusion transformer.

    ``c = silu(embedding(t, label));  h = patches(x) + positions;``
    ``h += g attention(norm(h) (1 + s) + b), h += g' mlp(norm(h) (1 + s') + b') (a block),``
    with b, s, g, b', s', g' linear in c and zero at the start, and so is the output. Where there are texts,
    ``h += cross_attention(h, text)`` lies between the two, and is zero at the start.

    Args:
      config: Sizes and choices.

    Returns:
      ``init(key) -> params``; ``apply(params, x [batch, size, size, channels], t [batch], label=None,
      text=None, *, text_mask=None, attention_hook=None, cross_attention=None)`` gives an array like ``x``.
      Labels are integers below ``classes``; ``classes`` itself, or None for all, means no class. A label
      beyond that gives NaN. ``text [batch, tokens, config.text]`` are embeddings, ``text_mask [batch,
      tokens]`` is false for padding. Two functions change what happens inside:
      ``attention_hook(h [batch, tokens, width], block)`` what self-attention has mixed, heads merged, before
      the out-projection, in the block named "blocks.0", "blocks.1", ... (with ``scan`` it is called as
      ``attention_hook(h)``, as the blocks are one); ``cross_attention(q [batch, tokens, heads, size],
      k [batch, text, heads, size], v, text_mask)`` stands in for the softmax over the text. Give two texts
      one behind the other and split ``k``, ``v`` and the mask there, and it has keys and values of both.

    Raises:
      ValueError: For sizes that do not fit each other, when ``config`` is made. From ``apply``, if an input
        has another shape, there are labels and no classes, a text is missing or not expected, a function
        returns another shape, or a hook needs the block's name in a loop over the blocks.

    Source:
      Peebles and Xie 2022, arXiv:2212.09748, Section 3.2; for texts Chen et al. 2023, arXiv:2310.00426,
      Section 2.3.

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


def _check_text(
    config: DiTConfig,
    batch: int,
    text: Array | None,
    mask: Array | None,
    cross_attention: CrossAttention | None,
) -> None:
    if config.text is None:
        for name, value in (("text", text), ("text_mask", mask), ("cross_attention", cross_attention)):
            if value is not None:
                raise ValueError(f"{name}: expected None, since the network was made without texts")
        return
    if text is None or text.ndim != 3 or (text.shape[0], text.shape[2]) != (batch, config.text):
        found = None if text is None else f"shape {text.shape}"
        raise ValueError(f"text: expected embeddings [{batch}, tokens, {config.text}], got {found}")
    if mask is not None and (mask.shape != text.shape[:2] or mask.dtype != jnp.bool_):
        raise ValueError(
            f"text_mask: expected booleans of shape {text.shape[:2]}, got {mask.dtype} {mask.shape}"
        )


def _called(hook: AttentionHook, block: str, h: Array) -> Array:
    return hook(h, block)


def _of_any_block(hook: AttentionHook | None) -> Callable[[Array], Array] | None:
    """A hook that does not ask for the block's name."""
    if hook is not None:
        try:
            inspect.signature(hook).bind(None)
        except TypeError as error:
            raise ValueError(
                "attention_hook: expected a function of the tokens alone, since with scan=True the blocks run"
                f" in a loop and have no names; got one that needs more ({error})"
            ) from None
    return hook


def _same_shape(name: str, found: Array, expected: Array) -> Array:
    if found.shape != expected.shape:
        raise ValueError(f"{name}: expected a result of shape {expected.shape}, got {found.shape}")
    return found
