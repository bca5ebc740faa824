"""UNPG: brute force, limits, dtypes, a batch on many devices, and what it refuses."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.face import box_whisker_mask, margin_logits, unpg_log_partition, unpg_loss
from jaxneg.face.order_statistics import kth_smallest
from jaxneg.train import make_mesh
from jaxneg.train.compile import matmul_flops

S, M, CLASSES = 16.0, 0.35, 6


def example(seed=0, batch=16, dim=5):
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(batch, dim)), rng.normal(size=(CLASSES, dim))
    return x.astype(np.float32), w.astype(np.float32), rng.integers(0, CLASSES, batch)


@pytest.fixture(scope="module")
def program():
    """Loss, gradients and statistics; the whiskers are an argument."""

    def mean(x, w, y, r):
        losses, aux = unpg_loss(x, w, y, s=S, m=M, r=r)
        return losses.mean(), (losses, aux)

    return jax.jit(jax.value_and_grad(mean, (0, 1), has_aux=True))


def brute_force(x, w, y, r):
    """The official form in float64: the kept pairs beside each row of the logits."""
    x, w = (
        a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x.astype(np.float64), w.astype(np.float64))
    )
    pairs = np.sort([x[i] @ x[j] for i in range(len(x)) for j in range(i + 1, len(x)) if y[i] != y[j]])
    found = len(pairs)
    if found and np.isfinite(r):
        q1, q3 = pairs[found // 4], pairs[3 * found // 4]
        pairs = pairs[(pairs >= q1 - r * (q3 - q1)) & (pairs <= q3 + r * (q3 - q1))]
    logits = S * (x @ w.T)
    logits[np.arange(len(x)), y] -= S * M
    rows = np.concatenate([logits, np.tile(S * pairs, (len(x), 1))], 1)
    return np.log(np.exp(rows).sum(1)) - logits[np.arange(len(x)), y], found, len(pairs)


@pytest.mark.parametrize("r", [0.0, 0.5, 1.5, np.inf])
def test_it_is_the_official_form(program, r):
    x, w, y = example(1)
    (_, (losses, aux)), _ = program(x, w, y, r)
    expected, found, kept = brute_force(x, w, y, r)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    assert (int(aux["n_neg"]), int(aux["n_kept"])) == (found, kept)


def test_gradients_of_the_scalar_are_those_of_the_pairs(program):
    """Of each pair ``s mean_i exp(s v) / Z_i``, as the spec has it, by finite differences."""
    x, w, y = example(2)
    _, gradients = program(x, w, y, np.inf)
    for array, gradient, at in ((x, gradients[0], (3, 1)), (w, gradients[1], (2, 4))):
        values = []
        for change in (1e-6, -1e-6):
            moved = {"x": x.astype(np.float64), "w": w.astype(np.float64)}
            moved["x" if array is x else "w"][at] += change
            values.append(brute_force(moved["x"], moved["w"], y, np.inf)[0].mean())
        np.testing.assert_allclose(gradient[at], (values[0] - values[1]) / 2e-6, rtol=2e-3, atol=1e-5)


def test_without_pairs_it_is_the_plain_head(program):
    """One class in the batch; and the filter that keeps nothing is never reached: M = 1 keeps its pair."""
    x, w, _ = example()
    y = np.full(len(x), 2)
    (_, (losses, aux)), gradients = program(x, w, y, 1.5)
    plain = unpg_loss(x, w, y, s=S, m=M, r=None)[0]
    np.testing.assert_allclose(losses, plain, rtol=1e-6)
    assert np.isneginf(aux["log_partition"])
    assert all(np.isfinite(g).all() for g in gradients)
    A, stats = unpg_log_partition(x[:2], np.array([0, 1]), s=S)
    unit = x[:2] / np.linalg.norm(x[:2], axis=1, keepdims=True)
    np.testing.assert_allclose(A, S * unit[0] @ unit[1], rtol=1e-5)
    assert int(stats["n_kept"]) == 1


def test_one_class_in_all():
    """Neither another centre nor a pair: nothing to tell apart, a loss of 0, gradients of 0."""
    x, w, _ = example()
    loss, gradient = jax.value_and_grad(lambda x: unpg_loss(x, w[:1], np.zeros(16, int))[0].sum())(x)
    assert loss == 0
    assert not np.any(gradient)


def test_no_pair_is_ever_beside_a_row():
    """No array of the program is as large as [batch, classes + pairs]: memory is O(B K + B^2)."""
    batch, classes = 64, 10
    x = jnp.ones((batch, 4))
    jaxpr = jax.make_jaxpr(jax.grad(lambda x, w, y: unpg_loss(x, w, y)[0].mean(), (0, 1)))(
        x, jnp.ones((classes, 4)), jnp.zeros(batch, int)
    )

    def sizes(jaxpr):
        for eqn in jaxpr.eqns:
            yield from (v.aval.size for v in eqn.outvars if hasattr(v.aval, "size"))
            for value in jax.tree.leaves(
                eqn.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
            ):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from sizes(inner)

    assert max(sizes(jaxpr.jaxpr)) == batch * batch
    products = 2 * batch * 4 * (batch + classes)
    assert matmul_flops(jaxpr) <= 3 * products


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 1.0, 1.5, np.inf]))
def test_the_order_of_the_batch_does_not_matter(program, seed, r):
    x, w, y = example(seed)
    order = np.random.default_rng(seed).permutation(len(x))
    (_, (losses, _)), _ = program(x, w, y, r)
    (_, (moved, _)), _ = program(x[order], w, y[order], r)
    np.testing.assert_allclose(moved, np.asarray(losses)[order], rtol=1e-4, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_pairs_only_add_to_the_loss(program, seed):
    x, w, y = example(seed)
    (_, (some, _)), _ = program(x, w, y, 0.5)
    (_, (all_pairs, _)), _ = program(x, w, y, np.inf)
    plain = unpg_loss(x, w, y, s=S, m=M, r=None)[0]
    assert np.all(np.asarray(plain) <= np.asarray(some) + 1e-5)
    assert np.all(np.asarray(some) <= np.asarray(all_pairs) + 1e-5)


def test_lengths_do_not_matter(program):
    x, w, y = example(3)
    (_, (losses, _)), gradients = program(x, w, y, 1.5)
    (_, (scaled, _)), _ = program(7 * x, 0.1 * w, y, 1.5)
    np.testing.assert_allclose(scaled, losses, rtol=1e-4)
    np.testing.assert_allclose(np.sum(gradients[0] * x, 1), 0, atol=1e-5)


def test_bfloat16_is_computed_in_float32():
    x, w, y = example(4)
    x = jnp.asarray(x, jnp.bfloat16)
    losses, aux = unpg_loss(x, w, y, s=S, m=M)
    assert losses.dtype == aux["log_partition"].dtype == jnp.float32
    np.testing.assert_allclose(losses, unpg_loss(x.astype(jnp.float32), w, y, s=S, m=M)[0], rtol=1e-6)


def test_mapped_over_batches():
    x, w, y = example(5, 8)
    batches = jnp.stack([x, x[::-1]])
    together = jax.vmap(lambda x, y: unpg_loss(x, w, y, s=S, m=M)[0])(batches, jnp.stack([y, y[::-1]]))
    np.testing.assert_allclose(together[0], unpg_loss(x, w, y, s=S, m=M)[0], rtol=1e-5)
    np.testing.assert_allclose(together[1], together[0][::-1], rtol=1e-5)


def test_the_batch_on_many_devices(program):
    """Pairs, quartiles and A of the whole batch, and its gradients, where each device has four examples."""
    x, w, y = example(6, 16)
    (loss, (_, aux)), gradients = program(x, w, y, 1.5)
    mesh = make_mesh({"data": 4, "model": 2})

    def part(x, w, y):
        losses, aux = unpg_loss(x, w, y, s=S, m=M, axis_name="data")
        counts = {name: aux[name] for name in ("n_neg", "n_kept", "lower", "log_partition")}
        return jax.lax.pmean(losses.mean(), "data"), counts

    split = jax.shard_map(part, mesh=mesh, in_specs=(P("data"), P(), P("data")), out_specs=P())
    (found, counts), sharded = jax.jit(jax.value_and_grad(split, (0, 1), has_aux=True))(x, w, y)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    for name, value in counts.items():
        np.testing.assert_allclose(value, aux[name], rtol=1e-5)
    for ours, whole in zip(sharded, gradients, strict=True):
        np.testing.assert_allclose(ours, whole, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("explicit", [False, True])
def test_sharded_arguments(program, explicit):
    x, w, y = example(7, 16)
    w = np.concatenate([w, w[:2]])
    expected, gradients = jax.value_and_grad(lambda x: unpg_loss(x, w, y, s=S, m=M)[0].mean())(x)
    mesh = make_mesh({"data": 4, "model": 2}, explicit=explicit)
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(array, NamedSharding(mesh, P(axis)))
            for array, axis in ((x, "data"), (w, "model"), (y, "data"))
        ]
        step = jax.jit(jax.value_and_grad(lambda x, w, y: unpg_loss(x, w, y, s=S, m=M)[0].mean()))
        loss, gradient = step(*placed)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, gradients, rtol=1e-3, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=12), st.data())
def test_order_statistics(values, data):
    x = np.zeros(12, np.float32)
    x[: len(values)] = values
    mask = np.arange(12) < len(values)
    rank = data.draw(st.integers(0, len(values) - 1))
    found = kth_smallest(jnp.asarray(x), jnp.asarray(mask), jnp.array([rank]))
    assert found[0] == np.sort(x[mask])[rank]


def test_the_filter_with_whiskers_that_are_traced():
    x = jnp.array([0.1, 0.2, 0.3, 0.4, 9.0])
    for r, kept in ((1.5, 4), (np.inf, 5), (0.0, 3)):
        assert int(jax.jit(lambda r: box_whisker_mask(x, r=r)[0].sum())(r)) == kept
    equal = box_whisker_mask(jnp.ones(4), r=jnp.inf)[0]
    assert bool(equal.all())


def test_nan_does_not_pass():
    x, w, y = example()
    x[3, 2] = np.nan
    assert np.isnan(unpg_loss(x, w, y)[0]).any()
    x, w, _ = example()
    w[y[0], 0] = np.nan
    assert np.isnan(unpg_loss(x, w, y)[0]).any()


def test_a_label_of_no_class_is_nan_where_it_is_not_known():
    x, w, y = example()
    y[5] = CLASSES
    losses = jax.jit(lambda y: unpg_loss(x, w, y)[0])(y)
    assert np.isnan(losses[5])
    assert np.isfinite(np.delete(losses, 5)).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": np.arange(16)}, ValueError, "labels: expected classes in 0..5, got labels[6] = 6"),
        ({"labels": np.full(16, -1)}, ValueError, "labels: expected classes in 0..5, got labels[0] = -1"),
        ({"labels": np.zeros(3, int)}, ValueError, "labels: expected one for each example, shape (16,)"),
        ({"labels": np.zeros(16)}, TypeError, "labels: expected integers, got dtype float"),
        ({"features": np.zeros((16, 5), int)}, TypeError, "features: expected a floating dtype, got int"),
        ({"features": np.zeros(5, np.float32)}, ValueError, "features: expected [batch, dim]"),
        ({"weights": np.zeros((6, 4), np.float32)}, ValueError, "weights: expected one row of 5 numbers"),
        ({"head": "sphere"}, ValueError, "head: expected one of softmax, normface, cosface"),
        ({"s": 0.0}, ValueError, "s: expected a positive finite number, got 0.0"),
        ({"s": np.nan}, ValueError, "s: expected a positive finite number, got nan"),
        ({"m": -0.1}, ValueError, "m: expected a number from 0 to 1, got -0.1"),
        ({"m": np.nan}, ValueError, "m: expected a number from 0 to 1, got nan"),
        (
            {"head": "arcface", "m": 4.0},
            ValueError,
            "m: expected a number from 0 to 3.14159 radians, got 4.0",
        ),
        ({"head": "sphereface", "m": 0.5}, ValueError, "m: expected a whole number from 1, got 0.5"),
        ({"head": "combined", "m": (1.0, 0.2)}, ValueError, "m: expected three margins"),
        ({"head": "magface", "mag": {"l_a": 9.0, "u_a": 3.0}}, ValueError, "mag.u_a: expected more than"),
        ({"head": "magface", "mag": {"l_b": 9.0}}, ValueError, "mag: expected l_a, u_a, l_m, u_m, lambda_g"),
        ({"r": -1.0}, ValueError, "r: expected 0 or more, or infinity, got -1.0"),
        ({"r": np.nan}, ValueError, "r: expected 0 or more, or infinity, got nan"),
        ({"s": None}, ValueError, "s: expected a number; only sphereface"),
    ],
)
def test_bad_input(changes, error, message):
    x, w, y = example()
    given = {"features": x, "weights": w, "labels": y} | changes
    with pytest.raises(error, match=re.escape(message)):
        unpg_loss(given.pop("features"), given.pop("weights"), given.pop("labels"), **given)


def test_the_plain_head_is_the_cross_entropy_of_its_logits():
    x, w, y = example(8)
    for kind, m in (("softmax", 0), ("arcface", 0.4), ("sphereface", 4), ("combined", (1.0, 0.3, 0.1))):
        logits, _ = margin_logits(x, w, y, kind=kind, s=S, m=m)
        expected = -jax.nn.log_softmax(logits)[np.arange(len(y)), y]
        losses = unpg_loss(x, w, y, head=kind, s=S, m=m, r=None)[0]
        np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
