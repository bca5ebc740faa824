"""The small diffusion models of both parts: one class-conditional network, its training and its sampling.

The schedule is Stable Diffusion's, the sampler DDIM on 25 steps. Guidance draws the prediction of a positive
network for the class away from that of a negative network for no class; with the same parameters in both it
is classifier-free guidance (Ho and Salimans, arXiv:2207.12598).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxneg.diffusion import (
    ddim_sample,
    denoising_loss,
    drop_condition,
    ema_params,
    guide,
    scaled_linear_schedule,
    track_ema,
)
from jaxneg.nn import denoising_mlp
from jaxneg.nn.bridge import Model
from jaxneg.train import init_state, make_step

TIMESTEPS, SOLVER_STEPS = 1000, 25
SCHEDULE = scaled_linear_schedule(TIMESTEPS)
ALPHAS_CUMPROD = SCHEDULE.alphas_cumprod
STRIDE = TIMESTEPS // SOLVER_STEPS
SAMPLED_TIMES = np.arange(TIMESTEPS - 1, 0, -STRIDE)
"""999, 959, ..., 39, and from there to the sample."""
LEARNING_RATE, EMA, LABEL_DROPOUT = 1e-3, 0.995, 0.1
EARLY = 3
"""One part in so many of the training makes the negative of autoguidance."""

Params = Any


class Task(NamedTuple):
    """What is to be generated, and how large a network learns it."""

    features: int
    classes: int
    hidden: int
    draw: Callable[[PRNGKeyArray], tuple[Array, Array]]
    """A batch of examples ``[batch, features]`` and their classes."""

    @property
    def model(self) -> Model:
        """The network; it predicts the noise."""
        return denoising_mlp(self.features, hidden=self.hidden, classes=self.classes)


class Base(NamedTuple):
    """What training leaves."""

    params: Params
    """Averaged over the training."""
    early: Params
    """The average after a third of it."""
    loss: Float[Array, " steps"]


def train_base(task: Task, steps: int, key: PRNGKeyArray) -> Base:
    """Trains a network as diffusion models are trained, on the error of the noise at uniform times.

    Args:
        task: what is generated.
        steps: of Adam, a multiple of 3.
        key: random key.

    Returns:
        The network.
    """
    init, apply = task.model

    def loss_fn(params: Params, batch: tuple[Array, Array], key: PRNGKeyArray) -> tuple[Array, dict]:
        x, label = batch
        of_time, of_noise, of_label = jax.random.split(key, 3)
        t = jax.random.randint(of_time, label.shape, 0, TIMESTEPS)
        noise = jax.random.normal(of_noise, x.shape)
        cond = drop_condition(of_label, label, task.classes, LABEL_DROPOUT)
        losses = denoising_loss(partial(apply, params), x, t, noise, ALPHAS_CUMPROD, cond=cond)
        return losses.mean(), {}

    tx = optax.chain(optax.adam(LEARNING_RATE), track_ema(EMA))
    step = make_step(loss_fn, tx)

    def one(state: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
        state, metrics = step(state, task.draw(key))
        return state, metrics["loss"]

    def part(state: Any, keys: PRNGKeyArray) -> tuple[Any, tuple[Params, Array]]:
        state, loss = jax.lax.scan(one, state, keys)
        return state, (ema_params(state.opt_state), loss)

    of_init, of_steps, of_draws = jax.random.split(key, 3)
    state = init_state(init(of_init), tx, of_steps)
    keys = jax.random.split(of_draws, (EARLY, steps // EARLY))
    _, (averages, loss) = jax.lax.scan(part, state, keys)
    first, last = (jax.tree.map(lambda leaf, at=at: leaf[at], averages) for at in (0, -1))
    return Base(last, first, loss.reshape(-1))


def denoiser(task: Task, params: Params) -> Callable[[Array, Array, Array], Array]:
    """The network for examples that are all at one time, of which it then makes the embedding once.

    Args:
        task: whose network.
        params: its parameters.

    Returns:
        ``(x, t, label) -> noise``.
    """

    def noise(x: Array, t: Array, label: Array) -> Array:
        def of_one(x: Array, label: Array) -> Array:
            return task.model.apply(params, x[None], t[:1], label[None])[0]

        return jax.vmap(of_one)(x, label)

    return noise


def sample(
    task: Task,
    positive: Params,
    negative: Params,
    start: Float[Array, "batch features"],
    label: Int[Array, " batch"],
    guidance: Array | float,
) -> Float[Array, "batch features"]:
    """Samples under guidance, ``(w + 1) eps_positive(x, class) - w eps_negative(x)``.

    Args:
        task: what is generated.
        positive: parameters that are asked for the class.
        negative: parameters that are asked for no class.
        start: noise.
        label: classes.
        guidance: w.

    Returns:
        The samples.
    """
    guided = guide(
        denoiser(task, positive),
        scale=guidance + 1.0,
        null_cond=jnp.full_like(label, task.classes),
        negative=denoiser(task, negative),
    )
    return ddim_sample(guided, start, SAMPLED_TIMES, ALPHAS_CUMPROD, cond=label)
