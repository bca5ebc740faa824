"""Dual ascent: the link's weights, its state in a train step, both ways to pull back, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.train import init_state, make_mesh, make_step, shard_step
from jaxneg.unlearning import UnlearnConfig, dual_ascent_retain, make_unlearn_losses

VOCAB = 8
JACOBIAN = {"w": jnp.array([[1.0, 2.0], [10.0, 20.0]])}


def _batch():
    random = np.random.default_rng(0)
    ids = jnp.asarray(random.integers(0, VOCAB, (2, 8, 6)).astype(np.int32))
    return {part: {"tokens": x, "labels": x} for part, x in zip(("forget", "retain"), ids, strict=True)}


def _apply(params, tokens):
    return jax.nn.one_hot(tokens, VOCAB) @ params


LOSS = make_unlearn_losses(_apply, UnlearnConfig("pdu+rt"))
PARAMS = jnp.asarray(np.random.default_rng(1).standard_normal((VOCAB, VOCAB)).astype(np.float32))


def test_weights_and_multiplier():
    tx = dual_ascent_retain(0.5, 2.0, initial=3.0, forget_weight=0.5, warm_up=1)
    state = tx.init(JACOBIAN)
    losses = jnp.array([9.0, 1.0])
    updates, state = tx.update(JACOBIAN, state, losses=losses)
    np.testing.assert_allclose(updates["w"], [30.5, 61.0])
    assert float(state.retain_weight) == 3.0, "one update of warm-up"
    _, state = jax.jit(lambda *given: tx.update(*given, losses=losses))(JACOBIAN, state)
    assert float(state.retain_weight) == 4.0
    updates, state = tx.update(JACOBIAN, state, losses=jnp.array([9.0, -5.0]))
    np.testing.assert_allclose(updates["w"], [40.5, 81.0])
    assert float(state.retain_weight) == 0.0, "4 - 11 is clamped"
    assert int(state.count) == 3


def test_the_weights_may_be_pulled_back():
    tx = dual_ascent_retain(0.5, initial=3.0)
    found, _ = tx.update({}, tx.init(JACOBIAN), losses=jnp.ones(2), pullback=lambda w: w @ JACOBIAN["w"])
    expected, _ = tx.update(JACOBIAN, tx.init(JACOBIAN), losses=jnp.ones(2))
    np.testing.assert_allclose(found, expected["w"])


def test_narrow_gradients_stay_narrow_and_float64_stays_wide():
    tx = dual_ascent_retain(0.5)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), JACOBIAN)
    updates, state = tx.update(narrow, tx.init(narrow), losses=jnp.ones(2, jnp.bfloat16))
    assert updates["w"].dtype == jnp.bfloat16
    assert state.retain_weight.dtype == jnp.float32
    with jax.enable_x64(True):
        assert tx.init(JACOBIAN).retain_weight.dtype == jnp.float64


def test_a_step_by_either_way_and_on_a_mesh():
    """One backward pass or two, and eight devices: the same parameters and the same multiplier."""
    tx = optax.chain(dual_ascent_retain(1.0, 2.0, initial=5.0), optax.sgd(0.02))
    batch, ends = _batch(), []
    for how in ("stacked", "weighted", "sharded"):
        step = make_step(LOSS, tx, jacobian="stacked" if how == "stacked" else "weighted")
        state = init_state(PARAMS, tx, jax.random.key(0))
        if how == "sharded":
            step = shard_step(step, make_mesh({"data": 8}), state, batch)
            state, batch = step.place_state(state), step.place_batch(batch)
        else:
            step = jax.jit(step)
        for _ in range(3):
            state, metrics = step(state, batch)
        ends.append((state.params, state.opt_state[0].retain_weight, metrics["losses"]))
    for other in ends[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), other, ends[0])
    assert float(ends[0][1]) > 5.0


def test_the_constraint_is_kept():
    """The multiplier rises while the retain loss is too high, and the retain loss then meets the bound."""
    eps = 1.95
    tx = optax.chain(dual_ascent_retain(eps, 1.0, initial=0.1), optax.sgd(0.05))
    step = jax.jit(make_step(LOSS, tx, jacobian="weighted"))
    state = init_state(PARAMS, tx, jax.random.key(0))
    state, first = step(state, _batch())
    assert first["losses"][1] > eps
    weights = []
    for _ in range(600):
        state, last = step(state, _batch())
        weights.append(float(state.opt_state[0].retain_weight))
    assert max(weights) > 1
    np.testing.assert_allclose(last["losses"][1], eps, atol=0.05)
    assert last["losses"][0] < 0.5 * first["losses"][0]


def test_static_mistakes():
    tx = dual_ascent_retain(0.5)
    state = tx.init(JACOBIAN)
    with pytest.raises(ValueError, match=r"losses: expected those of forget and retain; pass update"):
        tx.update(JACOBIAN, state)
    with pytest.raises(ValueError, match=r"losses: expected those of forget and retain, got shape \(3,\)"):
        tx.update(JACOBIAN, state, losses=jnp.ones(3))
    with pytest.raises(
        ValueError, match=r"updates: expected gradients with a leading axis of 2, .* \(3, 2\)"
    ):
        tx.update({"w": jnp.ones((3, 2))}, state, losses=jnp.ones(2))
    with pytest.raises(ValueError, match="step: expected a positive finite number, got 0"):
        dual_ascent_retain(0.5, 0)
    with pytest.raises(ValueError, match="initial: expected a finite number of at least 0, got -1"):
        dual_ascent_retain(0.5, initial=-1)
    with pytest.raises(ValueError, match="warm_up: expected a finite number of at least 0, got -1"):
        dual_ascent_retain(0.5, warm_up=-1)
