"""The teachers: their training, and what many steps of sampling make of them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from experiments.digits import CLASSES
from experiments.snoopi.judge import judge
from experiments.snoopi.networks import ALPHAS_CUMPROD, PIXELS, TIMESTEPS, Network, Params
from jaxneg.diffusion import ddim_sample, denoising_loss, ema_params, guide, track_ema
from jaxneg.train import init_state, make_step

LEARNING_RATE, EMA = 2e-3, 0.998
GUIDANCES = (1.0, 2.0, 3.0, 5.0)
"""Guidance scales at which a teacher is sampled; 1 is the plain conditional network."""
SAMPLED_TIMES = np.arange(TIMESTEPS - 1, 0, -40)
"""999, 959, ..., 39, and from there to the sample."""


def train(
    network: Network, steps: int, batch: int, key: PRNGKeyArray
) -> tuple[Params, Float[Array, " steps"]]:
    """Trains a network on the error of the noise at uniform times.

    Args:
        network: what is trained.
        steps: of Adam, whose rate falls as a cosine.
        batch: images in a step.
        key: random key.

    Returns:
        Parameters, averaged over the training; the loss of each step.
    """

    def loss_fn(params: Params, examples: tuple[Array, Array], key: PRNGKeyArray) -> tuple[Array, dict]:
        x, cond = examples
        of_time, of_noise = jax.random.split(key)
        t = jax.random.randint(of_time, (batch,), 0, TIMESTEPS)
        noise = jax.random.normal(of_noise, x.shape)
        losses = denoising_loss(partial(network.apply, params), x, t, noise, ALPHAS_CUMPROD, cond=cond)
        return losses.mean(), {}

    tx = optax.chain(optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps)), track_ema(EMA))
    step = make_step(loss_fn, tx)

    def one(state: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
        state, metrics = step(state, network.examples(key, batch))
        return state, metrics["loss"]

    of_init, of_steps, of_examples = jax.random.split(key, 3)
    state = init_state(network.init(of_init), tx, of_steps)
    state, loss = jax.lax.scan(one, state, jax.random.split(of_examples, steps))
    return ema_params(state.opt_state), loss


def frechet_by_guidance(
    network: Network, samples: int, params: Params, key: PRNGKeyArray
) -> Float[Array, " guidances"]:
    """The Fréchet distance of a teacher's samples in 25 steps of DDIM, at each of `GUIDANCES`.

    Args:
        network: what is sampled.
        samples: how many at each guidance, the digits in turn.
        params: its parameters.
        key: random key.

    Returns:
        Distances.
    """
    start = jax.random.normal(key, (samples, *network.shape))
    cond = network.digits(jnp.arange(samples) % CLASSES)

    def frechet(guidance: Array) -> Array:
        guided = guide(partial(network.apply, params), scale=guidance, null_cond=network.null)
        found = ddim_sample(guided, start, SAMPLED_TIMES, ALPHAS_CUMPROD, cond=cond)
        return judge().frechet(found.reshape(-1, PIXELS))

    return jax.lax.map(frechet, jnp.array(GUIDANCES))
