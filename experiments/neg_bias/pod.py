"""The repair of ten heads of a model of Llama 3.2 1B's shapes, for 256 chips that are not there.

The settings of arXiv:2408.00137 as far as they are known: only the negative heads are fine-tuned, with few
parameters, while the model must stay what it is on prompts without yes and no.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, PRNGKeyArray

from jaxneg.language import (
    apply_head_lora,
    attention_score_pairs,
    head_mask_lora,
    nas_alignment_loss,
    negative_attention_score,
    transformer_kernels,
)
from jaxneg.nn.transformer import LLAMA_3_2_1B, TRANSFORMER_RULES, TransformerConfig, transformer
from jaxneg.train import Target

MESH = {"data": 64, "model": 4}
HEADS = tuple((layer, 2 * layer) for layer in range(5, 15))
"""Ten heads of the middle layers; which ones they are does not change the step."""
RANK, LEARNING_RATE, RETAIN_WEIGHT = 16, 1e-4, 1.0
RULES = ((r"(adapters|opt_state)/", P()), *TRANSFORMER_RULES)


class RepairState(NamedTuple):
    """What a repair step passes on; the model itself is frozen."""

    step: Int[Array, ""]
    params: Any
    adapters: Any
    opt_state: Any
    key: PRNGKeyArray


def repair_target(
    batch: int,
    tokens: int,
    model: TransformerConfig = LLAMA_3_2_1B,
    heads: Sequence[tuple[int, int]] = HEADS,
    mesh: dict[str, int] = MESH,
) -> Target:
    """The step and its abstract arguments.

    The batch holds ``questions [batch, tokens]`` with their ``mask`` and ``spans [batch, 4]`` (positions of
    "Yes" and "No", first row, end), and ``retained [batch, tokens]`` with ``retained_mask``.

    Args:
        batch: yes-no questions, and as many other prompts.
        tokens: in a row.
        model: shapes of the model.
        heads: ``(layer, head)`` of each head that is repaired.
        mesh: axes and their sizes.

    Returns:
        What `jaxneg.train.compile_for` compiles.
    """
    init, apply = transformer(model)
    tx = optax.adamw(LEARNING_RATE, weight_decay=0.0)
    kernels = transformer_kernels(model.heads, model.kv_heads, stacked=model.scan)
    layers = sorted({layer for layer, _ in heads})
    among = [(layers.index(layer), head) for layer, head in heads]

    def scores(params: Any, batch: dict[str, Array]) -> Array:
        _, probe = apply(params, batch["questions"], mask=batch["mask"], probe=layers)

        def of_prompt(query: Array, key: Array, mask: Array, spans: Array) -> Array:
            at_once = len(layers) * model.heads
            pairs = attention_score_pairs(query, key, *spans[:2], mask=mask, heads_at_once=at_once)
            return negative_attention_score(pairs, *spans)

        return jax.vmap(of_prompt, in_axes=(1, 1, 0, 0))(
            probe.query, probe.key, batch["mask"], batch["spans"]
        )

    def loss_fn(adapters: Any, params: Any, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        repaired = apply_head_lora(params, adapters, gamma=RANK)
        lo, hi = batch["spans"][:, 2], batch["spans"][:, 3]
        aligned = jnp.mean(nas_alignment_loss(scores(repaired, batch), among, lo, hi))
        kept, reference = (
            jax.nn.log_softmax(
                apply(each, batch["retained"], mask=batch["retained_mask"]).astype(jnp.float32)
            )
            for each in (repaired, jax.lax.stop_gradient(params))
        )
        divergence = jnp.sum(jnp.exp(reference) * (reference - kept), -1)
        drift = jnp.sum(jnp.where(batch["retained_mask"], divergence, 0)) / jnp.sum(batch["retained_mask"])
        return aligned + RETAIN_WEIGHT * drift, {"alignment": aligned, "drift": drift}

    def step(state: RepairState, batch: dict[str, Array]) -> tuple[RepairState, dict[str, Array]]:
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, parts), updates = gradient(state.adapters, state.params, batch)
        updates, opt_state = tx.update(updates, state.opt_state, state.adapters)
        adapters = optax.apply_updates(state.adapters, updates)
        state = state._replace(step=state.step + 1, adapters=adapters, opt_state=opt_state)
        return state, {"loss": loss, **parts}

    def start(key: PRNGKeyArray) -> RepairState:
        params = jax.tree.map(lambda x: x.astype(model.dtype or x.dtype), init(key))
        adapters = head_mask_lora(key, params, heads, kernels, rank=RANK)
        return RepairState(jnp.zeros((), jnp.int32), params, adapters, tx.init(adapters), key)

    rows, kept = (jax.ShapeDtypeStruct((batch, tokens), kind) for kind in (jnp.int32, jnp.bool_))
    return Target(
        step=step,
        state=jax.eval_shape(start, jax.random.key(0)),  # pyright: ignore[reportArgumentType]
        batch={
            "questions": rows,
            "mask": kept,
            "spans": jax.ShapeDtypeStruct((batch, 4), jnp.int32),
            "retained": rows,
            "retained_mask": kept,
        },
        mesh=mesh,
        rules=RULES,
    )
