"""A causal decoder transformer, from a toy to Llama 3.2.

Vaswani et al. 2017 (arXiv:1706.03762) with the choices since: normalisation before each part, root mean
square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467, Eq. 4), rotary positions (Su et al. 2021,
arXiv:2104.09864, Eq. 34), grouped queries (Ainslie et al. 2023, arXiv:2305.13245) and SwiGLU (Shazeer 2020,
arXiv:2002.05202, Eq. 6).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxneg.nn.batch_sharding import over_data, rows_like
from jaxneg.nn.bridge import Model, bridge
from jaxneg.nn.contraction import contract

_LAYER_RULES = (
    (r"attention/(query|key|value)/kernel", ("data", "model")),
    (r"attention/out/kernel", ("model", None, "data")),
    (r"feed_forward/(gate|up)/kernel", ("data", "model")),
    (r"feed_forward/down/kernel", ("model", "data")),
)
TRANSFORMER_RULES = (
    (r"embed/embedding", P("model", "data")),
    (r"unembed/kernel", P("data", "model")),
    (r"positions", P(None, "data")),
    *((rf"blocks/\d+/{pattern}", P(*spec)) for pattern, spec in _LAYER_RULES),
    *((rf"blocks/{pattern}", P(None, *spec)) for pattern, spec in _LAYER_RULES),
)
"""Tensor parallelism over the mesh axis ``model`` (heads, hidden units, vocabulary; Shoeybi et al. 2019,
arXiv:1909.08053, Section 3) and fully sharded data parallelism over ``data``; their sizes must divide the
shapes."""


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and choices of a transformer.

    Attributes:
      vocab: Number of tokens.
      width: Size of the residual stream.
      layers: Number of blocks.
      heads: Number of query heads.
      kv_heads: Number of key and value heads, a divisor of ``heads``; ``None`` for as many.
      head_width: Size of a head; ``None`` for ``width // heads``.
      hidden: Hidden units of the feed-forward part; ``None`` for ``4 * width``.
      activation: Gated SiLU, or GELU without a gate.
      norm: Root-mean-square or layer normalisation.
      positions: Rotary or learned.
      max_length: Number of learned positions.
      rotary_base: Longest wavelength of rotary positions, over 2 pi.
      tied: Whether the output layer is the embedding, transposed.
      scan: Whether the blocks are stacked and run in a loop, which compiles in the time of one.
      remat: Whether a block's inside is recomputed in the backward pass.
      dtype: Type of the computation; ``None`` for the parameters'. Normalisation and softmax are in float32.
    """

    vocab: int
    width: int = 96
    layers: int = 2
    heads: int = 4
    kv_heads: int | None = None
    head_width: int | None = None
    hidden: int | None = None
    activation: Literal["swiglu", "gelu"] = "swiglu"
    norm: Literal["rms", "layer"] = "rms"
    positions: Literal["rotary", "learned"] = "rotary"
    max_length: int = 2048
    rotary_base: float = 10_000.0
    tied: bool = True
    scan: bool = False
    remat: bool = False
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        choices = {
            "activation": ("swiglu", "gelu"),
            "norm": ("rms", "layer"),
            "positions": ("rotary", "learned"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}, got {getattr(self, name)!r}")
        for name in ("vocab", "width", "layers", "heads", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise ValueError(f"kv_heads: expected a divisor of heads = {self.heads}, got {self.kv_heads}")
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of width = {self.width}, got {self.heads}")
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(
                f"head_width: expected an even number for rotary positions, got {self.head_size}"
            )

    @property
    def head_size(self) -> int:
        """Size of a head."""
        return self.head_width or self.width // self.heads


LLAMA_3_2_1B = TransformerConfig(
    vocab=128_256,
    width=2048,
    layers=16,
    heads=32,
    kv_heads=8,
    hidden=8192,
    rotary_base=500_000.0,
    scan=True,
    remat=True,
    dtype=jnp.bfloat16,
)
"""Shapes of Llama 3.2 1B (Grattafiori et al. 2024, arXiv:2407.21783, and the model card), without the
rescaling of rotary frequencies that lengthens its context beyond 8192 tokens."""


def rotate(
    x: Float[Array, "batch tokens *heads size"], base: float
) -> Float[Array, "batch tokens *heads size"]:
    """Rotary position embedding.

    The pair ``(x_i, x_{i + size/2})`` at position m turns by the angle ``m base^(-2i/size)``.

    Args:
      x: Queries or keys.
      base: Longest wavelength over 2 pi.

    Returns:
      The rotated queries or keys.

    Source:
      Su et al. 2021, arXiv:2104.09864, Eq. 34, with the halves of a head as pairs.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.nn.transformer import rotate
      >>> rotate(jnp.ones((1, 3, 2, 4)), 10_000.0).shape
      (1, 3, 2, 4)
    """
    size, dtype = x.shape[-1], jnp.promote_types(x.dtype, jnp.float32)
    frequencies = base ** (-jnp.arange(0, size, 2, dtype=dtype) / size)
    angles = jnp.arange(x.shape[1], dtype=dtype)[:, None] * frequencies
    angles = jnp.expand_dims(angles, range(1, x.ndim - 2))  # over heads
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Attention(nnx.Module):
    """Causal self-attention with grouped queries."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        def linear(
            inputs: tuple[int, ...], outputs: tuple[int, ...], axis: tuple[int, ...]
        ) -> nnx.LinearGeneral:
            return nnx.LinearGeneral(
                inputs,
                outputs,
                axis=axis,
                use_bias=False,
                dtype=config.dtype,
                dot_general=contract,
                rngs=rngs,
            )

        groups, size = config.kv_heads or config.heads, config.head_size
        self.query = linear((config.width,), (groups, config.heads // groups * size), (-1,))
        self.key = linear((config.width,), (groups, size), (-1,))
        self.value = linear((config.width,), (groups, size), (-1,))
        self.out = linear((groups, config.heads // groups * size), (config.width,), (-2, -1))
        self.rotary_base = config.rotary_base if config.positions == "rotary" else None

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Mixes each token with those before it."""
        key, value = self.key(x), self.value(x)
        batch, tokens, groups, size = key.shape
        query = self.query(x).reshape(batch, tokens, groups, -1, size)
        if self.rotary_base is not None:
            query, key = rotate(query, self.rotary_base), rotate(key, self.rotary_base)
        scores = jnp.einsum("btgqd,bsgd->bgqts", query, key, preferred_element_type=jnp.float32) * size**-0.5
        scores = jnp.where(jnp.tri(tokens, dtype=bool), scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        mixed = jnp.einsum("bgqts,bsgd->btgqd", weights, value)
        return self.out(mixed.reshape(batch, tokens, groups, -1))


class FeedForward(nnx.Module):
    """``down(silu(gate(x)) * up(x))``, or ``down(gelu(up(x)))``."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        def linear(n: int, m: int) -> nnx.Linear:
            return nnx.Linear(n, m, use_bias=False, dtype=config.dtype, dot_general=contract, rngs=rngs)

        hidden = config.hidden or 4 * config.width
        self.gate = linear(config.width, hidden) if config.activation == "swiglu" else None
        self.up = linear(config.width, hidden)
        self.down = linear(hidden, config.width)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Transforms each token."""
        if self.gate is None:
            return self.down(jax.nn.gelu(self.up(x)))
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and feed-forward, each after a normalisation and around a residual."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.attention_norm = _norm(config, rngs)
        self.attention = Attention(config, rngs)
        self.feed_forward_norm = _norm(config, rngs)
        self.feed_forward = FeedForward(config, rngs)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Updates the residual stream."""
        x = x + self.attention(self.attention_norm(x).astype(x.dtype))
        return x + self.feed_forward(self.feed_forward_norm(x).astype(x.dtype))


class Transformer(nnx.Module):
    """The module behind :func:`transformer`."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.config = config
        self.embed = nnx.Embed(
            config.vocab, config.width, embedding_init=nnx.initializers.normal(0.02), rngs=rngs
        )
        if config.positions == "learned":
            shape = (config.max_length, config.width)
            self.positions = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape))
        if config.scan:
            self.blocks = nnx.vmap(lambda rngs: Block(config, rngs))(rngs.split(config.layers))
        else:
            self.blocks = nnx.List([Block(config, rngs) for _ in range(config.layers)])
        self.norm = _norm(config, rngs)
        if not config.tied:
            self.unembed = nnx.Linear(
                config.width,
                config.vocab,
                use_bias=False,
                dtype=config.dtype,
                dot_general=contract,
                rngs=rngs,
            )

    def __call__(self, tokens: Int[Array, "batch tokens"]) -> Float[Array, "batch tokens vocab"]:
        """The logits of the next token at each position."""
        table = self.embed.embedding[...]
        table = table.astype(self.config.dtype or table.dtype)
        x = over_data(table.at[tokens].get(out_sharding=rows_like(tokens)))
        if self.config.positions == "learned":
            if tokens.shape[1] > self.config.max_length:
                raise ValueError(
                    f"tokens: {tokens.shape[1]} are more than max_length = {self.config.max_length}"
                )
            x = x + self.positions[: tokens.shape[1]].astype(x.dtype)

        def run(block: nnx.State, x: Array) -> Array:
            return nnx.merge(graph, block)(x)

        run = jax.checkpoint(run) if self.config.remat else run
        if self.config.scan:
            graph, stacked = nnx.split(self.blocks)
            x, _ = jax.lax.scan(lambda x, block: (run(block, x), None), x, stacked)
        else:
            for module in self.blocks:  # pyright: ignore[reportGeneralTypeIssues]
                graph, block = nnx.split(module)
                x = run(block, x)
        x = self.norm(x).astype(x.dtype)
        if self.config.tied:
            return contract(x, table, (((2,), (1,)), ((), ())))
        return self.unembed(x)


def transformer(config: TransformerConfig) -> Model:
    """A causal decoder: the logits at position t depend on the tokens up to t.

    ``x = E[tokens];  x += attention(norm(x)), x += feed_forward(norm(x)) (a block);  logits = norm(x) E^T``

    Args:
      config: Sizes and choices.

    Returns:
      ``init(key) -> params``; ``apply(params, tokens [batch, tokens])`` gives ``[batch, tokens, vocab]``.

    Raises:
      ValueError: For sizes that do not fit each other or choices that do not exist, when ``config`` is made.

    Source:
      Grattafiori et al. 2024, arXiv:2407.21783, Section 3.2, for the default choices.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import TransformerConfig, transformer
      >>> model = transformer(TransformerConfig(vocab=11, width=8, heads=2))
      >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 5), int)).shape
      (2, 5, 11)
    """
    return bridge(lambda rngs: Transformer(config, rngs))


def _norm(config: TransformerConfig, rngs: nnx.Rngs) -> nnx.RMSNorm | nnx.LayerNorm:
    kind = nnx.RMSNorm if config.norm == "rms" else nnx.LayerNorm
    return kind(config.width, epsilon=1e-5, dtype=jnp.float32, rngs=rngs)
