"""Which heads look at "no", what they do to the answers, and their repair (arXiv:2408.00137)."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.neg_bias.evaluation import Questions, yes_no_logits
from experiments.neg_bias.training import SHARES
from experiments.neg_bias.world import IGNORED, PAD, Sequences
from jaxneg.language import (
    apply_head_lora,
    attention_score_pairs,
    head_mask_lora,
    nas_alignment_loss,
    negative_attention_score,
    transformer_kernels,
)
from jaxneg.nn.transformer import TransformerConfig, transformer
from jaxneg.train import init_state, make_step

PROBES = 1000
"""Yes-no questions about known facts that heads are ranked by; their answers are not used."""
RANK, BATCH = 16, 8
RETAINED = ("STMT", "SA", "MC")
"""Formats without yes and no, on which the repaired model must stay what it was."""
RETAIN_WEIGHT = 1.0
CHUNK = 20
"""Steps between two looks at the score."""
_QUESTION = 7
"""Words of a yes-no question; "yes", "no" and the first word after them are its second to fourth."""


class Repair(NamedTuple):
    """What became of the heads.

    Attributes:
        params: of the repaired model.
        before: mean positive part of the score of the treated heads, on the probes.
        after: the same after the repair.
        steps: optimisation steps taken.
    """

    params: Any
    before: float
    after: float
    steps: int


def probes(pool: Sequences) -> Int[np.ndarray, "probes words"]:
    """The first yes-no questions of the training pool, all about known facts."""
    return pool.words[list(SHARES).index("YN"), :PROBES]


@partial(jax.jit, static_argnames="model")
def head_scores(
    params: Any, words: Int[Array, "prompts words"], *, model: TransformerConfig
) -> Float[Array, "prompts layers heads"]:
    """The negative attention score of every head on yes-no questions."""
    return _scores(transformer(model).apply(params, words, probe=range(model.layers))[1], words)


def ablation_effects(
    params: Any, questions: Questions, facts: Int[np.ndarray, " n"], model: TransformerConfig
) -> Float[np.ndarray, "layers heads"]:
    """By how much each head's ablation changes the mean of the logit of no less that of yes.

    Args:
        params: of the model.
        questions: what is asked.
        facts: over which the mean is taken, both twins.
        model: its shapes.

    Returns:
        A change for each head; negative where the head speaks for no.
    """

    def lean(ablated: np.ndarray | None) -> float:
        logits = yes_no_logits(params, questions, model, ablated)[facts]
        return float(np.mean(logits[..., 1] - logits[..., 0]))

    whole = lean(None)
    shape = (model.layers, model.heads)
    alone = np.eye(model.layers * model.heads, dtype=bool).reshape(-1, *shape)
    return np.array([lean(each) - whole for each in alone]).reshape(shape)


def chosen(heads: list[tuple[int, int]], model: TransformerConfig) -> Bool[np.ndarray, "layers heads"]:
    """The heads as booleans."""
    found = np.zeros((model.layers, model.heads), bool)
    found[tuple(np.array(heads).T)] = True
    return found


def repair(
    key: jax.Array,
    params: Any,
    pool: Sequences,
    heads: list[tuple[int, int]],
    *,
    steps: int,
    learning_rate: float,
    model: TransformerConfig,
) -> Repair:
    """Fine-tunes heads one after the other, each until its mean score is no longer positive.

    Args:
        key: random key.
        params: of the model.
        pool: its training sequences; yes-no questions behind the probes, and formats without yes and no.
        heads: the heads in the order of treatment.
        steps: at most, for each head.
        learning_rate: of AdamW.
        model: its shapes.

    Returns:
        The repaired model and what it took.
    """
    of_adapters, of_batches = jax.random.split(key)
    all_heads = [(layer, head) for layer in range(model.layers) for head in range(model.heads)]
    adapters = head_mask_lora(of_adapters, params, all_heads, transformer_kernels(model.heads), rank=RANK)
    tx = optax.adamw(learning_rate, weight_decay=0.0)
    asked = probes(pool)
    treated = chosen(heads, model)
    before = head_scores(params, asked, model=model)
    scores, taken = before, 0
    for head in heads:
        state = init_state(adapters, tx, jax.random.fold_in(of_batches, taken))
        alone = jnp.asarray(chosen([head], model))
        for _ in range(0, steps, CHUNK):
            if float(scores.mean(0)[head]) <= 0:
                break
            state, repaired = _chunk(state, params, pool, alone, learning_rate, model=model)
            scores = head_scores(repaired, asked, model=model)
            taken += CHUNK
        adapters = state.params
    positive = [float(jax.nn.relu(each[:, treated]).mean()) for each in (before, scores)]
    return Repair(apply_head_lora(params, adapters, gamma=RANK), positive[0], positive[1], taken)


@partial(jax.jit, static_argnames="model")
def _chunk(
    state: Any, params: Any, pool: Sequences, alone: Array, learning_rate: float, *, model: TransformerConfig
) -> tuple[Any, Any]:
    """`CHUNK` steps on one head, and the model with its adapters after them."""
    apply = transformer(model).apply
    names = list(SHARES)
    retained = np.array([names.index(name) for name in RETAINED])

    def adapted(adapters: Any) -> Any:
        of_head = {}
        for path, of_layer in adapters.items():
            layer = int(path.split("/")[1])
            of_head[path] = {
                head: jax.tree.map(
                    lambda x, trained=alone[layer, int(head)]: jnp.where(
                        trained, x, jax.lax.stop_gradient(x)
                    ),
                    factors,
                )
                for head, factors in of_layer.items()
            }
        return apply_head_lora(params, of_head, gamma=RANK)

    def loss_fn(adapters: Any, batch: Any, key: Array) -> tuple[Array, dict[str, Array]]:
        del key
        words, targets = batch["words"], batch["targets"][BATCH:]
        logits, probe = apply(adapted(adapters), words, probe=range(model.layers))
        scores = _scores(probe, words)[:BATCH]
        aligned = nas_alignment_loss(scores, alone, 0, _QUESTION - 3).mean()
        kept = jax.nn.log_softmax(logits[BATCH:])
        reference = jax.nn.log_softmax(apply(params, words[BATCH:]))
        divergence = jnp.sum(jnp.exp(reference) * (reference - kept), -1)
        wanted = targets != IGNORED
        drift = jnp.where(wanted, divergence, 0).sum() / wanted.sum()
        return aligned + RETAIN_WEIGHT * drift, {}

    step = make_step(loss_fn, optax.adamw(learning_rate, weight_decay=0.0))

    def one(state: Any, key: Array) -> tuple[Any, None]:
        of_questions, of_rows = jax.random.split(key)
        question = jax.random.randint(of_questions, (BATCH,), PROBES, pool.words.shape[1])
        row = jax.random.randint(of_rows, (BATCH,), 0, pool.words.shape[1])
        kind = np.append(np.full(BATCH, names.index("YN")), retained[np.arange(BATCH) % len(retained)])
        chosen = jnp.append(question, row)
        batch = {
            "words": jnp.asarray(pool.words)[kind, chosen],
            "targets": jnp.asarray(pool.targets)[kind, chosen],
        }
        return step(state, batch)[0], None

    keys = jax.random.split(jax.random.fold_in(state.key, state.step), CHUNK)
    state, _ = jax.lax.scan(one, state, keys)
    return state, adapted(state.params)


def _scores(probe: Any, words: Array) -> Array:
    """Scores ``[prompts, layers, heads]``; a question stands behind its pads."""
    offset = jnp.sum(jnp.cumsum(words != PAD, axis=1) == 0, axis=1)

    def of_prompt(query: Array, key: Array, offset: Array) -> Array:
        yes, no, lo, hi = offset + 1, offset + 2, offset + 3, offset + _QUESTION
        pairs = attention_score_pairs(query, key, yes, no)
        return negative_attention_score(pairs, yes, no, lo, hi)

    return jax.vmap(of_prompt, in_axes=(1, 1, 0))(probe.query, probe.key, offset)
