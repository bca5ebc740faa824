"""The paper's models: two BERT-base cross-encoders, one coupled step, and what to train them on.

The official settings (``ranker.sh``, ``train.py``): the same pretrained BERT for both with heads of their
own, queries of 32 tokens and documents of 256, AdamW at 3e-6 with weight decay 0.01 but for biases and layer
normalisation, 10,000 steps of warm-up and a linear decay, gradients clipped to norm 1, tau 10. Both models
read the same text, as published.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int, PRNGKeyArray

from experiments.collections import Triple
from jaxneg.nn import BERT_BASE, CrossEncoderConfig, cross_encoder, cross_encoder_from_torch
from jaxneg.retrieval import CETState, init_cet, linear_warmup_decay, make_cet_step
from jaxneg.train import Target

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PEAK, WARMUP, TOTAL, DECAY, CLIP = 3e-6, 10_000, 100_000, 0.01, 1.0
TAU = 10.0
QUERY, DOCUMENT = 32, 256
"""Tokens of each, without BERT's three."""


def optimizer(total: int = TOTAL) -> optax.GradientTransformation:
    """The official optimizer of each model.

    Args:
        total: steps in all.
    """
    schedule = linear_warmup_decay(PEAK, min(WARMUP, total), total)
    decay = optax.adamw(schedule, eps=1e-8, weight_decay=DECAY, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(CLIP), decay)


def decayed(params: Any) -> Any:
    """True where weight decay applies: neither on biases nor on layer normalisation.

    Example:
        >>> decayed({"norm": {"scale": 1.0}, "up": {"kernel": 2.0, "bias": 3.0}})
        {'norm': {'scale': False}, 'up': {'bias': False, 'kernel': True}}
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("bias", "scale"), params)


def coupled_step(config: CrossEncoderConfig, total: int = TOTAL) -> Any:
    """The coupled step of two cross-encoders that read the same rows.

    Args:
        config: sizes of both.
        total: steps in all.

    Returns:
        ``(state, {"pos": rows, "neg": rows}) -> (state, metrics)``.
    """
    apply, tx = cross_encoder(config).apply, optimizer(total)
    return make_cet_step(apply, apply, tx, tx, TAU, inputs="shared", dropout=True)


def cross_encoder_target(
    pairs: int, tokens: int, *, config: CrossEncoderConfig = BERT_BASE, remat: bool = True, data: int = -1
) -> Target:
    """The step and its abstract arguments.

    Args:
        pairs: in a step.
        tokens: of a row.
        config: sizes of both models.
        remat: whether a layer's inside is recomputed in the backward pass.
        data: chips; -1 for all.

    Returns:
        What `jaxneg.train.compile_for` compiles. Both models are whole on every chip.
    """
    config = dataclasses.replace(config, remat=remat, dtype=jnp.bfloat16)
    init, tx = cross_encoder(config).init, optimizer()

    def start(key: PRNGKeyArray) -> CETState:
        for_R, for_S = jax.random.split(key)
        return init_cet(key, init(for_R), init(for_S), tx, tx)

    side = {name: jax.ShapeDtypeStruct((pairs, tokens), jnp.int32) for name in ("tokens", "segments", "mask")}
    return Target(
        step=coupled_step(config),
        state=jax.eval_shape(start, jax.random.key(0)),  # pyright: ignore[reportArgumentType]
        batch={"pos": side, "neg": side},
        mesh={"data": data},
        fsdp=None,
    )


def from_checkpoint(
    folder: Path, key: PRNGKeyArray, total: int = TOTAL
) -> tuple[CrossEncoderConfig, CETState]:
    """Both models from one BERT checkpoint, with heads of their own.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``.
        key: of the heads and of the run.
        total: steps in all.

    Returns:
        The models' sizes, and the state before the first step.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the checkpoint is not a BERT's.
    """
    import json

    from safetensors.numpy import load_file

    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder}: expected a file {name}: download a BERT checkpoint, as "
                "google-bert/bert-base-uncased"
            )
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if told.get("model_type") != "bert":
        raise ValueError(
            f"{folder / 'config.json'}: expected model_type 'bert', got {told.get('model_type')!r}"
        )
    config = CrossEncoderConfig(
        vocab=told["vocab_size"],
        width=told["hidden_size"],
        layers=told["num_hidden_layers"],
        heads=told["num_attention_heads"],
        hidden=told["intermediate_size"],
        max_length=told["max_position_embeddings"],
        segments=told["type_vocab_size"],
        dropout=told.get("hidden_dropout_prob", 0.1),
    )
    state = load_file(folder / "model.safetensors")
    # CET's heads are new even where the checkpoint has one.
    state = {name: array for name, array in state.items() if not name.startswith("classifier")}
    for_R, for_S, for_run = jax.random.split(key, 3)
    R, S = (cross_encoder_from_torch(config, state, each) for each in (for_R, for_S))
    tx = optimizer(total)
    return config, init_cet(for_run, R, S, tx, tx)


def encoded(
    tokenizer: "Tokenizer", queries: list[str], documents: list[str]
) -> dict[str, Int[np.ndarray, "rows tokens"]]:
    """Rows ``[CLS] query [SEP] document [SEP]``, padded to their full length.

    Args:
        tokenizer: of the checkpoint (``tokenizer.json``), with its template for pairs.
        queries: cut off after 32 tokens.
        documents: cut off after 256 tokens.

    Returns:
        ``tokens``, ``segments`` and ``mask``.

    Raises:
        ValueError: the tokenizer has no [CLS] or [SEP].
    """
    first, separator = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    if first is None or separator is None:
        raise ValueError("tokenizer: expected one with [CLS] and [SEP], as BERT's")
    sides = [
        [each.ids[:limit] for each in tokenizer.encode_batch(texts, add_special_tokens=False)]
        for texts, limit in ((queries, QUERY), (documents, DOCUMENT))
    ]
    rows = {
        name: np.zeros((len(queries), QUERY + DOCUMENT + 3), np.int32)
        for name in ("tokens", "segments", "mask")
    }
    for place, (query, document) in enumerate(zip(*sides, strict=True)):
        row = [first, *query, separator, *document, separator]
        rows["tokens"][place, : len(row)] = row
        rows["segments"][place, len(query) + 2 : len(row)] = 1
        rows["mask"][place, : len(row)] = 1
    return rows


def triple_batches(triples: Iterable[Triple], tokenizer: "Tokenizer", pairs: int) -> Iterator[dict[str, Any]]:
    """Batches of the coupled step, in the order of the triples; an incomplete last one is left out.

    Args:
        triples: texts, as `experiments.collections.ms_marco_triples` yields them with ``texts=True``.
        tokenizer: of the checkpoint.
        pairs: in a batch.

    Yields:
        ``{"pos": rows, "neg": rows}``.
    """
    source = iter(triples)
    while len(some := list(islice(source, pairs))) == pairs:
        queries = [each.query for each in some]
        yield {
            "pos": encoded(tokenizer, queries, [each.positive for each in some]),
            "neg": encoded(tokenizer, queries, [each.negative for each in some]),
        }
