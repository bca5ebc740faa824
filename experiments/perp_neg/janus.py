"""Experiment B: a toy of text-to-3D, whose object has a face on every side unless negatives forbid it.

Six Gaussians in 12 dimensions, two concepts times three faces (front, side, back). A prompt's embedding is
a vector of mixture weights, so that interpolating embeddings is well defined; every prompt favours the front,
as image models do. The object is a Fourier series in the azimuth, trained by score distillation from random
directions.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.perp_neg.overlap import ALPHAS_CUMPROD
from jaxneg.diffusion import (
    cebm_guidance,
    gaussian_mixture_denoiser,
    perp_neg_guidance,
    perp_neg_sds_step,
    view_embeddings,
)

DIM, CONCEPTS, FACES = 12, 2, 3
GEOMETRY_SEED = 123
CONCEPT_LENGTH, FACE_LENGTH, STD = 3.0, 1.5, 1.0
ORDER = 3
INITIAL_STD = 0.1

FRONT, SIDE, BACK = range(FACES)
PROMPTS = {
    "front": np.array([1.0, 0, 0, 0, 0, 0]),
    "side": np.array([0.7, 0.3, 0, 0, 0, 0]),
    "back": np.array([0.7, 0, 0.3, 0, 0, 0]),
    "uncond": np.array([0.35, 0.1, 0.05, 0.35, 0.1, 0.05]),
}
"""Prompts as weights of the components; component 3 c + f is face f of concept c."""

AZIMUTHS = np.arange(-175.0, 176.0, 10.0)
"""Where the trained object is looked at, degrees."""

METHODS: dict[str, dict[str, Any]] = {
    "no negatives": {"negatives": 0.0, "schedule": "dreamfusion", "guidance": perp_neg_guidance},
    "CEBM": {"negatives": 1.0, "schedule": "dreamfusion", "guidance": cebm_guidance},
    "Perp-Neg, dreamfusion": {"negatives": 1.0, "schedule": "dreamfusion", "guidance": perp_neg_guidance},
    "Perp-Neg, threestudio": {"negatives": 1.0, "schedule": "threestudio", "guidance": perp_neg_guidance},
}
"""Factor of the negative prompts' weights, their schedule, and the rule."""


class Views(NamedTuple):
    """What is seen from every side, ``[methods, seeds, azimuths]`` each."""

    concept: Int[np.ndarray, "methods seeds azimuths"]
    face: Int[np.ndarray, "methods seeds azimuths"]


def component_means() -> Float[np.ndarray, "components dim"]:
    """The means of the components, concept by concept."""
    q = np.linalg.qr(np.random.default_rng(GEOMETRY_SEED).standard_normal((DIM, DIM)))[0]
    concepts, faces = CONCEPT_LENGTH * q[[0, 4], None], FACE_LENGTH * q[None, 1:4]
    return (concepts + faces).reshape(-1, DIM)


def basis(azimuth: Float[Array, " batch"]) -> Float[Array, "batch terms"]:
    """1, and cosine and sine of the azimuth's multiples up to ``ORDER``; degrees."""
    angles = jnp.deg2rad(azimuth)[:, None] * jnp.arange(1, ORDER + 1)
    return jnp.concatenate([jnp.ones_like(angles[:, :1]), jnp.cos(angles), jnp.sin(angles)], axis=1)


@partial(jax.jit, static_argnames=("steps", "batch", "learning_rate", "eps"))
def train(
    keys: PRNGKeyArray,
    scale: float,
    negative_w: float,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    eps: float,
) -> Float[Array, "methods seeds terms dim"]:
    """The objects of every method and seed, in one program; a seed draws the same numbers for all methods.

    Args:
        keys: one for each seed.
        scale: guidance scale.
        negative_w: of the schedule "dreamfusion".
        steps: of Adam.
        batch: azimuths in a step.
        learning_rate: of Adam.
        eps: floor of Perp-Neg's denominator.

    Returns:
        Fourier coefficients.
    """
    noise = gaussian_mixture_denoiser(
        component_means(), PROMPTS["uncond"], np.array(STD), ALPHAS_CUMPROD
    ).noise
    table = {view: jnp.asarray(weights, jnp.float32) for view, weights in PROMPTS.items()}
    tx = optax.adam(learning_rate, b1=0.9, b2=0.99)

    def loss(method: dict[str, Any], object_: Array, key: PRNGKeyArray) -> Array:
        azimuth_key, sds_key = jax.random.split(key)
        azimuth = jax.random.uniform(azimuth_key, (batch,), minval=-180.0, maxval=180.0)
        given = {"negative_w": negative_w} if method["schedule"] == "dreamfusion" else {}
        positive, negative, weights = view_embeddings(table, azimuth, schedule=method["schedule"], **given)
        rule = method["guidance"]
        return perp_neg_sds_step(
            sds_key,
            noise,
            basis(azimuth) @ object_,
            positive,
            negative.swapaxes(0, 1),
            table["uncond"],
            method["negatives"] * weights.T,
            ALPHAS_CUMPROD,
            scale=scale,
            guidance=partial(rule, eps=eps) if rule is perp_neg_guidance else rule,
        )

    gradients = [jax.grad(partial(loss, method)) for method in METHODS.values()]

    def step(state: tuple[Array, Any], keys: PRNGKeyArray) -> tuple[tuple[Array, Any], None]:
        objects, opt_state = state
        found = [jax.vmap(of_seed)(objects[m], keys) for m, of_seed in enumerate(gradients)]
        updates, opt_state = tx.update(jnp.stack(found), opt_state)
        return (jax.tree.map(jnp.add, objects, updates), opt_state), None

    start_keys, step_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    start = jax.vmap(lambda key: jax.random.normal(key, (2 * ORDER + 1, DIM)))(start_keys)
    objects = INITIAL_STD * jnp.broadcast_to(start, (len(METHODS), *start.shape))
    every_step = jax.vmap(lambda key: jax.random.split(key, steps), out_axes=1)(step_keys)
    (objects, _), _ = jax.lax.scan(step, (objects, tx.init(objects)), every_step)
    return objects


def look(objects: Float[np.ndarray, "methods seeds terms dim"]) -> Views:
    """The nearest mean of what is seen from each azimuth.

    Args:
        objects: Fourier coefficients.

    Returns:
        Its concept and its face.
    """
    seen = np.asarray(basis(jnp.asarray(AZIMUTHS))) @ objects
    squared = ((seen[..., None, :] - component_means()) ** 2).sum(-1)
    return Views(*np.divmod(squared.argmin(-1), FACES))


def true_faces() -> Int[np.ndarray, " azimuths"]:
    """The face that should be seen from each azimuth."""
    a = np.abs(AZIMUTHS)
    return np.where(a < 45, FRONT, np.where(a >= 135, BACK, SIDE))
