"""The NPO+RT step of a Llama on TOFU for 256 chips that are not there.

The settings of Zhang et al., arXiv:2404.05868, Section 5: Llama-2-7B, 32 forget rows and 32 retain rows,
AdamW at 1e-5. The parameters and AdamW's moments are in float32, split over all chips; the computation is in
bfloat16. The reference enters as one number for each forget row: no second model is in memory.
"""

import jax
import jax.numpy as jnp

from experiments.tofu.llama import MODELS
from experiments.tofu.model_step import RULES, model_step, optimizer, trained
from jaxneg.nn.transformer import TransformerConfig, transformer
from jaxneg.train import Target, init_state
from jaxneg.unlearning import UnlearnConfig

MESH = {"data": 32, "model": 8}
EPOCHS, FORGET_ROWS = 10, 400


def unlearning_target(
    model: str | TransformerConfig, batch: int, tokens: int, rank: int, learning_rate: float
) -> Target:
    """The step and its abstract arguments.

    Args:
        model: one of `MODELS`, or its sizes.
        batch: forget rows, and as many retain rows; a multiple of 32.
        tokens: in a row.
        rank: of the adapters that are trained in place of the model; 0 trains the model.
        learning_rate: of AdamW.

    Returns:
        What `jaxneg.train.compile_for` compiles.
    """
    init, apply = transformer(MODELS[model] if isinstance(model, str) else model)
    in_epoch = -(-FORGET_ROWS // batch)
    tx = optimizer(learning_rate, EPOCHS * in_epoch, in_epoch, rank)
    rows = jax.ShapeDtypeStruct((batch, tokens), jnp.int32)
    part = {"tokens": rows, "labels": rows}
    reference = {
        "ref_seq_nll": jax.ShapeDtypeStruct((batch,), jnp.float32),
        "ref_rows": jax.ShapeDtypeStruct((batch,), jnp.uint32),
    }

    def begin(key: jax.Array) -> object:
        return init_state(trained(key, init(key), rank), tx, key)

    return Target(
        step=model_step(apply, UnlearnConfig("npo+rt", beta=0.1), tx, rank),
        state=jax.eval_shape(begin, jax.random.key(0)),
        batch={"forget": {**part, **reference}, "retain": part},
        mesh=MESH,
        rules=RULES,
    )
