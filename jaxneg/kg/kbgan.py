"""KBGAN: a second model proposes the negatives, and learns by REINFORCE which of them are hard.

Paper: Cai and Wang, "KBGAN: Adversarial learning for knowledge graph embeddings", arXiv:1711.04071,
Algorithm 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxneg.kg.arguments import SIDES, at_least, one_of
from jaxneg.kg.losses import margin_loss
from jaxneg.kg.scores import kge_score
from jaxneg.kg.uniform import sample_uniform

BASELINE_DECAY = 0.9
"""Of the running mean of rewards."""


class KBGANState(NamedTuple):
    """What a step passes on.

    Attributes:
        generator: tables of the model that proposes.
        discriminator: tables of the model that is wanted.
        generator_state: optimizer state.
        discriminator_state: likewise.
        baseline: running mean of the reward.
    """

    generator: Any
    discriminator: Any
    generator_state: Any
    discriminator_state: Any
    baseline: Float[Array, ""]


def kbgan_init(
    generator: Any,
    discriminator: Any,
    generator_tx: optax.GradientTransformation,
    discriminator_tx: optax.GradientTransformation,
) -> KBGANState:
    """The state before the first step.

    Args:
        generator: tables of the generator, as of `kge_init`.
        discriminator: tables of the discriminator.
        generator_tx: its optimizer.
        discriminator_tx: likewise.

    Returns:
        The state.
    """
    return KBGANState(
        generator,
        discriminator,
        generator_tx.init(generator),
        discriminator_tx.init(discriminator),
        jnp.zeros(()),
    )


def kbgan_step(
    key: PRNGKeyArray,
    state: KBGANState,
    triples: Int[Array, "b 3"],
    side: str,
    generator_tx: optax.GradientTransformation,
    discriminator_tx: optax.GradientTransformation,
    *,
    num_entities: int,
    generator_model: str = "DistMult",
    discriminator_model: str = "TransE",
    candidates: int = 20,
    margin: float = 1.0,
) -> tuple[KBGANState, dict[str, Array]]:
    """One update of both models.

    The generator draws one of N_s uniform candidates with p = softmax(its scores); the discriminator takes a
    step of the margin loss with it; the generator takes a step of -(reward - baseline) log p, where the
    reward is the discriminator's score of the negative without its margin, -distance.

    Args:
        key: random key.
        state: of `kbgan_init`.
        triples: positives.
        side: which entity is replaced, "head" or "tail".
        generator_tx: optimizer of the generator.
        discriminator_tx: likewise.
        num_entities: number of entities.
        generator_model: a model whose scores are logits, DistMult or ComplEx.
        discriminator_model: the model that is wanted.
        candidates: N_s.
        margin: of the discriminator's loss.

    Returns:
        The next state, and ``loss``, ``reward`` (means over the batch) and ``negatives [b]``.

    Raises:
        ValueError: an unknown side or model, candidates below 1.

    Source:
        arXiv:1711.04071, Algorithm 1.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from jaxneg.kg import kge_init
        >>> tables = [kge_init(jax.random.key(0), m, 9, 2, 4, gamma=6.0) for m in ("DistMult", "TransE")]
        >>> tx, triples = optax.adam(1e-3), jnp.array([[0, 0, 1]])
        >>> _, metrics = kbgan_step(
        ...     jax.random.key(1), kbgan_init(*tables, tx, tx), triples, "tail", tx, tx, num_entities=9
        ... )
        >>> metrics["negatives"].shape
        (1,)
    """
    one_of("side", side, SIDES)
    at_least("candidates", candidates, 1)
    of_candidates, of_choice = jax.random.split(key)
    h, r, t = triples.T
    pool = sample_uniform(of_candidates, t, candidates, num_entities)

    def scored(model: str, params: Any, entities: Array) -> Array:
        ids = (h, r, entities) if side == "tail" else (entities, r, t)
        return kge_score(model, params, *ids, side=side)

    choice = jax.random.categorical(of_choice, scored(generator_model, state.generator, pool))
    negatives = jnp.take_along_axis(pool, choice[:, None], axis=1)

    def discriminator_loss(params: Any) -> tuple[Array, Array]:
        positive = kge_score(discriminator_model, params, h, r, t)
        negative = scored(discriminator_model, params, negatives)
        reward = negative[:, 0] - params["gamma"]
        return jnp.mean(margin_loss(positive, negative, margin)), reward

    (loss, reward), gradient = jax.value_and_grad(discriminator_loss, has_aux=True)(state.discriminator)
    reward = jax.lax.stop_gradient(reward)

    def generator_loss(params: Any) -> Array:
        log_p = jax.nn.log_softmax(scored(generator_model, params, pool))
        chosen = jnp.take_along_axis(log_p, choice[:, None], axis=1)[:, 0]
        return -jnp.mean((reward - state.baseline) * chosen)

    generator, generator_state = _updated(
        generator_tx, jax.grad(generator_loss)(state.generator), state.generator_state, state.generator
    )
    discriminator, discriminator_state = _updated(
        discriminator_tx, gradient, state.discriminator_state, state.discriminator
    )
    baseline = BASELINE_DECAY * state.baseline + (1 - BASELINE_DECAY) * jnp.mean(reward)
    following = KBGANState(generator, discriminator, generator_state, discriminator_state, baseline)
    return following, {"loss": loss, "reward": jnp.mean(reward), "negatives": negatives[:, 0]}


def _updated(tx: optax.GradientTransformation, gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state
