"""The train step: it learns, touches what it says, and does the same on a mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg import kg
from jaxneg.train import make_mesh, shard_step

ENTITIES, RELATIONS, N, BATCH = 24, 2, 4, 16


@pytest.fixture(scope="module")
def triples():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, (ENTITIES, RELATIONS, ENTITIES), (BATCH, 3)), jnp.int32)


def sampler(key, triples, side):
    del side
    return kg.sample_uniform(key, triples[:, 0], N, ENTITIES)


def start(tx, model="TransE", **options):
    params = kg.kge_init(jax.random.key(0), model, ENTITIES, RELATIONS, 4, gamma=6.0, **options)
    return kg.init_kge_state(params, tx, jax.random.key(1))


def batch_of(triples):
    return {"triples": triples, "weight": kg.subsampling_weights(triples)}


def steps(step, state, batch, count=3):
    step = jax.jit(step)
    for _ in range(count):
        state, metrics = step(state, batch)
    return state, metrics


@pytest.mark.parametrize("tx", [optax.sgd(0.5), optax.adagrad(0.1)], ids=["sgd", "adagrad"])
def test_touched_rows_are_all_that_matters(triples, tx):
    """Where a row without a gradient stays as it is, both updates are the same."""
    known = kg.known_triples(triples, ENTITIES)
    results = [
        steps(
            kg.make_kge_step("RotatE", tx, sampler, alpha=0.5, known=known, update=update),
            start(tx, "RotatE"),
            batch_of(triples),
        )
        for update in ("all", "touched")
    ]
    for a, b in zip(*(jax.tree.leaves(r[0]._replace(key=0)) for r in results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(results[0][1]["loss"], results[1][1]["loss"], rtol=1e-5)


def test_lazy_adam_leaves_untouched_rows_and_their_moments(triples):
    tx = optax.adam(0.1)
    few = lambda key, x, side: jnp.zeros((len(x), 1), jnp.int32)  # noqa: E731
    step = kg.make_kge_step("TransE", tx, few, update="touched")
    first = start(tx)
    state, _ = steps(step, first, {"triples": triples[:2]}, 2)
    used = np.unique(np.append(np.asarray(triples[:2])[:, [0, 2]], 0))
    changed = np.any(np.asarray(state.params["entity"] != first.params["entity"]), axis=1)
    np.testing.assert_array_equal(np.flatnonzero(changed), used)
    moments = np.any(np.asarray(state.opt_state[0].mu["entity"]), axis=1)
    np.testing.assert_array_equal(np.flatnonzero(moments), used)
    assert int(state.opt_state[0].count) == 2
    assert float(state.params["gamma"]) == 6.0
    # The first step has no moments yet: it is dense Adam's.
    dense, _ = steps(kg.make_kge_step("TransE", tx, few), first, {"triples": triples[:2]}, 1)
    lazy, _ = steps(step, first, {"triples": triples[:2]}, 1)
    np.testing.assert_allclose(lazy.params["entity"], dense.params["entity"], atol=1e-6)


def test_sides_alternate_and_the_loss_falls(triples):
    seen = []

    def watched(key, triples, side):
        seen.append(side)
        return sampler(key, triples, side)

    tx = kg.restarting_adam(0.05, max_steps=200)
    step = jax.jit(kg.make_kge_step("TransE", tx, watched))
    state, losses = start(tx), []
    for _ in range(60):
        state, metrics = step(state, batch_of(triples))
        losses.append(float(metrics["loss"]))
    assert set(seen) == {"head", "tail"}
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    # Step 1 replaces tails: no gradient reaches an entity but heads, tails and negatives.
    one = kg.make_kge_step(
        "TransE", optax.sgd(1.0), lambda k, x, side: jnp.full((len(x), 1), 5 if side == "tail" else 6)
    )
    first = start(optax.sgd(1.0))
    after_one, _ = one(first, {"triples": jnp.array([[0, 0, 1]])})
    after_two, _ = one(after_one, {"triples": jnp.array([[0, 0, 1]])})

    def moved(a, b):
        return np.flatnonzero(np.any(np.asarray(a.params["entity"] != b.params["entity"]), axis=1)).tolist()

    assert moved(first, after_one) == [0, 1, 5]
    assert moved(after_one, after_two) == [0, 1, 6]


def test_a_sampler_that_chooses_sides_and_regularization(triples):
    probability = kg.relation_cardinality(triples, RELATIONS).head_probability
    tx = optax.sgd(0.1)
    step = kg.make_kge_step(
        "DistMult",
        tx,
        lambda key, x, side: kg.sample_bernoulli(key, x, probability, N, ENTITIES),
        regularization=0.1,
    )
    _, metrics = steps(step, start(tx, "DistMult"), batch_of(triples))
    assert bool(jnp.isfinite(metrics["loss"]))
    weak = kg.make_kge_step("DistMult", tx, sampler)
    with_l3, without = (
        float(steps(s, start(tx, "DistMult"), batch_of(triples), 1)[1]["loss"]) for s in (step, weak)
    )
    assert with_l3 > without


def test_decay_never_touches_the_margin(triples):
    tx = optax.adamw(0.1, weight_decay=0.5)
    state, _ = steps(kg.make_kge_step("TransE", tx, sampler), start(tx), batch_of(triples))
    assert float(state.params["gamma"]) == 6.0


def test_restarting_adam_as_the_official_loop():
    """``run.py``'s loop by hand: train_step, then a new Adam if step >= warm_up_steps."""
    max_steps, rate, x = 9, 0.1, jnp.array([1.0, -2.0])
    gradients = jax.random.normal(jax.random.key(0), (max_steps * 2, 2))
    tx = kg.restarting_adam(rate, max_steps)
    ours, state = x, tx.init(x)
    theirs, adam = x, optax.adam(rate)
    adam_state, warm_up = adam.init(x), max_steps // 2
    for step in range(max_steps * 2):
        updates, state = tx.update(gradients[step], state)
        ours = optax.apply_updates(ours, updates)
        updates, adam_state = adam.update(gradients[step], adam_state)
        theirs = optax.apply_updates(theirs, updates)
        if step >= warm_up:
            rate /= 10
            adam = optax.adam(rate)
            adam_state, warm_up = adam.init(x), warm_up * 3
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("update", ["all", "touched"])
@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_sharded_is_unsharded(triples, update, explicit):
    if explicit and update == "touched":
        pytest.skip("distinct rows are found by sorting, which has no explicit sharding of its own")
    tx = optax.adam(0.05)
    step = kg.make_kge_step("RotatE", tx, sampler, alpha=0.5, update=update)
    state, batch = start(tx, "RotatE"), batch_of(triples)
    expected, metrics = steps(step, state, batch, 2)
    rules = [("entity", jax.P("model", None))]
    mesh = make_mesh({"data": 2, "model": 4}, explicit=explicit)
    sharded = shard_step(step, mesh, state, batch, rules=rules, fsdp=None)
    found = sharded.place_state(state)
    for _ in range(2):
        found, sharded_metrics = sharded(found, batch)
    assert found.params["entity"].sharding.spec == jax.P("model", None)
    assert found.opt_state[0].mu["entity"].sharding.spec == jax.P("model", None)
    for a, b in zip(
        jax.tree.leaves(found._replace(key=0)), jax.tree.leaves(expected._replace(key=0)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-5)
    np.testing.assert_allclose(sharded_metrics["loss"], metrics["loss"], rtol=1e-5)


def test_a_table_that_the_mesh_does_not_divide(triples):
    tx = optax.sgd(0.1)
    mesh, rules = make_mesh({"data": 1, "model": 8}), [("entity", jax.P("model", None))]
    step = kg.make_kge_step("TransE", tx, lambda k, x, side: kg.sample_uniform(k, x[:, 0], N, 21))
    params = kg.kge_init(jax.random.key(0), "TransE", 21, RELATIONS, 4, gamma=6.0)
    state = kg.init_kge_state(params, tx, jax.random.key(1))
    batch = {"triples": jnp.minimum(triples, 20)}
    with pytest.raises(ValueError, match=r"entity.*axis 0 of its shape \(21, 4\) does not divide by 8"):
        shard_step(step, mesh, state, batch, rules=rules, fsdp=None)
    params = kg.kge_init(jax.random.key(0), "TransE", 21, RELATIONS, 4, gamma=6.0, row_multiple=8)
    padded = kg.init_kge_state(params, tx, jax.random.key(1))
    sharded = shard_step(step, mesh, padded, batch, rules=rules, fsdp=None)
    found, _ = sharded(sharded.place_state(padded), batch)
    expected, _ = jax.jit(step)(state, batch)
    np.testing.assert_allclose(found.params["entity"][:21], expected.params["entity"], atol=1e-6)
    assert not bool(jnp.any(found.params["entity"][21:]))


def test_bad_arguments():
    make = partial(kg.make_kge_step, "TransE", optax.sgd(0.1), sampler)
    with pytest.raises(ValueError, match="update: expected one of all, touched, got 'some'"):
        make(update="some")
    with pytest.raises(ValueError, match='regularization: expected 0 with update="touched"'):
        make(update="touched", regularization=0.1)
    with pytest.raises(ValueError, match="rounds: expected at least 0, got -1"):
        make(rounds=-1)
    with pytest.raises(ValueError, match="model: expected one of TransE"):
        kg.make_kge_step("none", optax.sgd(0.1), sampler)
    with pytest.raises(ValueError, match="max_steps: expected at least 1"):
        kg.restarting_adam(0.1, 0)
