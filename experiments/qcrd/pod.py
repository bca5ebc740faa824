"""QCRD at the paper's size: a step of T5 1.1 with its judge, for a pod.

The paper's settings: inputs of up to 1024 tokens and targets of up to 256, five rationales of the teacher and
one negative for each question, AdamW at 5e-5, a judge whose encoder is as large as T5-base's.
"""

from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxneg.language import QCRDConfig, init_qcrd, make_qcrd_step
from jaxneg.nn import (
    ENCODER_DECODER_RULES,
    T5_V1_1_BASE,
    T5_V1_1_SMALL,
    EncoderDecoderConfig,
    encoder_decoder,
    rationale_judge,
)
from jaxneg.train import Target

MODELS = {"small": (T5_V1_1_SMALL, 2), "base": (T5_V1_1_BASE, 4)}
"""Sizes of the student, and chips over which a layer is split."""
LEARNING_RATE = 5e-5
INPUT, OUTPUT, POSITIVES, NEGATIVES = 1024, 256, 5, 1
SEPARATOR = 32_000
"""The first of T5's sentinels, which no text holds."""


def t5_target(
    size: Literal["small", "base"] | EncoderDecoderConfig,
    batch: int,
    lengths: tuple[int, int] = (INPUT, OUTPUT),
    model_axis: int | None = None,
) -> Target:
    """The step, with student, judge and both optimizers' states split over all chips.

    Args:
        size: of the student and, if it is given as sizes, of the judge; else the judge is T5-base's encoder.
        batch: questions of a global batch.
        lengths: tokens of inputs and of targets.
        model_axis: chips over which a layer is split; by default 4, 2 for the small one.

    Returns:
        What `jaxneg.train.compile_for` compiles.
    """
    config, axis = MODELS[size] if isinstance(size, str) else (size, 1)
    judge_config = T5_V1_1_BASE if isinstance(size, str) else config
    config, judge_config = (
        replace(each, dtype=jnp.bfloat16, remat=True, scan=True) for each in (config, judge_config)
    )
    model = encoder_decoder(config)
    judge = rationale_judge(judge_config, min(SEPARATOR, judge_config.vocab - 1))
    tx, judge_tx = optax.adamw(LEARNING_RATE, weight_decay=0.0), optax.adamw(LEARNING_RATE, weight_decay=0.0)
    step = make_qcrd_step(model.encode, model.decode, tx, QCRDConfig(), judge=judge.apply, judge_tx=judge_tx)

    def start(key: jax.Array) -> Any:
        return init_qcrd(key, model.init(key), tx, judge.init(key), judge_tx)

    return Target(
        step=step,
        state=jax.eval_shape(start, jax.random.key(0)),  # pyright: ignore[reportArgumentType]
        batch=_batch(batch, *lengths),
        mesh={"data": -1, "model": axis if model_axis is None else model_axis},
        rules=ENCODER_DECODER_RULES,
    )


def _batch(batch: int, source: int, target: int) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = {
        **dict.fromkeys(("question", "predict", "explain"), (batch, source)),
        "label": (batch, target),
        "pos": (batch, POSITIVES, target),
        "neg": (batch, NEGATIVES, target),
    }
    found = {}
    for name, shape in shapes.items():
        found[name] = jax.ShapeDtypeStruct(shape, jnp.int32)
        found[f"{name}_mask"] = jax.ShapeDtypeStruct(shape, jnp.bool_)
        if len(shape) == 3:
            found[f"{name}_valid"] = jax.ShapeDtypeStruct(shape[:2], jnp.bool_)
    return found
