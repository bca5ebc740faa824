"""The plain alternative to a repair: adapters of all heads are fine-tuned on balanced questions.

The baseline beside Yu et al., arXiv:2408.00137: supervised fine-tuning with low-rank adapters (Hu et al.,
arXiv:2106.09685) on as many questions that Yes answers as No, about facts that the model was never told.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, Int

from experiments.neg_bias.evaluation import Questions
from experiments.neg_bias.heads import BATCH, RANK
from experiments.neg_bias.training import target_loss
from experiments.neg_bias.world import NO, UNTOLD, YES, World, placed, yes_no
from jaxneg.language import apply_head_lora, head_mask_lora, transformer_kernels
from jaxneg.nn.transformer import TransformerConfig, transformer
from jaxneg.train import init_state, make_step


def fine_tune(
    key: jax.Array,
    params: Any,
    world: World,
    questions: Questions,
    *,
    steps: int,
    learning_rate: float,
    model: TransformerConfig,
) -> Any:
    """The model after fine-tuning on both questions about every untold fact.

    Args:
        key: random key.
        params: of the model.
        world: the facts.
        questions: what is asked; twin 0 names the truth, twin 1 a wrong value.
        steps: of AdamW.
        learning_rate: of AdamW.
        model: its shapes.

    Returns:
        Its parameters.

    Raises:
        ValueError: a world without an untold fact.
    """
    fact = np.repeat(np.flatnonzero(world.group == UNTOLD), 2)
    if not fact.size:
        raise ValueError("world: expected at least one untold fact, got none")
    twin = np.tile([0, 1], fact.size // 2)
    asked = yes_no(fact, questions.candidate[fact, twin], np.where(twin == 0, YES, NO))
    rows = placed(asked, questions.offset[fact, twin])
    return _fine_tuned(key, params, rows.words, rows.targets, learning_rate, steps=steps, model=model)


@partial(jax.jit, static_argnames=("steps", "model"))
def _fine_tuned(
    key: jax.Array,
    params: Any,
    words: Int[Array, "rows words"],
    targets: Int[Array, "rows words"],
    learning_rate: float,
    *,
    steps: int,
    model: TransformerConfig,
) -> Any:
    apply, tx = transformer(model).apply, optax.adamw(learning_rate, weight_decay=0.0)
    of_adapters, of_rows = jax.random.split(key)
    heads = [(layer, head) for layer in range(model.layers) for head in range(model.heads)]
    adapters = head_mask_lora(of_adapters, params, heads, transformer_kernels(model.heads), rank=RANK)

    def loss_fn(adapters: Any, row: Array, key: Array) -> tuple[Array, dict[str, Array]]:
        del key
        logits = apply(apply_head_lora(params, adapters, gamma=RANK), words[row])
        return target_loss(logits, targets[row]), {}

    step = make_step(loss_fn, tx)

    def one(state: Any, key: Array) -> tuple[Any, None]:
        return step(state, jax.random.randint(key, (BATCH,), 0, len(words)))[0], None

    state, _ = jax.lax.scan(one, init_state(adapters, tx, key), jax.random.split(of_rows, steps))
    return apply_head_lora(params, state.params, gamma=RANK)
