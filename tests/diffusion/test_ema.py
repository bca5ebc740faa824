"""The average of the parameters as a link of an optax chain."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxneg import diffusion, train

PARAMS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float32)}


def steps(tx, gradients, params=PARAMS):
    """Parameters after each step, and the last state."""
    params = jax.tree.map(jnp.asarray, params)
    state = tx.init(params)
    update = jax.jit(tx.update)
    seen = [params]
    for gradient in gradients:
        updates, state = update(jax.tree.map(lambda p: jnp.full_like(p, gradient), params), state, params)  # noqa: B023
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen, state


@hypothesis.given(
    decay=st.sampled_from([0.0, 0.5, 0.9, 1.0]), gradients=st.lists(st.floats(-1, 1), max_size=4)
)
@hypothesis.settings(max_examples=8, deadline=None)
def test_is_the_weighted_sum_of_all_parameters(decay, gradients):
    tx = optax.chain(optax.sgd(0.3), diffusion.track_ema(decay))
    seen, state = steps(tx, gradients)
    expected = jax.tree.map(np.asarray, seen[0])
    for params in seen[1:]:
        expected = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, expected, params)
    for got, wanted in zip(
        jax.tree.leaves(diffusion.ema_params(state)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_changes_no_update_and_works_in_any_chain():
    inner = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
    plain, _ = steps(inner, [0.3, -0.2])
    tracked, state = steps(optax.chain(inner, diffusion.track_ema(0.9)), [0.3, -0.2])
    jax.tree.map(np.testing.assert_array_equal, plain, tracked)
    assert jax.tree.structure(diffusion.ema_params(state)) == jax.tree.structure(PARAMS)
    deep = optax.multi_transform({"all": optax.chain(inner, diffusion.track_ema(0.9))}, "all")
    assert "w" in diffusion.ema_params(deep.init(PARAMS))


def test_bfloat16_parameters_have_a_float32_average():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    _, state = steps(optax.chain(optax.sgd(1.0), diffusion.track_ema(0.999)), [1.0], params)
    average = diffusion.ema_params(state)["b"]
    assert average.dtype == jnp.float32
    # In bfloat16 the step from 1 to 0.999 rounds to nothing.
    np.testing.assert_allclose(average, 0.999, rtol=1e-6)


def test_in_a_sharded_step():
    """The average follows its parameters over the mesh, and shares no buffer with them."""
    tx = optax.chain(optax.adam(1e-2), diffusion.track_ema(0.5))

    def loss_fn(params, batch, key):
        return jnp.mean((batch @ params["w"] + params["b"]) ** 2), {}

    params = {"w": np.ones((16, 8), np.float32), "b": np.zeros(8, np.float32)}
    batch = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    step = train.make_step(loss_fn, tx)
    state = train.init_state(jax.tree.map(jnp.asarray, params), tx, jax.random.key(0))
    expected, _ = jax.jit(step)(state, batch)
    mesh = train.make_mesh({"data": 8})
    sharded = train.shard_step(step, mesh, state, batch, rules=[("w", P("data"))])
    got, _ = sharded(sharded.place_state(state), sharded.place_batch(batch))
    average = diffusion.ema_params(got.opt_state)
    assert average["w"].sharding.spec == got.params["w"].sharding.spec == P("data")
    for name in params:
        np.testing.assert_allclose(average[name], diffusion.ema_params(expected.opt_state)[name], rtol=1e-5)
        np.testing.assert_allclose(
            average[name], 0.5 * (params[name] + got.params[name]), rtol=1e-4, atol=1e-6
        )


def test_mistakes():
    for decay in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"decay: expected a number between 0 and 1, got {decay}"):
            diffusion.track_ema(decay)
    tx = diffusion.track_ema(0.9)
    with pytest.raises(
        ValueError, match=r"params: track_ema averages parameters, call update\(updates, state, p"
    ):
        tx.update(PARAMS, tx.init(PARAMS))
    with pytest.raises(ValueError, match="opt_state: expected the state of one track_ema, found 0"):
        diffusion.ema_params(optax.adam(1e-3).init(PARAMS))
    with pytest.raises(ValueError, match="opt_state: expected the state of one track_ema, found 2"):
        diffusion.ema_params(optax.chain(tx, tx).init(PARAMS))
