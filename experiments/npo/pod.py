"""The paper's method at the scale of a language model: the NPO+RT step of Llama-3.2-1B's shapes on 256 chips.

Zhang et al., arXiv:2404.05868, Section 5, for the optimiser (AdamW, weight decay 0.01, one epoch of warm-up,
linear decay, beta 0.1). The reference enters as one number for each forget row, so that no second model is in
memory.
"""

import jax
import jax.numpy as jnp
import optax

from jaxneg.nn.transformer import LLAMA_3_2_1B, TRANSFORMER_RULES, TransformerConfig, transformer
from jaxneg.train import Target, init_state, make_step
from jaxneg.unlearning import UnlearnConfig, make_unlearn_loss

MESH = {"data": 64, "model": 4}
STEPS, WARM_UP_STEPS = 120, 12


def npo_step_target(batch: int, tokens: int, model: TransformerConfig = LLAMA_3_2_1B) -> Target:
    """The step and its abstract arguments.

    Args:
        batch: forget rows, and as many retain rows.
        tokens: in a row.
        model: shapes of the model.

    Returns:
        What `jaxneg.train.compile_for` compiles.
    """
    init, apply = transformer(model)
    schedule = optax.warmup_constant_schedule(0.0, 1e-5, WARM_UP_STEPS)
    decay = optax.linear_schedule(1.0, 0.0, STEPS - WARM_UP_STEPS, WARM_UP_STEPS)
    tx = optax.adamw(lambda step: schedule(step) * decay(step), weight_decay=0.01)
    rows = jax.ShapeDtypeStruct((batch, tokens), jnp.int32)
    part = {"tokens": rows, "labels": rows}
    reference = {  # what `jaxneg.unlearning.precompute_reference` adds
        "ref_seq_nll": jax.ShapeDtypeStruct((batch,), jnp.float32),
        "ref_rows": jax.ShapeDtypeStruct((batch,), jnp.uint32),
    }
    return Target(
        step=make_step(make_unlearn_loss(apply, UnlearnConfig("npo+rt", beta=0.1)), tx),
        state=jax.eval_shape(lambda key: init_state(init(key), tx, key), jax.random.key(0)),
        batch={"forget": {**part, **reference}, "retain": part},
        mesh=MESH,
        rules=TRANSFORMER_RULES,
    )
