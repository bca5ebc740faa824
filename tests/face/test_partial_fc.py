"""Classes on many devices: unsharded gradients, padding, sampling, UNPG's term, sparse updates, bad input."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.face import (
    UNPGConfig,
    class_rows,
    init_unpg_state,
    make_unpg_loss,
    make_unpg_train_step,
    pad_class_shards,
    padded_classes,
    sample_class_centres,
    shard_class_ranges,
    sharded_margin_softmax,
    unpg_log_partition,
    unpg_loss,
    update_sampled_rows,
)
from jaxneg.train import make_mesh

S, M, CLASSES, DIM = 16.0, 0.35, 21, 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, DIM)).astype(np.float32)
W = RNG.normal(size=(CLASSES, DIM)).astype(np.float32)
Y = RNG.integers(0, CLASSES, 16)


def mean_of(loss):
    return jax.jit(jax.value_and_grad(lambda *arrays: loss(*arrays).mean(), (0, 1)))


@pytest.fixture(scope="module")
def whole():
    """Loss and gradients of UNPG with all classes on one device."""
    return mean_of(lambda x, w: unpg_loss(x, w, Y, s=S, m=M)[0])(X, W)


def sharded_unpg(mesh, axis, num_classes=None):
    def loss(x, w):
        A, _ = unpg_log_partition(x, Y, s=S)
        return sharded_margin_softmax(
            x, w, Y, mesh=mesh, axis=axis, s=S, m=M, extra_log_partition=A, num_classes=num_classes
        )

    return loss


def close(ours, whole):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, whole)


@pytest.mark.parametrize("shards", [1, 2, pytest.param(4, marks=pytest.mark.slow), 8])
def test_any_number_of_shards(whole, shards):
    """21 classes divide by none but 1; A enters once, not once a shard."""
    mesh = make_mesh({"classes": shards}, devices=jax.devices()[:shards])
    close(mean_of(sharded_unpg(mesh, "classes"))(X, W), whole)


@pytest.mark.parametrize("explicit", [False, True])
def test_weights_that_lie_on_the_model_axis(whole, explicit):
    """Padded, in place; the batch on the data axis; gradients lie where the weights do."""
    mesh = make_mesh({"data": 2, "model": 4}, explicit=explicit)
    padded = pad_class_shards(jnp.asarray(W), 4)
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, P("data")))
        w = jax.device_put(padded, NamedSharding(mesh, P("model")))
        loss, (of_x, of_w) = mean_of(sharded_unpg(mesh, "model", CLASSES))(x, w)
    close((loss, (of_x, np.asarray(of_w)[class_rows(CLASSES, 4)])), whole)
    rest = np.delete(np.asarray(of_w), class_rows(CLASSES, 4), axis=0)
    assert rest.shape == (3, DIM)
    assert not rest.any()
    assert of_w.sharding.shard_shape(of_w.shape) == (6, DIM)


@pytest.mark.slow
def test_classes_on_two_axes(whole):
    mesh = make_mesh({"data": 2, "model": 4})
    close(mean_of(sharded_unpg(mesh, ("data", "model")))(X, W), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "m"), [("magface", 0.0), ("sphereface", 4), ("combined", (1.0, 0.3, 0.1)), ("arcface", 0.5)]
)
def test_other_heads(head, m):
    x = 20 * X
    mesh = make_mesh({"classes": 2}, devices=jax.devices()[:2])
    ours = sharded_margin_softmax(x, W, Y, mesh=mesh, head=head, s=S, m=m)
    np.testing.assert_allclose(ours, unpg_loss(x, W, Y, head=head, s=S, m=m, r=None)[0], rtol=1e-4)


def test_no_device_has_all_classes():
    """The largest array of a device's program is its own share of the logits."""
    mesh = make_mesh({"classes": 8})
    jaxpr = jax.make_jaxpr(lambda x, w: sharded_margin_softmax(x, w, Y, mesh=mesh))(X, jnp.ones((800, DIM)))
    inside = next(eqn for eqn in jaxpr.eqns if eqn.primitive.name == "shard_map")
    sizes = [v.aval.size for eqn in inside.params["jaxpr"].eqns for v in eqn.outvars]
    assert max(sizes) == 16 * 100


def test_the_interclass_filter_by_hand():
    """Cosines with other classes above the threshold count as 0; the true class never does."""
    x = np.eye(2, dtype=np.float32)[[0]]
    w = np.array([[0.9, np.sqrt(1 - 0.81)], [0.8, 0.6], [0.1, np.sqrt(0.99)]], np.float32)
    mesh = make_mesh({"classes": 1}, devices=jax.devices()[:1])

    def loss(x, w):
        return sharded_margin_softmax(
            x, w, np.array([0]), mesh=mesh, s=4.0, m=0.0, interclass_threshold=0.4
        ).mean()

    expected = np.log(np.exp(3.6) + np.exp(0) + np.exp(0.4)) - 3.6
    np.testing.assert_allclose(loss(x, w), expected, rtol=1e-5)
    gradient = jax.grad(loss, 1)(x, w)
    assert not np.any(gradient[1])
    assert np.any(gradient[2])


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8))
def test_ranges(classes, shards):
    if classes < shards:
        with pytest.raises(ValueError, match="expected at least one for each"):
            shard_class_ranges(classes, shards)
        return
    starts, sizes = shard_class_ranges(classes, shards)
    np.testing.assert_array_equal(np.cumsum(sizes), np.append(starts[1:], classes))
    assert sizes.max() - sizes.min() <= 1
    rows = class_rows(classes, shards)
    padded = pad_class_shards(jnp.arange(1.0, classes + 1)[:, None], shards)[:, 0]
    assert len(padded) == padded_classes(classes, shards)
    np.testing.assert_array_equal(padded[rows], np.arange(1, classes + 1))
    assert padded.sum() == classes * (classes + 1) / 2


SIZE, BATCH = 12, 6


@pytest.fixture(scope="module")
def sampler():
    """With numbers and size traced, as inside a shard."""
    return jax.jit(
        lambda u, labels, count, present: sample_class_centres(
            None, labels, SIZE, count, u, present=present, rows=8
        )
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 8), st.integers(6, SIZE))
def test_sampling(sampler, seed, count, present):
    """The positives and the largest random numbers, as the official ``topk`` takes them."""
    rng = np.random.default_rng(seed)
    u = rng.choice(5, SIZE).astype(np.float32) / 5 if seed % 2 else rng.random(SIZE, np.float32)
    labels = np.where(rng.random(BATCH) < 0.4, -1, rng.integers(0, present, BATCH))
    positives = set(labels[labels >= 0].tolist())
    index, mask, remapped = (np.asarray(a) for a in sampler(u, labels, count, present))
    chosen = index[mask]
    assert len(chosen) == max(min(count, present), len(positives))
    assert (np.diff(chosen) > 0).all()
    assert positives <= set(chosen.tolist())
    assert chosen.max(initial=0) < present
    rest = [i for i in range(present) if i not in positives]
    drawn = [i for i in chosen if i not in positives]
    if drawn and len(drawn) < len(rest):
        assert min(u[drawn]) >= max(u[i] for i in rest if i not in drawn)
    assert (index[~mask] == -1).all()
    np.testing.assert_array_equal(chosen[remapped[labels >= 0]], labels[labels >= 0])
    assert (remapped[labels < 0] == -1).all()


def test_every_step_and_shard_samples_anew():
    mesh = make_mesh({"classes": 2}, devices=jax.devices()[:2])
    w = np.ones((200, DIM), np.float32)

    @jax.jit
    def sampled(key):
        return sharded_margin_softmax(X, w, Y, mesh=mesh, sample_rate=0.3, key=key, return_sampled=True)[1]

    first, again, other = (np.asarray(sampled(jax.random.key(k))) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.reshape(2, 100).sum(1).tolist() == [30, 30]
    assert (first[:100] != first[100:]).any()
    assert first[Y].all()


def config(**changes):
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
    given = {"apply": lambda p, x, key: x @ p, "backbone_tx": tx, "head_tx": tx, "s": S, "m": M}
    return UNPGConfig(**given | changes)


def trained(of, mesh=None, w=W, steps=3):
    state = init_unpg_state(of, {"backbone": jnp.eye(DIM), "head": jnp.asarray(w)}, jax.random.key(0))
    step = jax.jit(make_unpg_train_step(of, mesh))
    batch = {"x": X, "labels": Y}
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state, metrics


def test_a_sharded_step_is_the_unsharded():
    state, metrics = trained(config())
    mesh = make_mesh({"data": 2, "model": 4})
    ours, sharded = trained(config(axis=("model",), batch_axis=("data",)), mesh)
    close((ours.params, sharded), (state.params, metrics))


def test_rows_that_were_not_sampled():
    """They move by decay and momentum, or with sparse updates not at all."""
    mesh = make_mesh({"classes": 2}, devices=jax.devices()[:2])
    w = RNG.normal(size=(60, DIM)).astype(np.float32)
    options = {"axis": ("classes",), "sample_rate": 0.5}
    dense, _ = trained(config(**options), mesh, w, 1)
    sparse, _ = trained(config(**options, sparse_update=True), mesh, w, 1)
    _, aux = make_unpg_loss(config(**options), mesh)(
        {"backbone": jnp.eye(DIM), "head": w}, {"x": X, "labels": Y}, jax.random.fold_in(jax.random.key(0), 0)
    )
    sampled = np.asarray(aux["sampled"])
    assert 0 < sampled.sum() < 60
    np.testing.assert_array_equal(np.asarray(sparse.params["head"])[~sampled], w[~sampled])
    np.testing.assert_allclose(np.asarray(dense.params["head"])[~sampled], 0.99 * w[~sampled], rtol=1e-5)
    np.testing.assert_allclose(
        np.asarray(sparse.params["head"])[sampled], np.asarray(dense.params["head"])[sampled], rtol=1e-5
    )
    (momentum,) = (leaf for leaf in jax.tree.leaves(sparse.opt_state["head"]) if jnp.shape(leaf) == (60, DIM))
    assert not np.asarray(momentum)[~sampled].any()


def test_sparse_updates_leave_counts_alone():
    tx = update_sampled_rows(optax.adam(0.1))
    w = jnp.ones((3, 2))
    state = tx.init(w)
    updates, state = tx.update(w, state, w, sampled=jnp.array([True, False, True]))
    assert int(state[0].count) == 1
    np.testing.assert_array_equal(updates[1], 0)
    np.testing.assert_array_equal(state[0].mu[1], 0)
    assert updates[0].all()


MESH = make_mesh({"data": 2, "model": 4})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": "classes"}, "axis: the mesh has axes ('data', 'model'), not 'classes'"),
        ({"sample_rate": 0.0}, "sample_rate: expected more than 0, got 0"),
        ({"sample_rate": 1.5}, "sample_rate: expected a number from 0 to 1, got 1.5"),
        ({"sample_rate": 0.5}, "key: expected a random key with sample_rate 0.5, got None"),
        ({"interclass_threshold": -0.1}, "interclass_threshold: expected a number from 0 to 1"),
        ({"num_classes": 22}, "weights_shard: expected 22 rows, or 24 with padding for 4 shards, got 21"),
        ({"num_classes": 3}, "num_classes: expected at least one for each of 4 shards, got 3"),
        ({"uniform": np.ones(4)}, "uniform: expected one number for each row of weights_shard, (21,)"),
        ({"labels": np.full(16, 21)}, "labels: expected classes in 0..20, got labels[0] = 21"),
        ({"weights_shard": W[:, :3]}, "weights_shard: expected one row of 5 numbers"),
        ({"m": 2.0}, "m: expected a number from 0 to 1, got 2.0"),
    ],
)
def test_bad_input(changes, message):
    given = {"features": X, "weights_shard": W, "labels": Y, "axis": "model"} | changes
    with pytest.raises(ValueError, match=re.escape(message)):
        sharded_margin_softmax(mesh=MESH, **given)


def test_nan_and_labels_that_are_not_known():
    mesh = make_mesh({"classes": 2}, devices=jax.devices()[:2])
    loss = jax.jit(lambda x, y: sharded_margin_softmax(x, W, y, mesh=mesh))
    wrong = np.where(np.arange(16) == 3, CLASSES, Y)
    assert np.flatnonzero(np.isnan(loss(X, wrong))).tolist() == [3]
    bad = X.copy()
    bad[5, 0] = np.nan
    assert np.isnan(loss(bad, Y)[5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": ("model",)}, "mesh: expected a mesh for the axes of the config, got None"),
        ({"sample_rate": 0.5}, "axis: sample_rate, interclass_threshold and batch_axis need a mesh axis"),
        ({"sparse_update": True}, "sparse_update: needs a mesh axis of the classes in axis"),
    ],
)
def test_a_wrong_config(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_unpg_train_step(config(**changes))


def test_samples_need_numbers():
    with pytest.raises(ValueError, match="key: expected a random key, got None without uniform"):
        sample_class_centres(None, jnp.array([0]), 4, 2)
    with pytest.raises(
        ValueError, match=re.escape("uniform: expected one number for each row, (4,), got (3,)")
    ):
        sample_class_centres(None, jnp.array([0]), 4, 2, jnp.ones(3))
    with pytest.raises(ValueError, match="num_sample: expected 0 or more, got -1"):
        sample_class_centres(jax.random.key(0), jnp.array([0]), 4, -1)
