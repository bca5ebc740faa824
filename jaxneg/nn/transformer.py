"""A causal decoder transformer, from a toy to Llama 3.2.

Vaswani et al. 2017 (arXiv:1706.03762) with the choices since: normalisation before each part, root mean
square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467, Eq. 4), rotary positions (Su et al. 2021,
arXiv:2104.09864, Eq. 34), grouped queries (Ainslie et al. 2023, arXiv:2305.13245) and SwiGLU (Shazeer 2020,
arXiv:2002.05202, Eq. 6).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxneg.nn.batch_norm import Params
from jaxneg.nn.batch_sharding import over_data, rows_like
from jaxneg.nn.bridge import Model, bridge
from jaxneg.nn.cache import append
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


class RotaryScaling(NamedTuple):
    """How Llama 3.1 and later stretch slow rotary frequencies for a longer context.

    Attributes:
      factor: What the slowest frequencies are divided by.
      low: Frequencies that turn fewer times than this within ``length`` tokens are the slowest.
      high: Those that turn more often than this stay; between both the change is gradual.
      length: Length of the context before, in tokens.
    """

    factor: float
    low: float
    high: float
    length: int


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
      rotary_scaling: How slow rotary frequencies are stretched; None for not at all.
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
    rotary_scaling: RotaryScaling | None = None
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
    rotary_scaling=RotaryScaling(factor=32.0, low=1.0, high=4.0, length=8192),
    scan=True,
    remat=True,
    dtype=jnp.bfloat16,
)
"""Llama 3.2 1B (Grattafiori et al. 2024, arXiv:2407.21783, and the configuration of its checkpoint)."""


class Cache(NamedTuple):
    """The keys and values of the tokens that a transformer has read.

    Attributes:
      key: After rotation, ``[layers, batch, key heads, slots, size]``.
      value: Likewise, as they are.
      mask: Where there is a token and no padding, ``[batch, slots]``.
      length: How many slots are filled.
    """

    key: Float[Array, "layers batch groups slots size"]
    value: Float[Array, "layers batch groups slots size"]
    mask: Bool[Array, "batch slots"]
    length: Int[Array, ""]

    @property
    def slots(self) -> int:
        """For how many tokens there is room."""
        return self.key.shape[3]


class Probe(NamedTuple):
    """What some layers compare: their scores are ``query . key / sqrt(size)``.

    Attributes:
      query: After rotation, ``[layers, batch, heads, tokens, size]``.
      key: Likewise, ``[layers, batch, key heads, tokens, size]``; query heads ``g n`` to ``g n + n - 1`` read
        key head ``g``, with n of them for each.
    """

    query: Float[Array, "layers batch heads tokens size"]
    key: Float[Array, "layers batch groups tokens size"]


WeightsHook = Callable[[Float[Array, "batch heads tokens others"], Any], Array]
"""``(attention weights after the softmax, layer) -> weights``; the layer is a traced integer in a loop."""


def rotate(
    x: Float[Array, "batch tokens *heads size"],
    base: float,
    positions: Int[Array, "batch tokens"] | None = None,
    scaling: RotaryScaling | None = None,
) -> Float[Array, "batch tokens *heads size"]:
    """Rotary position embedding.

    The pair ``(x_i, x_{i + size/2})`` at position m turns by the angle ``m base^(-2i/size)``.

    Args:
      x: Queries or keys.
      base: Longest wavelength over 2 pi.
      positions: Of the tokens; None for 0, 1, 2, ...
      scaling: How slow frequencies are stretched, if they are.

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
    if scaling is not None:
        turns = scaling.length * frequencies / (2 * jnp.pi)
        kept = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
        frequencies *= kept + (1 - kept) / scaling.factor
    positions = jnp.arange(x.shape[1])[None] if positions is None else positions
    angles = positions.astype(dtype)[..., None] * frequencies
    angles = jnp.expand_dims(angles, range(2, x.ndim - 1))  # over heads
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
        self.rotary_scaling = config.rotary_scaling

    def __call__(
        self, x: Float[Array, "batch tokens width"], context: "_Context", layer: Any, cache: Cache | None
    ) -> tuple[Float[Array, "batch tokens width"], Cache | None, tuple[Array, Array]]:
        """Mixes each token with those before it; also the cache, and queries and keys after rotation."""
        key, value = self.key(x), self.value(x)
        batch, tokens, groups, size = key.shape
        query = self.query(x).reshape(batch, tokens, groups, -1, size)
        if self.rotary_base is not None:
            turned = self.rotary_base, context.positions, self.rotary_scaling
            query, key = rotate(query, *turned), rotate(key, *turned)
        compared, axes = (query, key), "bsgd"
        if cache is not None:
            cache = cache._replace(
                key=append(cache.key, key, layer, cache.length),
                value=append(cache.value, value, layer, cache.length),
            )
            key, value, axes = cache.key[layer].astype(x.dtype), cache.value[layer].astype(x.dtype), "bgsd"
        scores = jnp.einsum(f"btgqd,{axes}->bgqts", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(jnp.where(context.seen, scores * size**-0.5, -jnp.inf), axis=-1)
        if context.weights_hook is not None:
            of_heads = weights.reshape(batch, -1, *weights.shape[-2:])
            weights = context.weights_hook(of_heads, layer).reshape(weights.shape)
        mixed = jnp.einsum(f"bgqts,{axes}->btgqd", weights.astype(value.dtype), value)
        return self.out(mixed.reshape(batch, tokens, groups, -1)), cache, compared


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

    def __call__(
        self, x: Float[Array, "batch tokens width"], context: "_Context", layer: Any, cache: Cache | None
    ) -> tuple[Float[Array, "batch tokens width"], Cache | None, tuple[Array, Array]]:
        """Updates the residual stream and the cache; also queries and keys."""
        mixed, cache, compared = self.attention(self.attention_norm(x).astype(x.dtype), context, layer, cache)
        x = x + mixed
        return x + self.feed_forward(self.feed_forward_norm(x).astype(x.dtype)), cache, compared


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

    def __call__(
        self,
        tokens: Int[Array, "batch tokens"],
        *,
        positions: Int[Array, "batch tokens"] | None = None,
        mask: Bool[Array, "batch tokens"] | None = None,
        cache: Cache | None = None,
        probe: Sequence[int] | None = None,
        hidden: int | None = None,
        weights_hook: WeightsHook | None = None,
    ) -> Any:
        """The logits of the next token at each position, and what else is asked for."""
        config = self.config
        for name, of_tokens in (("positions", positions), ("mask", mask)):
            if of_tokens is not None and of_tokens.shape != tokens.shape:
                raise ValueError(
                    f"{name}: expected the shape of tokens, {tokens.shape}, got {of_tokens.shape}"
                )
        for name, layers in (("probe", probe), ("hidden", None if hidden is None else (hidden,))):
            if layers is not None and not (layers and set(layers) <= set(range(config.layers))):
                raise ValueError(f"{name}: expected layers from 0 to {config.layers - 1}, got {layers}")
        table = jnp.asarray(self.embed.embedding[...], config.dtype)
        x = over_data(table.at[tokens].get(out_sharding=rows_like(tokens)))
        context, cache = _context(tokens, positions, mask, cache, weights_hook)
        if config.positions == "learned":
            if tokens.shape[1] > config.max_length:
                raise ValueError(f"tokens: {tokens.shape[1]} are more than max_length = {config.max_length}")
            if context.positions is None:
                x = x + self.positions[: tokens.shape[1]].astype(x.dtype)
            else:
                places = jnp.asarray(self.positions[...], x.dtype).at[context.positions]
                x = x + places.get(mode="fill", fill_value=jnp.nan, out_sharding=rows_like(tokens))
        if cache is not None:
            x = jnp.where(cache.length + tokens.shape[1] <= cache.slots, x, jnp.nan)

        def run(block: nnx.State, layer: Any, x: Array, cache: Cache | None) -> Any:
            return nnx.merge(graph, block)(x, context, layer, cache)

        run = jax.checkpoint(run) if config.remat else run
        if config.scan:
            graph, stacked = nnx.split(self.blocks)

            def body(carry: tuple, stacked: tuple) -> tuple:
                (x, cache, state), (block, layer) = carry, stacked
                x, cache, compared = run(block, layer, x, cache)
                state = None if hidden is None else jnp.where(layer == hidden, x, state)
                return (x, cache, state), None if probe is None else compared

            carry, layers = (x, cache, None if hidden is None else x), jnp.arange(config.layers)
            (x, cache, state), compared = jax.lax.scan(body, carry, (stacked, layers))
        else:
            state, pairs = None, []
            for layer, module in enumerate(self.blocks):  # pyright: ignore[reportArgumentType]
                graph, block = nnx.split(module)
                x, cache, pair = run(block, layer, x, cache)
                state = x if layer == hidden else state
                pairs.append(pair)
            compared = list(zip(*pairs, strict=True))
        x = self.norm(x).astype(x.dtype)
        logits = contract(x, table, (((2,), (1,)), ((), ()))) if config.tied else self.unembed(x)
        asked = []
        if cache is not None:
            asked.append(cache._replace(length=cache.length + tokens.shape[1]))
        if probe is not None:
            asked.append(_probed(*([each[layer] for layer in probe] for each in compared)))
        if hidden is not None:
            asked.append(state)
        return (logits, *asked) if asked else logits


def transformer(config: TransformerConfig) -> Model:
    """A causal decoder: the logits at position t depend on the tokens up to t.

    ``x = E[tokens];  x += attention(norm(x)), x += feed_forward(norm(x)) (a block);  logits = norm(x) E^T``

    Args:
      config: Sizes and choices.

    Returns:
      ``init(key) -> params``; ``apply(params, tokens [batch, tokens])`` gives ``[batch, tokens, vocab]``.
      Options of ``apply``, and what it then returns in a tuple behind the logits, in this order:

      - ``mask [batch, tokens]``: True for tokens, False for padding, which no token reads. Padding may be on
        either side; what the logits there are is undefined.
      - ``positions [batch, tokens]``: by default how many tokens are before this one in the row, without
        padding. A learned position beyond ``max_length`` makes its row NaN.
      - ``cache``, from :func:`init_cache`: what was read before. Returned with these tokens appended. Tokens
        for which it has no room make all NaN.
      - ``probe``, layers from 0: their queries and keys, a :class:`Probe`.
      - ``hidden``, a layer from 0: the residual stream behind it, ``[batch, tokens, width]``.
      - ``weights_hook(weights [batch, heads, tokens, others], layer) -> weights``: replaces the attention
        weights, which are in float32 and sum to 1 over the last axis. With ``scan`` the layer is traced.

    Raises:
      ValueError: For sizes that do not fit each other or choices that do not exist, when ``config`` is made;
        from ``apply``, for options of another shape, layers that do not exist, more tokens than learned
        positions or slots of the cache.

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


def init_cache(config: TransformerConfig, batch: int, length: int, dtype: DTypeLike | None = None) -> Cache:
    """An empty cache of :func:`transformer`.

    Args:
      config: Of the transformer.
      batch: Number of rows.
      length: For how many tokens of a row there is room, padding included.
      dtype: Type of what it keeps; None for that of the computation, or float32.

    Returns:
      The cache.

    Raises:
      ValueError: If a size is below 1, or there is room for more tokens than learned positions.

    Example:
      >>> from jaxneg.nn import TransformerConfig, init_cache
      >>> init_cache(TransformerConfig(vocab=11, width=8, heads=2), 3, 5).key.shape
      (2, 3, 2, 5, 4)
    """
    for name, size in (("batch", batch), ("length", length)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    if config.positions == "learned" and length > config.max_length:
        raise ValueError(f"length: {length} are more than max_length = {config.max_length} learned positions")
    shape = (config.layers, batch, config.kv_heads or config.heads, length, config.head_size)
    room = jnp.zeros(shape, dtype or config.dtype or jnp.float32)
    return Cache(room, room, jnp.zeros((batch, length), bool), jnp.zeros((), jnp.int32))


_TORCH_NAMES = {
    "attention_norm": "input_layernorm",
    "attention": "self_attn",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward": "mlp",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "o_proj",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
}


def transformer_from_torch(state: Mapping[str, np.ndarray], config: TransformerConfig) -> Params:
    """Parameters of :func:`transformer` from a Llama checkpoint with Hugging Face's names.

    Args:
      state: Arrays by name, ``"model.layers.0.self_attn.q_proj.weight"``, as
        ``safetensors.numpy.load_file`` reads them.
      config: Sizes and choices, with those of Llama: SwiGLU, root mean squares, rotary positions.

    Returns:
      The parameters, in the types of the arrays.

    Raises:
      ValueError: If an array is missing, is too much, or has another shape (the message names it), or a
        choice is not Llama's.

    Example:
      >>> from jaxneg.nn import LLAMA_3_2_1B, transformer_from_torch
      >>> transformer_from_torch({}, LLAMA_3_2_1B)
      Traceback (most recent call last):
      ValueError: state: 'model.layers.0.self_attn.k_proj.weight' is missing
    """
    choices = config.activation, config.norm, config.positions
    if choices != ("swiglu", "rms", "rotary"):
        raise ValueError(f"config: expected Llama's choices, swiglu, rms and rotary, got {choices}")
    unrolled = dataclasses.replace(config, scan=False)
    shapes = jax.eval_shape(transformer(unrolled).init, jax.random.key(0))
    used = set()

    def take(path: tuple[Any, ...], expected: jax.ShapeDtypeStruct) -> Array:
        keys = [key.key for key in path]
        used.add(name := _torch_name(keys))
        if name not in state:
            raise ValueError(f"state: {name!r} is missing")
        array, shape = np.asarray(state[name]), expected.shape
        if keys[-1] == "kernel":
            inputs = math.prod(shape[:-1]) if "out" in keys else shape[0]
            shape = (expected.size // inputs, inputs)
        if array.shape != shape:
            raise ValueError(f"state: {name!r} should have shape {shape}, got {array.shape}")
        return jnp.asarray((array.T if keys[-1] == "kernel" else array).reshape(expected.shape))

    params = jax.tree_util.tree_map_with_path(take, shapes)
    copies = {name for name in state if config.tied and name == "lm_head.weight"}
    if unknown := sorted(state.keys() - used - copies):
        raise ValueError(f"state: {unknown[0]!r} is too much")
    if config.scan:
        layers = [params["blocks"][str(i)] for i in range(config.layers)]
        params["blocks"] = jax.tree.map(lambda *each: jnp.stack(each), *layers)
    return params


def _torch_name(keys: list[str]) -> str:
    match keys:
        case ["embed", _]:
            return "model.embed_tokens.weight"
        case ["unembed", _]:
            return "lm_head.weight"
        case ["norm", _]:
            return "model.norm.weight"
        case ["blocks", layer, *parts, _]:
            return ".".join(["model.layers", layer, *(_TORCH_NAMES[part] for part in parts), "weight"])
    raise AssertionError(keys)


class _Context(NamedTuple):
    """What all layers share; without positions they are 0, 1, 2, ..."""

    positions: Int[Array, "batch tokens"] | None
    seen: Bool[Array, "*batch tokens others"]
    weights_hook: WeightsHook | None


def _context(
    tokens: Array,
    positions: Array | None,
    mask: Array | None,
    cache: Cache | None,
    weights_hook: WeightsHook | None,
) -> tuple[_Context, Cache | None]:
    """Which tokens each token sees, and the positions; the cache with the mask of these tokens."""
    length = tokens.shape[1]
    if mask is None and cache is None:
        return _Context(positions, jnp.tri(length, dtype=bool), weights_hook), None
    mask = jnp.ones_like(tokens, bool) if mask is None else jnp.asarray(mask, bool)
    before, first, known = 0, 0, mask
    if cache is not None:
        first = cache.length
        before = jnp.sum(cache.mask, axis=1, keepdims=True)
        known = append(cache.mask[None, :, None, :, None], mask[..., None, None], 0, first)[0, :, 0, :, 0]
        cache = cache._replace(mask=known)
    if positions is None:
        positions = jnp.maximum(before + jnp.cumsum(mask, axis=1) - 1, 0)
    slot = first + jnp.arange(length)[:, None]
    other = jnp.arange(known.shape[1])
    # Padding sees itself, so that no row of scores is empty.
    seen = (other <= slot) & known[:, None, :] | (other == slot)
    return _Context(positions, seen[:, None, None], weights_hook), cache


def _probed(queries: list[Array], keys: list[Array]) -> Probe:
    """The queries and keys of layers, heads first."""
    query = jnp.stack(queries)
    query = query.reshape(*query.shape[:3], -1, query.shape[-1])
    return Probe(jnp.swapaxes(query, 2, 3), jnp.swapaxes(jnp.stack(keys), 2, 3))


def _norm(config: TransformerConfig, rngs: nnx.Rngs) -> nnx.RMSNorm | nnx.LayerNorm:
    kind = nnx.RMSNorm if config.norm == "rms" else nnx.LayerNorm
    return kind(config.width, epsilon=1e-5, dtype=jnp.float32, rngs=rngs)
