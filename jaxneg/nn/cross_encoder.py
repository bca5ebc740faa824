"""A cross-encoder: BERT reads query and document in one row, a linear layer scores the pair.

Devlin et al. 2019 (arXiv:1810.04805): learned positions and segments, normalisation after each part, biases,
exact GELU, a pooler on the first token. Nogueira and Cho 2019 (arXiv:1901.04085) rank with it; dropout before
the last layer is that of CET's official code (arXiv:2209.05072).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxneg.nn.batch_norm import Params
from jaxneg.nn.batch_sharding import over_data, reshape_examples, rows_like
from jaxneg.nn.bridge import Model, bridge
from jaxneg.nn.contraction import contract


@dataclasses.dataclass(frozen=True)
class CrossEncoderConfig:
    """Sizes and choices of a cross-encoder.

    Attributes:
      vocab: Number of tokens.
      width: Size of the residual stream.
      layers: Number of blocks.
      heads: Number of attention heads, a divisor of ``width``.
      hidden: Hidden units of the feed-forward part; ``None`` for ``4 * width``.
      max_length: Number of positions.
      segments: Number of segments: query and document.
      dropout: Share of what is left out inside BERT, in training.
      head_dropout: Share of the pooled state that is left out, in training.
      remat: Whether a block's inside is recomputed in the backward pass.
      dtype: Type of the computation; ``None`` for the parameters'. Normalisation and softmax are in float32.
    """

    vocab: int
    width: int = 32
    layers: int = 2
    heads: int = 2
    hidden: int | None = None
    max_length: int = 512
    segments: int = 2
    dropout: float = 0.1
    head_dropout: float = 0.2
    remat: bool = False
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        for name in ("vocab", "width", "layers", "heads", "max_length", "segments"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of width = {self.width}, got {self.heads}")
        for name in ("dropout", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {getattr(self, name)}")


BERT_BASE = CrossEncoderConfig(vocab=30_522, width=768, layers=12, heads=12)
"""BERT-base, uncased (Devlin et al. 2019, arXiv:1810.04805, Section 3)."""


class Block(nnx.Module):
    """Attention and feed-forward, each inside a residual that is normalised."""

    def __init__(self, config: CrossEncoderConfig, rngs: nnx.Rngs):
        hidden = config.hidden or 4 * config.width
        self.config = config
        self.query, self.key, self.value, self.out = (
            _linear(config, config.width, config.width, rngs) for _ in range(4)
        )
        self.attention_norm = _norm(config, rngs)
        self.up = _linear(config, config.width, hidden, rngs)
        self.down = _linear(config, hidden, config.width, rngs)
        self.norm = _norm(config, rngs)

    def __call__(
        self, x: Float[Array, "rows tokens width"], mask: Bool[Array, "rows tokens"], key: Any
    ) -> Float[Array, "rows tokens width"]:
        """Updates the residual stream."""
        heads, size = self.config.heads, self.config.width // self.config.heads
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        q, k, v = (
            reshape_examples(part(x), x.shape[1], heads, size) for part in (self.query, self.key, self.value)
        )
        scores = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32) * size**-0.5
        lowest = jnp.finfo(scores.dtype).min
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, lowest), axis=-1)
        weights = _dropped(weights, self.config.dropout, keys[0]).astype(v.dtype)
        mixed = reshape_examples(jnp.einsum("bhts,bshd->bthd", weights, v), x.shape[1], heads * size)
        x = self._after(self.attention_norm, x, self.out(mixed), keys[1])
        return self._after(self.norm, x, self.down(jax.nn.gelu(self.up(x), approximate=False)), keys[2])

    def _after(self, norm: nnx.LayerNorm, x: Array, change: Array, key: Any) -> Array:
        return norm(x + _dropped(change, self.config.dropout, key)).astype(x.dtype)


class CrossEncoder(nnx.Module):
    """The module behind :func:`cross_encoder`."""

    def __init__(self, config: CrossEncoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.words, self.positions, self.segments = (
            nnx.Embed(size, config.width, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)
            for size in (config.vocab, config.max_length, config.segments)
        )
        self.norm = _norm(config, rngs)
        self.blocks = nnx.vmap(lambda rngs: Block(config, rngs))(rngs.split(config.layers))
        self.pooler = _linear(config, config.width, config.width, rngs)
        self.head = _linear(config, config.width, 1, rngs)

    def __call__(
        self, inputs: Mapping[str, Int[Array, "rows tokens"]], key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows"]:
        """The score of each row; dropout where there is a key."""
        config, tokens = self.config, inputs["tokens"]
        length = tokens.shape[1]
        if length > config.max_length:
            raise ValueError(f"tokens: {length} are more than max_length = {config.max_length}")
        for name in ("segments", "mask"):
            if inputs[name].shape != tokens.shape:
                raise ValueError(
                    f"{name}: expected the shape of tokens, {tokens.shape}, got {inputs[name].shape}"
                )
        keys: Any = (None,) * 3 if key is None else jax.random.split(key, 3)

        def embedded(name: str, indices: Array) -> Array:
            table = jnp.asarray(getattr(self, name).embedding[...], config.dtype)
            return table.at[indices].get(out_sharding=rows_like(indices))

        positions = jnp.asarray(self.positions.embedding[...], config.dtype)[:length]
        x = over_data(embedded("words", tokens)) + positions + embedded("segments", inputs["segments"])
        x = _dropped(self.norm(x).astype(x.dtype), config.dropout, keys[0])
        mask = inputs["mask"] != 0
        graph, stacked = nnx.split(self.blocks)
        of_blocks = None if keys[1] is None else jax.random.split(keys[1], config.layers)

        def run(block: nnx.State, x: Array, key: Any) -> Array:
            return nnx.merge(graph, block)(x, mask, key)

        run = jax.checkpoint(run) if config.remat else run
        x, _ = jax.lax.scan(lambda x, each: (run(each[0], x, each[1]), None), x, (stacked, of_blocks))
        pooled = jnp.tanh(self.pooler(x[:, 0]))
        scores = self.head(_dropped(pooled, config.head_dropout, keys[2]))
        return scores[:, 0].astype(jnp.promote_types(scores.dtype, jnp.float32))


def cross_encoder(config: CrossEncoderConfig) -> Model:
    """BERT that scores a query and a document in one row.

    ``x = norm(E[tokens] + P + S[segments]);  x = norm(x + attention(x)), x = norm(x + feed_forward(x)) (a
    block);  score = w . tanh(W x_[CLS] + b) + c``

    Args:
      config: Sizes and choices.

    Returns:
      ``init(key) -> params``; ``apply(params, {"tokens", "segments", "mask"}, key=None) -> scores [rows]``,
      each input ``[rows, tokens]``, the mask true where there is a token; dropout where there is a key.

    Raises:
      ValueError: From ``apply``, for more tokens than positions, or inputs of different shapes.

    Source:
      Nogueira and Cho 2019, arXiv:1901.04085; Devlin et al. 2019, arXiv:1810.04805.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import CrossEncoderConfig, cross_encoder
      >>> model, x = cross_encoder(CrossEncoderConfig(vocab=11, width=8)), jnp.ones((3, 5), int)
      >>> model.apply(model.init(jax.random.key(0)), {"tokens": x, "segments": x, "mask": x}).shape
      (3,)
    """
    return bridge(lambda rngs: CrossEncoder(config, rngs))


_EMBEDDINGS = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "segments": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
}
_PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}


def cross_encoder_from_torch(
    config: CrossEncoderConfig, state: Mapping[str, Any], key: PRNGKeyArray
) -> Params:
    """Parameters from a checkpoint of BERT, as transformers names its arrays.

    Args:
      config: The checkpoint's sizes.
      state: Arrays by name, with or without the prefix ``bert.``; what is no part of the encoder or of
        ``classifier`` is not read.
      key: For the last layer, where the checkpoint has no ``classifier`` with one output.

    Returns:
      Parameters for :func:`cross_encoder`.

    Raises:
      ValueError: If an array is missing or has another shape. The message names it.

    Source:
      ``BertModel`` and ``BertForSequenceClassification`` of transformers.

    Example:
      >>> import jax
      >>> from jaxneg.nn import CrossEncoderConfig, cross_encoder_from_torch
      >>> cross_encoder_from_torch(CrossEncoderConfig(vocab=11), {}, jax.random.key(0))
      Traceback (most recent call last):
      ValueError: state: 'encoder.layer.0.attention.output.LayerNorm.bias' is missing
    """
    params = cross_encoder(config).init(key)
    state = {name.removeprefix("bert."): np.asarray(array) for name, array in state.items()}

    has_head = "classifier.weight" in state and state["classifier.weight"].shape == (1, config.width)

    def take(path: tuple[Any, ...], like: Array) -> Array:
        *parts, leaf = (each.key for each in path)
        suffix = "bias" if leaf == "bias" else "weight"
        layers = range(config.layers) if parts[0] == "blocks" else ()
        name = "classifier" if parts[0] == "head" else _EMBEDDINGS.get(parts[0], "")
        if parts[0] == "head" and not has_head:
            return like
        names = [f"encoder.layer.{n}.{_PARTS[parts[1]]}.{suffix}" for n in layers] or [f"{name}.{suffix}"]
        arrays = []
        for each in names:
            if each not in state:
                raise ValueError(f"state: {each!r} is missing")
            array, expected = state[each], like.shape[1:] if layers else like.shape
            expected = expected[::-1] if leaf == "kernel" else expected
            if array.shape != expected:
                raise ValueError(f"state: {each!r} should have shape {expected}, got {array.shape}")
            arrays.append(array.T if leaf == "kernel" else array)
        return jnp.asarray(np.stack(arrays) if layers else arrays[0], like.dtype)

    return jax.tree_util.tree_map_with_path(take, params)


def _dropped(x: Array, share: float, key: Any) -> Array:
    if key is None or not share:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - share, x.shape), x / (1 - share), 0).astype(x.dtype)


def _linear(config: CrossEncoderConfig, inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        inputs,
        outputs,
        dtype=config.dtype,
        kernel_init=nnx.initializers.normal(0.02),
        dot_general=contract,
        rngs=rngs,
    )


def _norm(config: CrossEncoderConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.width, epsilon=1e-12, dtype=jnp.float32, rngs=rngs)
