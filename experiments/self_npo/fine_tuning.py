"""How negative networks are made from a base network, and its rival, preference optimisation.

Self-NPO is the step of `jaxneg.diffusion`; full simulation, the baseline whose cost it avoids, samples to the
end and learns the samples; Diffusion-NPO and Diffusion-DPO learn pairs of the base network's samples that
somebody ranked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.self_npo.network import (
    ALPHAS_CUMPROD,
    SAMPLED_TIMES,
    SCHEDULE,
    SOLVER_STEPS,
    TIMESTEPS,
    Params,
    Task,
    denoiser,
)
from jaxneg.diffusion import (
    SelfNPOState,
    add_noise,
    ddim_sample,
    diffusion_npo_loss,
    drop_condition,
    guide,
    implicit_accuracy,
    init_self_npo,
    predict_x0,
    preference_errors,
    pseudo_huber,
    self_npo_step,
)
from jaxneg.train import TrainState, init_state, make_step

ROLLOUT_STEPS = 5
TEACHER_EMA = 0.999
CLIP = 1.0
PREFERENCE_LEARNING_RATE, PREFERENCE_LABEL_DROPOUT, PREFERENCE_BATCH = 5e-4, 0.2, 256


@dataclass(frozen=True)
class SelfNPO:
    """Fine-tuning on a network's own samples."""

    guidance: float
    """The teacher's w; below 0 it is pushed away from the condition."""
    start: Literal["data", "noise"] = "data"
    """Where the teacher's short way begins."""
    label_dropout: float = 0.0
    learning_rate: float = 5e-5
    simulate: bool = False
    """Whether the teacher samples to the end instead: the baseline."""

    @property
    def program(self) -> tuple[str, bool]:
        """What networks that one program can train have in common."""
        return self.start, self.simulate

    @property
    def name(self) -> str:
        """As tables have it."""
        if self.simulate:
            return f"full simulation, w = {self.guidance:g}"
        dropout = f", ∅ {self.label_dropout:g}" if self.label_dropout else ""
        strong = ", strong" if self.learning_rate > SelfNPO.learning_rate else ""
        return f"Self-NPO, w = {self.guidance:g}, {self.start}{dropout}{strong}"


@dataclass(frozen=True)
class Preference:
    """Fine-tuning on ranked pairs."""

    reverse: bool
    """Whether to learn what is dispreferred (Diffusion-NPO), or what is preferred (Diffusion-DPO)."""
    beta: float = 10.0
    lengthen: int = 1
    """How many times the steps of the others."""

    @property
    def program(self) -> int:
        """What networks that one program can train have in common."""
        return self.lengthen

    @property
    def name(self) -> str:
        """As tables have it."""
        longer = f", {self.lengthen} times as long" if self.lengthen > 1 else ""
        return f"{'Diffusion-NPO' if self.reverse else 'DPO'}, β = {self.beta:g}{longer}"


class Pairs(NamedTuple):
    """Ranked samples of the base network."""

    better: Float[Array, "pairs features"]
    worse: Float[Array, "pairs features"]
    label: Int[Array, " pairs"]


def optimizer(learning_rate: float | Array) -> optax.GradientTransformation:
    """AdamW without decay behind the clipping of the gradient, on all parameters as one vector.

    Args:
        learning_rate: step size.

    Returns:
        The transformation.
    """
    adamw = optax.adamw(learning_rate, weight_decay=0.0)
    return optax.flatten(optax.chain(optax.clip_by_global_norm(CLIP), adamw))


def fine_tuning_step(
    task: Task, how: SelfNPO, tx: optax.GradientTransformation
) -> Callable[[SelfNPOState, Any], tuple[SelfNPOState, dict]]:
    """One step of Self-NPO, or of its rival that simulates the whole way.

    Args:
        task: what is generated.
        how: settings.
        tx: from `optimizer`.

    Returns:
        ``(state, batch) -> (state, metrics)`` with a batch ``{"x", "cond"}``.
    """
    if how.simulate:
        return _simulation_step(task, how, tx)
    return self_npo_step(
        tx,
        task.model.apply,
        ALPHAS_CUMPROD,
        ema=TEACHER_EMA,
        null_cond=task.classes,
        steps=ROLLOUT_STEPS,
        guidance=how.guidance,
        grid_steps=SOLVER_STEPS,
        start=how.start,
        p_null=how.label_dropout,
    )


def fine_tune(
    task: Task, how: SelfNPO, steps: int, base: Params, key: PRNGKeyArray
) -> tuple[Params, Float[Array, " steps"]]:
    """Fine-tunes a network on its own samples.

    Args:
        task: what is generated.
        how: settings, whose numbers may be traced.
        steps: of AdamW.
        base: parameters to start from.
        key: random key.

    Returns:
        The student's parameters, and the loss of each step.
    """
    tx = optimizer(how.learning_rate)
    step = fine_tuning_step(task, how, tx)

    def one(state: SelfNPOState, key: PRNGKeyArray) -> tuple[SelfNPOState, Array]:
        x, label = task.draw(key)
        state, metrics = step(state, {"x": x, "cond": label})
        return state, metrics["loss"]

    of_steps, of_draws = jax.random.split(key)
    state = init_self_npo(base, tx, of_steps)
    state, loss = jax.lax.scan(one, state, jax.random.split(of_draws, steps))
    return state.params, loss


def ranked_pairs(
    task: Task,
    reward: Callable[[Array, Array], Array],
    pairs: int,
    base: Params,
    key: PRNGKeyArray,
) -> Pairs:
    """Pairs of samples without guidance, ranked by a reward.

    Args:
        task: what is generated.
        reward: ``(samples, labels) -> [batch]``.
        pairs: how many.
        base: parameters of the network that samples.
        key: random key.

    Returns:
        The pairs.
    """
    label = jnp.arange(pairs) % task.classes
    starts = jax.random.normal(key, (2, pairs, task.features))
    first, second = jax.lax.map(lambda start: _without_guidance(task, base, start, label), starts)
    ahead = (reward(first, label) > reward(second, label))[:, None]
    return Pairs(jnp.where(ahead, first, second), jnp.where(ahead, second, first), label)


def preference_step(
    task: Task, beta: Array | float, base: Params, tx: optax.GradientTransformation
) -> Callable[[TrainState, Any], tuple[TrainState, dict]]:
    """One step of Diffusion-NPO.

    Args:
        task: what is generated.
        beta: inverse temperature.
        base: the reference.
        tx: from `optimizer`.

    Returns:
        ``(state, batch) -> (state, metrics)`` with a batch ``{"x_w", "x_l", "cond"}``.
    """

    def loss_fn(params: Params, batch: dict[str, Array], key: PRNGKeyArray) -> tuple[Array, dict]:
        errors = preference_errors(
            params,
            base,
            batch,
            key,
            task.model.apply,
            ALPHAS_CUMPROD,
            null_cond=task.classes,
            p_null=PREFERENCE_LABEL_DROPOUT,
        )
        return diffusion_npo_loss(*errors, beta).mean(), {"accuracy": implicit_accuracy(*errors)}

    return make_step(loss_fn, tx)


def prefer(
    task: Task, steps: int, beta: Array, base: Params, pairs: Pairs, key: PRNGKeyArray
) -> tuple[Params, Float[Array, " steps"]]:
    """Diffusion-NPO; and Diffusion-DPO, where what is better and what is worse change places.

    Args:
        task: what is generated.
        steps: of AdamW.
        beta: inverse temperature.
        base: parameters to start from, and the reference.
        pairs: ranked samples.
        key: random key.

    Returns:
        Parameters, and on each step's batch the share of pairs that they rank as the pairs are.
    """
    tx = optimizer(PREFERENCE_LEARNING_RATE)
    step = preference_step(task, beta, base, tx)

    def one(state: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
        rows = jax.random.randint(key, (PREFERENCE_BATCH,), 0, len(pairs.label))
        batch = {"x_w": pairs.better[rows], "x_l": pairs.worse[rows], "cond": pairs.label[rows]}
        state, metrics = step(state, batch)
        return state, metrics["accuracy"]

    of_steps, of_draws = jax.random.split(key)
    state = init_state(base, tx, of_steps)
    state, accuracy = jax.lax.scan(one, state, jax.random.split(of_draws, steps))
    return state.params, accuracy


def _without_guidance(task: Task, params: Params, start: Array, label: Array) -> Array:
    return ddim_sample(denoiser(task, params), start, SAMPLED_TIMES, ALPHAS_CUMPROD, cond=label)


def _simulation_step(
    task: Task, how: SelfNPO, tx: optax.GradientTransformation
) -> Callable[[SelfNPOState, Any], tuple[SelfNPOState, dict]]:
    """The same optimisation of the same loss, with targets that were sampled to the end."""
    alpha, sigma = (jnp.asarray(x, jnp.float32) for x in (SCHEDULE.alpha, SCHEDULE.sigma))

    def loss_fn(params: Params, x0: Array, label: Array, key: PRNGKeyArray) -> Array:
        of_time, of_noise, of_label = jax.random.split(key, 3)
        s = jax.random.randint(of_time, label.shape, 1, TIMESTEPS)
        noisy = add_noise(x0, jax.random.normal(of_noise, x0.shape), alpha[s], sigma[s])
        cond = drop_condition(of_label, label, task.classes, how.label_dropout)
        found = predict_x0(task.model.apply(params, noisy, s, cond), noisy, alpha[s], sigma[s])
        return pseudo_huber(found, x0).mean()

    def step(state: SelfNPOState, batch: dict[str, Array]) -> tuple[SelfNPOState, dict[str, Array]]:
        of_start, of_loss = jax.random.split(jax.random.fold_in(state.key, state.step))
        label = batch["cond"]
        start = jax.random.normal(of_start, batch["x"].shape)
        # w of the teacher counts from the condition: eps_c + w (eps_c - eps_null).
        teacher = guide(
            partial(task.model.apply, state.teacher), scale=how.guidance + 1.0, null_cond=task.classes
        )
        x0 = ddim_sample(teacher, start, SAMPLED_TIMES, ALPHAS_CUMPROD, cond=label)
        loss, gradient = jax.value_and_grad(loss_fn)(state.params, x0, label, of_loss)
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        teacher = optax.incremental_update(params, state.teacher, 1 - TEACHER_EMA)
        new = SelfNPOState(state.step + 1, params, teacher, opt_state, state.key)
        return new, {"loss": loss}

    return step
