"""An encoder-decoder transformer: T5, T5 1.1, and small ones to train from scratch.

Raffel et al. 2019 (arXiv:1910.10683), Section 2.1: normalisation before each part, root mean squares without
a bias (Zhang and Sennrich 2019, arXiv:1910.07467, Eq. 4), scores that are not divided by the root of a head's
size, and a bias for the distance of two tokens, in buckets, that all layers share. T5 1.1 has a gated GELU
(Shazeer 2020, arXiv:2002.05202, Eq. 6) and an output layer of its own. Dropout is left out.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxneg.nn.batch_norm import Params
from jaxneg.nn.batch_sharding import over_data, rows_like
from jaxneg.nn.bridge import bridge
from jaxneg.nn.cache import append
from jaxneg.nn.contraction import contract, contract_rows

_LAYER_RULES = (
    (r"attention/(query|key|value)/kernel", ("data", "model")),
    (r"attention/out/kernel", ("model", "data")),
    (r"feed_forward/(gate|up)/kernel", ("data", "model")),
    (r"feed_forward/down/kernel", ("model", "data")),
)
ENCODER_DECODER_RULES = (
    (r"embed/embedding", P("model", "data")),
    (r"unembed/kernel", P("data", "model")),
    (r"positions", P(None, "data")),
    (r"distances/embedding", P(None, "model")),
    *((rf"blocks/\d+/\w*{pattern}", P(*spec)) for pattern, spec in _LAYER_RULES),
    *((rf"blocks/\w*{pattern}", P(None, *spec)) for pattern, spec in _LAYER_RULES),
)
"""Tensor parallelism over the mesh axis ``model`` (heads, hidden units, vocabulary; Shoeybi et al. 2019,
arXiv:1909.08053, Section 3) and fully sharded data parallelism over ``data``; their sizes must divide the
shapes, and that of ``model`` the heads."""

_MASKED = jnp.finfo(jnp.float32).min  # finite: a row without any token gives no NaN


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig:
    """Sizes and choices of an encoder-decoder.

    Attributes:
      vocab: Number of tokens.
      width: Size of the residual streams.
      encoder_layers: Number of the encoder's blocks.
      decoder_layers: Number of the decoder's blocks.
      heads: Number of attention heads.
      head_width: Size of a head; ``None`` for ``width // heads``.
      hidden: Hidden units of the feed-forward parts; ``None`` for ``4 * width``.
      activation: Gated GELU (T5 1.1), or GELU or ReLU (T5) without a gate.
      positions: A bias for each distance, or a learned vector for each place.
      max_length: Number of learned positions.
      buckets: Number of the distances' buckets, an even number.
      max_distance: From which distance on all fall into the same bucket.
      tied: Whether the output layer is the embedding, transposed, over the root of the width.
      scan: Whether the blocks are stacked and run in a loop, which compiles in the time of one.
      remat: Whether a block's inside is recomputed in the backward pass.
      dtype: Type of the computation; ``None`` for the parameters'. Normalisation and softmax are in float32.
    """

    vocab: int
    width: int = 128
    encoder_layers: int = 2
    decoder_layers: int = 2
    heads: int = 4
    head_width: int | None = None
    hidden: int | None = None
    activation: Literal["gated_gelu", "gelu", "relu"] = "gated_gelu"
    positions: Literal["relative", "learned"] = "relative"
    max_length: int = 512
    buckets: int = 32
    max_distance: int = 128
    tied: bool = True
    scan: bool = False
    remat: bool = False
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("activation", ("gated_gelu", "gelu", "relu")),
            ("positions", ("relative", "learned")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}, got {getattr(self, name)!r}")
        for name in ("vocab", "width", "encoder_layers", "decoder_layers", "heads", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of width = {self.width}, got {self.heads}")
        if self.buckets < 4 or self.buckets % 2:
            raise ValueError(f"buckets: expected an even number of at least 4, got {self.buckets}")
        if self.max_distance <= self.buckets // 2:
            raise ValueError(
                f"max_distance: expected more than half the buckets = {self.buckets // 2},"
                f" got {self.max_distance}"
            )

    @property
    def head_size(self) -> int:
        """Size of a head."""
        return self.head_width or self.width // self.heads


T5_SMALL = EncoderDecoderConfig(
    vocab=32_128,
    width=512,
    encoder_layers=6,
    decoder_layers=6,
    heads=8,
    head_width=64,
    hidden=2048,
    activation="relu",
    scan=True,
)
T5_BASE = dataclasses.replace(
    T5_SMALL, width=768, encoder_layers=12, decoder_layers=12, heads=12, hidden=3072
)
T5_V1_1_SMALL = dataclasses.replace(
    T5_SMALL,
    encoder_layers=8,
    decoder_layers=8,
    heads=6,
    hidden=1024,
    activation="gated_gelu",
    tied=False,
)
T5_V1_1_BASE = dataclasses.replace(
    T5_V1_1_SMALL, width=768, encoder_layers=12, decoder_layers=12, heads=12, hidden=2048
)
"""Raffel et al. 2019, Section 3.1.2, and the sizes of the released checkpoints: 61, 223, 77 and 248 million
parameters."""


class DecoderCache(NamedTuple):
    """What the decoder has read: keys and values of its tokens, and those of the encoder's states.

    Attributes:
      key: ``[layers, batch, heads, slots, size]``.
      value: Likewise.
      states_key: ``[layers, batch, heads, source, size]``.
      states_value: Likewise.
      length: How many slots are filled.
    """

    key: Float[Array, "layers batch heads slots size"]
    value: Float[Array, "layers batch heads slots size"]
    states_key: Float[Array, "layers batch heads source size"]
    states_value: Float[Array, "layers batch heads source size"]
    length: Int[Array, ""]

    @property
    def slots(self) -> int:
        """For how many tokens there is room."""
        return self.key.shape[3]


class EncoderDecoder(NamedTuple):
    """An encoder-decoder as pure functions.

    Attributes:
      init: ``(key) -> params``, a nested dict of arrays with string keys.
      encode: ``(params, tokens [batch, source], mask=None) -> states [batch, source, width]``. ``mask`` is
        True where there is a token; None for everywhere.
      decode: ``(params, states, mask, targets_in, cache=None) -> logits``. ``targets_in`` are what the
        decoder reads, the start token first: ``[batch, tokens]``, or ``[batch, sets, tokens]`` for several
        targets of each source, which share one encoding; the logits have an axis ``vocab`` more. With a
        cache, ``targets_in [batch, tokens]`` continue what it holds, and ``(logits, cache)`` is returned;
        tokens for which it has no room make all NaN.
      init_cache: ``(params, states, length, dtype=None) -> cache`` with room for ``length`` tokens and the
        keys and values of the states, which ``decode`` then needs no more.
    """

    init: Callable[[PRNGKeyArray], Params]
    encode: Callable[..., Float[Array, "batch source width"]]
    decode: Callable[..., Any]
    init_cache: Callable[..., DecoderCache]


def distance_buckets(
    distances: Int[Array, "*shape"], buckets: int, max_distance: int, *, both_ways: bool
) -> Int[Array, "*shape"]:
    """The bucket of each distance: one for each short distance, logarithmic ones for longer.

    With B buckets for a direction, ``bucket = d`` for d < B / 2, else
    ``min(B / 2 + floor(log(d / (B / 2)) / log(max_distance / (B / 2)) B / 2), B - 1)``.

    Args:
      distances: Place of the token that is read, less that of the token that reads.
      buckets: Number of buckets; with ``both_ways`` half of them are for tokens behind.
      max_distance: From which distance on all fall into the last bucket.
      both_ways: Whether tokens behind the reading one have buckets; else they are as if at its own place.

    Returns:
      Integers below ``buckets``.

    Source:
      Raffel et al. 2019, arXiv:1910.10683, Section 2.1, with the numbers of its code.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.nn.encoder_decoder import distance_buckets
      >>> distance_buckets(jnp.array([-200, -9, -1, 0, 1]), 32, 128, both_ways=True).tolist()
      [15, 8, 1, 0, 17]
    """
    first, back = 0, -distances
    if both_ways:
        buckets //= 2
        first, back = buckets * (distances > 0), jnp.abs(distances)
    back, exact = jnp.maximum(back, 0), buckets // 2
    ratio = jnp.log(jnp.maximum(back, 1) / exact) / np.log(max_distance / exact)
    far = jnp.minimum(exact + (ratio * (buckets - exact)).astype(int), buckets - 1)
    return first + jnp.where(back < exact, back, far)


class Attention(nnx.Module):
    """Attention of several heads whose scores are not scaled."""

    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs):
        inner, self.size = config.heads * config.head_size, config.head_size
        self.query = _linear(config, config.width, inner, (config.width * self.size) ** -0.5, rngs)
        self.key = _linear(config, config.width, inner, config.width**-0.5, rngs)
        self.value = _linear(config, config.width, inner, config.width**-0.5, rngs)
        self.out = _linear(config, inner, config.width, inner**-0.5, rngs)

    def memory(self, x: Float[Array, "*batch tokens width"]) -> tuple[Array, Array]:
        """Keys and values, ``[*batch, tokens, heads, size]``."""
        return self._heads(self.key(x)), self._heads(self.value(x))

    def __call__(
        self,
        x: Float[Array, "batch sets tokens width"],
        key: Array,
        value: Array,
        bias: Float[Array, "#batch #sets #heads #tokens others"],
        axes: Literal["bmshd", "bshd", "bhsd"] = "bmshd",
    ) -> Float[Array, "batch sets tokens width"]:
        """Mixes the values for each token; all sets share keys and values without an axis ``m``."""
        query = self._heads(self.query(x))
        key, value = key.astype(query.dtype), value.astype(query.dtype)
        scores = jnp.einsum(f"bmthd,{axes}->bmhts", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores + bias, axis=-1).astype(value.dtype)
        mixed = jnp.einsum(f"bmhts,{axes}->bmthd", weights, value)
        return self.out(mixed.reshape(*x.shape[:-1], -1))

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], -1, self.size)


class FeedForward(nnx.Module):
    """``down(gelu(gate(x)) * up(x))``, ``down(gelu(up(x)))`` or ``down(relu(up(x)))``."""

    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs):
        width, hidden = config.width, config.hidden or 4 * config.width
        self.gate = (
            _linear(config, width, hidden, width**-0.5, rngs) if config.activation == "gated_gelu" else None
        )
        self.up = _linear(config, width, hidden, width**-0.5, rngs)
        self.down = _linear(config, hidden, width, hidden**-0.5, rngs)
        self.activation = jax.nn.relu if config.activation == "relu" else jax.nn.gelu

    def __call__(self, x: Float[Array, "*batch tokens width"]) -> Float[Array, "*batch tokens width"]:
        """Transforms each token."""
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))


class EncoderBlock(nnx.Module):
    """Attention and feed-forward, each after a normalisation and around a residual."""

    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs):
        self.attention_norm = _norm(config, rngs)
        self.attention = Attention(config, rngs)
        self.feed_forward_norm = _norm(config, rngs)
        self.feed_forward = FeedForward(config, rngs)

    def __call__(self, x: Float[Array, "batch 1 tokens width"], bias: Array) -> Array:
        """Updates the residual stream."""
        h = self.attention_norm(x).astype(x.dtype)
        x = x + self.attention(h, *self.attention.memory(h), bias)
        return x + self.feed_forward(self.feed_forward_norm(x).astype(x.dtype))


class DecoderBlock(nnx.Module):
    """Attention to the targets, attention to the states, and feed-forward."""

    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs):
        self.attention_norm = _norm(config, rngs)
        self.attention = Attention(config, rngs)
        self.states_attention_norm = _norm(config, rngs)
        self.states_attention = Attention(config, rngs)
        self.feed_forward_norm = _norm(config, rngs)
        self.feed_forward = FeedForward(config, rngs)

    def __call__(
        self,
        x: Float[Array, "batch sets tokens width"],
        bias: Array,
        states: Float[Array, "batch source width"],
        states_bias: Array,
        layer: Int[Array, ""] | int,
        cache: DecoderCache | None,
    ) -> tuple[Array, DecoderCache | None]:
        """Updates the residual stream, and the cache."""
        h = self.attention_norm(x).astype(x.dtype)
        key, value = self.attention.memory(h)
        axes, states_axes = "bmshd", "bshd"
        if cache is None:
            states_memory = self.states_attention.memory(states)
        else:
            stored = [
                append(kept, new[:, 0], layer, cache.length)
                for kept, new in ((cache.key, key), (cache.value, value))
            ]
            cache = cache._replace(key=stored[0], value=stored[1])
            key, value = (each[layer] for each in stored)
            states_memory = cache.states_key[layer], cache.states_value[layer]
            axes = states_axes = "bhsd"
        x = x + self.attention(h, key, value, bias, axes)
        h = self.states_attention_norm(x).astype(x.dtype)
        x = x + self.states_attention(h, *states_memory, states_bias, states_axes)
        return x + self.feed_forward(self.feed_forward_norm(x).astype(x.dtype)), cache


class Stack(nnx.Module):
    """The blocks of an encoder or a decoder, the norm after them, and their positions."""

    def __init__(self, config: EncoderDecoderConfig, block: Callable, layers: int, rngs: nnx.Rngs):
        if config.positions == "learned":
            shape = (config.max_length, config.width)
            self.positions = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), shape))
        else:
            init = nnx.initializers.normal(config.width**-0.5)
            self.distances = nnx.Embed(config.buckets, config.heads, embedding_init=init, rngs=rngs)
        if config.scan:
            self.blocks = nnx.vmap(lambda rngs: block(config, rngs))(rngs.split(layers))
        else:
            self.blocks = nnx.List([block(config, rngs) for _ in range(layers)])
        self.norm = _norm(config, rngs)
        self.config, self.layers, self.both_ways = config, layers, block is EncoderBlock

    def placed(self, x: Float[Array, "*batch tokens width"], first: Array | int = 0) -> Array:
        """The embeddings with the learned vectors of their places, if there are any."""
        if self.config.positions == "relative":
            return x
        if x.shape[-2] > self.config.max_length:
            raise ValueError(f"tokens: {x.shape[-2]} are more than max_length = {self.config.max_length}")
        places = first + jnp.arange(x.shape[-2])
        return x + jnp.asarray(self.positions[...], x.dtype).at[places].get(mode="fill", fill_value=jnp.nan)

    def distance_bias(self, tokens: int, others: int, first: Array | int = 0) -> Float[Array, "..."]:
        """What the distance of two tokens adds to their scores, ``[heads, tokens, others]``."""
        if self.config.positions == "learned":
            return jnp.zeros((1, 1, 1), jnp.float32)
        distances = jnp.arange(others) - (first + jnp.arange(tokens))[:, None]
        buckets = distance_buckets(
            distances, self.config.buckets, self.config.max_distance, both_ways=self.both_ways
        )
        return jnp.moveaxis(jnp.asarray(self.distances.embedding[...], jnp.float32)[buckets], -1, 0)

    def __call__(self, x: Array, run: Callable[[Any, Array, Any, Any], Any], carried: Any) -> tuple:
        """Runs the blocks, ``run(block, x, carried, layer) -> (x, carried)``, and the norm."""

        def of_state(block: nnx.State, layer: Any, x: Array, carried: Any) -> Any:
            return run(nnx.merge(graph, block), x, carried, layer)

        of_state = jax.checkpoint(of_state) if self.config.remat else of_state
        if self.config.scan:
            graph, stacked = nnx.split(self.blocks)
            layers = jnp.arange(self.layers)
            (x, carried), _ = jax.lax.scan(
                lambda carry, block: (of_state(*block, *carry), None), (x, carried), (stacked, layers)
            )
        else:
            for layer, module in enumerate(self.blocks):  # pyright: ignore[reportArgumentType]
                graph, block = nnx.split(module)
                x, carried = of_state(block, layer, x, carried)
        return self.norm(x).astype(x.dtype), carried


class Encoder(nnx.Module):
    """The embedding and the encoder; also a part of other networks."""

    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.embed = nnx.Embed(
            config.vocab, config.width, embedding_init=nnx.initializers.normal(1.0), rngs=rngs
        )
        self.encoder = Stack(config, EncoderBlock, config.encoder_layers, rngs)

    def __call__(
        self, tokens: Int[Array, "batch source"], mask: Bool[Array, "batch source"] | None = None
    ) -> Float[Array, "batch source width"]:
        """The states of the tokens; those of padding are read by nobody."""
        x = self.encoder.placed(self.embedded(tokens))[:, None]
        bias = self.encoder.distance_bias(tokens.shape[1], tokens.shape[1]) + _mask_bias(mask, tokens.shape)
        x, _ = self.encoder(x, lambda block, x, carried, _: (block(x, bias), carried), None)
        return x[:, 0]

    def table(self) -> Float[Array, "vocab width"]:
        """The embedding in the type of the computation."""
        return jnp.asarray(self.embed.embedding[...], self.config.dtype)

    def embedded(self, tokens: Int[Array, "*batch tokens"]) -> Float[Array, "*batch tokens width"]:
        """The embeddings of tokens."""
        return over_data(self.table().at[tokens].get(out_sharding=rows_like(tokens)))


class EncoderDecoderModule(Encoder):
    """The module behind :func:`encoder_decoder`."""

    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.decoder = Stack(config, DecoderBlock, config.decoder_layers, rngs)
        if not config.tied:
            self.unembed = _linear(config, config.width, config.vocab, config.width**-0.5, rngs)

    def __call__(self, part: Literal["encode", "decode", "init_cache"], *inputs: Any) -> Any:
        """One of the module's functions, by name."""
        return super().__call__(*inputs) if part == "encode" else getattr(self, part)(*inputs)

    def decode(
        self,
        states: Float[Array, "batch source width"],
        mask: Bool[Array, "batch source"] | None,
        targets_in: Int[Array, "batch *sets tokens"],
        cache: DecoderCache | None,
    ) -> Any:
        """The logits of the next token at each position."""
        if targets_in.ndim not in (2, 3) or (cache is not None and targets_in.ndim == 3):
            raise ValueError(
                "targets_in: expected [batch, tokens], or without a cache [batch, sets, tokens],"
                f" got shape {targets_in.shape}"
            )
        if targets_in.shape[0] != states.shape[0]:
            raise ValueError(
                f"targets_in: expected rows for each of the {states.shape[0]} encodings,"
                f" got shape {targets_in.shape}"
            )
        tokens, stack = targets_in.shape[-1], self.decoder
        first = 0 if cache is None else cache.length
        others = tokens if cache is None else cache.slots
        x = stack.placed(self.embedded(targets_in), first)
        x = x[:, None] if targets_in.ndim == 2 else x
        if cache is not None:
            x = jnp.where(first + tokens <= cache.slots, x, jnp.nan)
        behind = jnp.arange(others) <= (first + jnp.arange(tokens))[:, None]
        bias = jnp.where(behind, stack.distance_bias(tokens, others, first), _MASKED)
        states_bias = _mask_bias(mask, states.shape[:2])

        def run(block: DecoderBlock, x: Array, cache: DecoderCache | None, layer: Any) -> Any:
            return block(x, bias, states, states_bias, layer, cache)

        x, cache = stack(x, run, cache)
        x = x[:, 0] if targets_in.ndim == 2 else x
        if self.config.tied:
            table = self.table()
            logits = contract(x * self.config.width**-0.5, table, (((x.ndim - 1,), (1,)), ((), ())))
        else:
            logits = self.unembed(x)
        return logits if cache is None else (logits, cache._replace(length=first + tokens))

    def init_cache(
        self, states: Float[Array, "batch source width"], length: int, dtype: DTypeLike | None
    ) -> DecoderCache:
        """An empty cache with the keys and values of the states."""
        if length < 1:
            raise ValueError(f"length: expected at least 1, got {length}")
        if self.config.positions == "learned" and length > self.config.max_length:
            raise ValueError(f"length: {length} are more than max_length = {self.config.max_length}")
        blocks: Any = self.decoder.blocks
        if self.config.scan:
            graph, stacked = nnx.split(blocks)
            memories = jax.lax.map(
                lambda block: nnx.merge(graph, block).states_attention.memory(states), stacked
            )
        else:
            each = [block.states_attention.memory(states) for block in blocks]
            memories = jax.tree.map(lambda *layers: jnp.stack(layers), *each)
        key, value = (memory.astype(dtype or memory.dtype).swapaxes(2, 3) for memory in memories)
        room = jnp.concatenate([jnp.zeros_like(key[..., :1, :])] * length, axis=3)
        return DecoderCache(room, room, key, value, jnp.zeros((), int))


def encoder_decoder(config: EncoderDecoderConfig) -> EncoderDecoder:
    """An encoder-decoder: the logits at position t depend on all of the source and the targets up to t.

    ``states = encoder(source);  logits = norm(decoder(targets, states)) W``

    Args:
      config: Sizes and choices.

    Returns:
      ``init``, ``encode``, ``decode`` and ``init_cache``, see :class:`EncoderDecoder`.

    Raises:
      ValueError: For sizes that do not fit each other or choices that do not exist, when ``config`` is made;
        from its functions, for more tokens than learned positions, or targets that do not fit the states.

    Source:
      Raffel et al. 2019, arXiv:1910.10683, Section 2.1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import EncoderDecoderConfig, encoder_decoder
      >>> model = encoder_decoder(EncoderDecoderConfig(vocab=11, width=8, heads=2))
      >>> def logits(params, source, mask, targets):
      ...     return model.decode(params, model.encode(params, source, mask), mask, targets)
      >>> params, source, targets = jax.eval_shape(model.init, jax.random.key(0)), (2, 5), (2, 3, 4)
      >>> jax.eval_shape(logits, params, *(jnp.zeros(n, int) for n in (source, source, targets))).shape
      (2, 3, 4, 11)
    """
    model = bridge(lambda rngs: EncoderDecoderModule(config, rngs))

    def encode(params: Params, tokens: Array, mask: Array | None = None) -> Array:
        return model.apply(params, "encode", tokens, mask)

    def decode(
        params: Params,
        states: Array,
        mask: Array | None,
        targets_in: Array,
        cache: DecoderCache | None = None,
    ) -> Any:
        return model.apply(params, "decode", states, mask, targets_in, cache)

    def init_cache(
        params: Params, states: Array, length: int, dtype: DTypeLike | None = None
    ) -> DecoderCache:
        return model.apply(params, "init_cache", states, length, dtype)

    return EncoderDecoder(model.init, encode, decode, init_cache)


_PARTS = {
    "encoder": {"attention": "0.SelfAttention", "feed_forward": "1.DenseReluDense"},
    "decoder": {
        "attention": "0.SelfAttention",
        "states_attention": "1.EncDecAttention",
        "feed_forward": "2.DenseReluDense",
    },
}
_MATRICES = {"query": "q", "key": "k", "value": "v", "out": "o", "gate": "wi_0", "down": "wo"}
_COPIES = re.compile(r"(encoder|decoder)\.embed_tokens\.weight")


def encoder_decoder_from_torch(state: Mapping[str, np.ndarray], config: EncoderDecoderConfig) -> Params:
    """Parameters of :func:`encoder_decoder` from a T5 checkpoint with Hugging Face's names.

    Args:
      state: Arrays by name, ``"encoder.block.0.layer.0.SelfAttention.q.weight"``, as
        ``safetensors.numpy.load_file`` reads them.
      config: Sizes and choices, with relative positions.

    Returns:
      The parameters, in the types of the arrays.

    Raises:
      ValueError: If an array is missing, is too much, or has another shape (the message names it), or the
        positions are learned.

    Example:
      >>> from jaxneg.nn import T5_SMALL, encoder_decoder_from_torch
      >>> encoder_decoder_from_torch({}, T5_SMALL)
      Traceback (most recent call last):
      ValueError: state: 'decoder.block.0.layer.0.SelfAttention.k.weight' is missing
    """
    if config.positions != "relative":
        raise ValueError(f"config: expected relative positions, got {config.positions!r}")
    unrolled = dataclasses.replace(config, scan=False)
    shapes = jax.eval_shape(encoder_decoder(unrolled).init, jax.random.key(0))
    used = set()

    def take(path: tuple[Any, ...], expected: jax.ShapeDtypeStruct) -> Array:
        keys = [key.key for key in path]
        used.add(name := _torch_name(keys, config))
        if name not in state:
            raise ValueError(f"state: {name!r} is missing")
        array = np.asarray(state[name])
        array = array.T if keys[-1] == "kernel" else array
        if array.shape != expected.shape:
            flipped = expected.shape[::-1] if keys[-1] == "kernel" else expected.shape
            raise ValueError(f"state: {name!r} should have shape {flipped}, got {state[name].shape}")
        return jnp.asarray(array)

    params = jax.tree_util.tree_map_with_path(take, shapes)
    copies = {name for name in state if _COPIES.fullmatch(name) or (config.tied and name == "lm_head.weight")}
    if unknown := sorted(state.keys() - used - copies):
        raise ValueError(f"state: {unknown[0]!r} is too much")
    if config.scan:
        for part in _PARTS:
            layers = [params[part]["blocks"][str(i)] for i in range(len(params[part]["blocks"]))]
            params[part]["blocks"] = jax.tree.map(lambda *each: jnp.stack(each), *layers)
    return params


def _torch_name(keys: list[str], config: EncoderDecoderConfig) -> str:
    match keys:
        case ["embed", _]:
            return "shared.weight"
        case ["unembed", _]:
            return "lm_head.weight"
        case [part, "norm", _]:
            return f"{part}.final_layer_norm.weight"
        case [part, "distances", _]:
            return f"{part}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        case [part, "blocks", layer, norm, "scale"]:
            place = _PARTS[part][norm.removesuffix("_norm")][0]
            return f"{part}.block.{layer}.layer.{place}.layer_norm.weight"
        case [part, "blocks", layer, piece, matrix, _]:
            up = "wi_1" if config.activation == "gated_gelu" else "wi"
            matrix = up if matrix == "up" else _MATRICES[matrix]
            return f"{part}.block.{layer}.layer.{_PARTS[part][piece]}.{matrix}.weight"
    raise AssertionError(keys)


def _mask_bias(mask: Array | None, shape: tuple[int, ...]) -> Float[Array, "#batch 1 1 1 source"]:
    """Zero for tokens, very negative for padding."""
    if mask is None:
        return jnp.zeros((1, 1, 1, 1, 1), jnp.float32)
    if mask.shape != shape:
        raise ValueError(f"mask: expected shape {shape}, got {mask.shape}")
    return jnp.where(mask, 0.0, _MASKED)[:, None, None, None, :]


def _linear(
    config: EncoderDecoderConfig, inputs: int, outputs: int, scale: float, rngs: nnx.Rngs
) -> nnx.Linear:
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=False,
        kernel_init=nnx.initializers.normal(scale),
        dtype=config.dtype,
        dot_general=contract_rows,
        rngs=rngs,
    )


def _norm(config: EncoderDecoderConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(config.width, epsilon=1e-6, dtype=jnp.float32, rngs=rngs)
