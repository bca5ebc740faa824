"""Views made with one to four kinds of nuisance, so that one similarity cannot serve all pairs.

An example has a class y of ten and a content ``u = prototype_y + 0.5 e`` in 16 dimensions (prototypes and e
standard normal); it is seen as ``x = tanh(M u)`` in 64 dimensions, M normal over sqrt(16). A view applies
each of its kinds with probability 0.8, in this order: noise (0.5 e added), occlusion (a block of half the
dimensions, beginning anywhere and wrapping, set to 0), gain (times ``exp(0.5 e)`` plus ``0.5 e``, numbers of
the view), rotation (fixed random pairs of dimensions by an angle of the view, even from -pi / 2 to pi / 2).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

from experiments.parallel import over_seeds
from jaxneg import contrastive

KINDS = ("noise", "occlusion", "gain", "rotation")
COUNTS = (1, 2, 4)
"""How many kinds there are, the first of `KINDS`."""
METHODS = ("SimCLR", "several fixed heads", "AMCL")
CLASSES, CONTENT, DIM = 10, 16, 64
TRAIN, TEST = 2000, 1000
HIDDEN, FEATURES, HEAD_HIDDEN, HEAD_OUT, HEADS = 128, 64, 64, 32, 3
BATCH, LEARNING_RATE, TEMPERATURE, TAU_MIN, TAU_MAX = 128, 2e-3, 0.5, 0.1, 2.0


class World(NamedTuple):
    """Examples without nuisance, and the pairs of dimensions that rotate."""

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array
    pairs: Array
    """A permutation of the dimensions; the first half turns into the second."""


def make_world(key: PRNGKeyArray) -> World:
    """Draws prototypes, examples and pairs.

    Args:
        key: random key.

    Returns:
        The world.
    """
    of_prototypes, of_matrix, of_pairs, *of_parts = jax.random.split(key, 5)
    prototypes = jax.random.normal(of_prototypes, (CLASSES, CONTENT))
    matrix = jax.random.normal(of_matrix, (CONTENT, DIM)) / CONTENT**0.5

    def part(key: PRNGKeyArray, count: int) -> tuple[Array, Array]:
        of_class, of_content = jax.random.split(key)
        y = jax.random.randint(of_class, (count,), 0, CLASSES)
        content = prototypes[y] + 0.5 * jax.random.normal(of_content, (count, CONTENT))
        return jnp.tanh(content @ matrix), y

    pairs = jax.random.permutation(of_pairs, DIM)
    return World(*part(of_parts[0], TRAIN), *part(of_parts[1], TEST), pairs)


def view(key: PRNGKeyArray, x: Array, kinds: Array, pairs: Array) -> Array:
    """A view of every example.

    Args:
        key: random key.
        x: ``[batch, 64]``.
        kinds: which of the four there are, ``[4]``.
        pairs: dimensions that rotate.

    Returns:
        ``[batch, 64]``.
    """
    of_kinds, of_noise, of_block, of_gain, of_angle = jax.random.split(key, 5)
    applies = jax.random.bernoulli(of_kinds, 0.8, (len(KINDS), len(x), 1)) & (kinds > 0)[:, None, None]
    x = jnp.where(applies[0], x + 0.5 * jax.random.normal(of_noise, x.shape), x)
    begins = jax.random.randint(of_block, (len(x), 1), 0, DIM)
    hidden = (jnp.arange(DIM) - begins) % DIM < DIM // 2
    x = jnp.where(applies[1] & hidden, 0.0, x)
    gain, shift = 0.5 * jax.random.normal(of_gain, (2, len(x), 1))
    x = jnp.where(applies[2], x * jnp.exp(gain) + shift, x)
    angle = jax.random.uniform(of_angle, (len(x), 1), minval=-jnp.pi / 2, maxval=jnp.pi / 2)
    first, second = x[:, pairs[: DIM // 2]], x[:, pairs[DIM // 2 :]]
    turned = [
        first * jnp.cos(angle) - second * jnp.sin(angle),
        first * jnp.sin(angle) + second * jnp.cos(angle),
    ]
    return jnp.where(applies[3], jnp.zeros_like(x).at[:, pairs].set(jnp.concatenate(turned, 1)), x)


def _linear(key: PRNGKeyArray, *shape: int) -> dict[str, Array]:
    of_kernel, of_bias = jax.random.split(key)
    bound = shape[-2] ** -0.5
    bias = jax.random.uniform(of_bias, (*shape[:-2], shape[-1]), minval=-bound, maxval=bound)
    return {"kernel": jax.random.uniform(of_kernel, shape, minval=-bound, maxval=bound), "bias": bias}


def _init(key: PRNGKeyArray, heads: int) -> dict[str, Any]:
    keys = jax.random.split(key, 5)
    return {
        "encoder": [_linear(keys[0], DIM, HIDDEN), _linear(keys[1], HIDDEN, FEATURES)],
        "heads": [
            _linear(keys[2], heads, FEATURES, HEAD_HIDDEN),
            _linear(keys[3], heads, HEAD_HIDDEN, HEAD_OUT),
        ],
        "phi": contrastive.init_temperature_net(keys[4], HEAD_OUT),
    }


def encode(params: dict[str, Any], x: Array) -> Array:
    """Features of examples or views."""
    first, second = params["encoder"]
    return jax.nn.relu(x @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]


def _project(params: dict[str, Any], x: Array) -> Array:
    first, second = params["heads"]
    hidden = jnp.einsum("bi,cio->bco", jax.nn.relu(encode(params, x)), first["kernel"]) + first["bias"]
    return jnp.einsum("bci,cio->bco", jax.nn.relu(hidden), second["kernel"]) + second["bias"]


@partial(jax.jit, static_argnames=("method", "steps"))
def train(keys: PRNGKeyArray, kinds: Array, *, method: str, steps: int) -> tuple[Array, Array]:
    """Trains a method on every seed's world and judges it.

    Args:
        keys: one for each seed, ``[seeds]``; the same for all methods, so that they see the same views.
        kinds: which of the four nuisances there are, ``[4]``.
        method: of `METHODS`.
        steps: of Adam.

    Returns:
        Shares of the test examples that neighbours and a linear probe know, ``[seeds]`` each.
    """

    def one(key: PRNGKeyArray) -> tuple[Array, Array]:
        of_world, of_params, of_steps, of_probe = jax.random.split(key, 4)
        world = make_world(of_world)
        params = _init(of_params, 1 if method == "SimCLR" else HEADS)
        tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE))

        def loss(params: dict[str, Any], key: PRNGKeyArray) -> Array:
            of_rows, of_first, of_second = jax.random.split(key, 3)
            x = world.train_x[jax.random.randint(of_rows, (BATCH,), 0, TRAIN)]
            z1, z2 = (_project(params, view(k, x, kinds, world.pairs)) for k in (of_first, of_second))
            if method == "AMCL":
                bounds = {"tau_min": TAU_MIN, "tau_max": TAU_MAX, "negatives": "lse"}
                return contrastive.amcl_nt_xent_loss(z1, z2, params["phi"], **bounds)[0].mean()
            own = partial(contrastive.nt_xent_loss, temperature=TEMPERATURE)
            return jax.vmap(own, in_axes=1)(z1, z2).sum(0).mean()

        def step(state: Any, key: PRNGKeyArray) -> tuple[Any, None]:
            params, opt_state = state
            updates, opt_state = tx.update(jax.grad(loss)(params, key), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(of_steps, steps))
        bank, features = encode(params, world.train_x), encode(params, world.test_x)
        nearest = contrastive.knn_classify(features, bank, world.train_y, classes=CLASSES)
        probe = contrastive.linear_probe(of_probe, bank, world.train_y, classes=CLASSES, epochs=30)
        knn = jnp.mean(nearest.predictions == world.test_y)
        return knn, probe.accuracy(features, world.test_y)

    return over_seeds(one)(keys)


def compare(seed: int, seeds: int, steps: int) -> dict[str, np.ndarray]:
    """All methods on views with one, two and four kinds of nuisance.

    Args:
        seed: of the whole.
        seeds: worlds.
        steps: of each training.

    Returns:
        ``knn`` and ``linear``, ``[methods, counts, seeds]``.
    """
    keys = jax.random.split(jax.random.key(seed), seeds)
    found = []
    for method in METHODS:
        of_counts = [
            train(keys, (jnp.arange(len(KINDS)) < count).astype(jnp.int32), method=method, steps=steps)
            for count in COUNTS
        ]
        found.append(np.asarray(of_counts))
    knn, linear = np.moveaxis(np.stack(found), 2, 0)
    return {"knn": knn, "linear": linear}
