"""A tiny DiT that makes digits of a class by flow matching, trained as the paper's models are in small.

``x_t = (1 - t) x + t eps``, and the network predicts the velocity ``eps - x`` (Lipman et al. 2023,
arXiv:2210.02747; timesteps as in Esser et al. 2024, arXiv:2403.03206, Section 3.1: the sigmoid of a normal
number). Sampling with classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598) is Euler's from
t = 1 to 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.digits import CLASSES, digit_pixels
from jaxneg.diffusion import drop_condition
from jaxneg.nn.bridge import Model
from jaxneg.nn.dit import DiTConfig, dit
from jaxneg.train import init_state, make_step

SIZE, PATCH = 8, 2
TIME_SCALE = 1000.0
"""The network is told 1000 t, as timesteps are counted in the paper's models."""
LEARNING_RATE, LAST_RATE, DECAY = 2e-3, 0.05, 0.01
BATCH, LABEL_DROPOUT, EMA = 64, 0.1, 0.999


def digit_network(width: int, layers: int, heads: int) -> Model:
    """A DiT of 16 tokens."""
    return dit(DiTConfig(SIZE, 1, PATCH, width, layers, heads, CLASSES))


def train(model: Model, steps: int, key: PRNGKeyArray) -> tuple[Any, Float[Array, " steps"]]:
    """Trains a network on all digits.

    AdamW with a cosine to 5 % of the rate, gradients clipped at 1, and an average of the parameters with
    ``decay = min(0.999, (i + 1) / (i + 10))``.

    Args:
        model: the network.
        steps: of training.
        key: random key.

    Returns:
        The averaged parameters, and the losses.
    """
    pixels = digit_pixels()
    images, labels = jnp.asarray(pixels.x).reshape(-1, SIZE, SIZE, 1), jnp.asarray(pixels.y)

    def loss_fn(params: Any, batch: dict[str, Array], key: PRNGKeyArray) -> tuple[Array, dict]:
        of_time, of_noise, of_label = jax.random.split(key, 3)
        x, t = batch["x"], jax.nn.sigmoid(jax.random.normal(of_time, batch["y"].shape))
        noise = jax.random.normal(of_noise, x.shape)
        label = drop_condition(of_label, batch["y"], CLASSES, LABEL_DROPOUT)
        there = t[:, None, None, None]
        velocity = model.apply(params, (1 - there) * x + there * noise, TIME_SCALE * t, label)
        return jnp.square(velocity - (noise - x)).mean(), {}

    rate = optax.cosine_decay_schedule(LEARNING_RATE, steps, LAST_RATE)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=DECAY))
    step = make_step(loss_fn, tx)

    def one(carry: tuple[Any, Any], key: PRNGKeyArray) -> tuple[tuple[Any, Any], Array]:
        state, average = carry
        rows = jax.random.randint(key, (BATCH,), 0, len(labels))
        stays = jnp.minimum(EMA, (state.step + 1) / (state.step + 10))
        state, metrics = step(state, {"x": images[rows], "y": labels[rows]})
        return (state, optax.incremental_update(state.params, average, 1 - stays)), metrics["loss"]

    of_init, of_steps, of_draws = jax.random.split(key, 3)
    state = init_state(model.init(of_init), tx, of_steps)
    (_, average), losses = jax.lax.scan(one, (state, state.params), jax.random.split(of_draws, steps))
    return average, losses


def guided_velocity(
    model: Model,
    params: Any,
    x: Float[Array, "batch height width channels"],
    t: Float[Array, ""],
    label: Int[Array, " batch"],
    scale: Float[Array, ""],
    *,
    null: int = CLASSES,
    **options: Any,
) -> Float[Array, "batch height width channels"]:
    """Classifier-free guidance, ``v(x) + scale (v(x, label) - v(x))``, in one call of the network.

    Args:
        model: the network.
        params: its parameters.
        x: noisy images.
        t: the time of all of them, from 0 to 1.
        label: what they are to show.
        scale: 1 for no guidance.
        null: the label that stands for none.
        **options: of the network; a hook sees the half without labels, and the half with them behind it.

    Returns:
        The velocity.
    """
    both = jnp.concatenate([jnp.full_like(label, null), label])
    times = jnp.broadcast_to(TIME_SCALE * t, both.shape)
    without, told = jnp.split(model.apply(params, jnp.concatenate([x, x]), times, both, **options), 2)
    return without + scale * (told - without)
