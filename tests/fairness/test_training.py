"""Grids of classifiers: weights, one at a time or together, on a mesh, with networks from outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg import fairness
from jaxneg.nn import mlp
from jaxneg.train import make_mesh

CONFIGS, ROWS, STEPS = 8, 40, 30
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 3)).astype(np.float32)
Y = (X @ [1.0, -2.0, 0.5] > 0).astype(int)
WEIGHT = (RNG.random((CONFIGS, ROWS)) < 0.7).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), CONFIGS)
OPTIONS = {"batch_size": 16, "learning_rate": 0.1}


def assert_close(one, other, rtol=1e-4):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5)


@pytest.fixture(scope="module")
def trained():
    return fairness.train_grid(X, Y, WEIGHT, KEYS, 4, STEPS, **OPTIONS)


def test_every_configuration_learns(trained):
    assert trained[0]["kernel"].shape == (CONFIGS, 3, 4)
    p = fairness.predict_grid(trained, X, 4)
    assert p.shape == (CONFIGS, ROWS)
    assert np.all(np.mean((np.asarray(p) > 0.5) == Y, axis=1) > 0.85)
    assert len({float(x) for x in p[:, 0]}) == CONFIGS  # each has its own weights and key


@pytest.mark.slow
def test_one_after_the_other_is_the_same(trained):
    assert_close(fairness.train_grid(X, Y, WEIGHT, KEYS, 4, STEPS, at_once=1, **OPTIONS), trained)


@pytest.mark.slow
def test_own_tables_and_labels_are_the_same(trained):
    own = np.broadcast_to(X, (CONFIGS, ROWS, 3)), np.broadcast_to(Y, (CONFIGS, ROWS))
    assert_close(fairness.train_grid(*own, WEIGHT, KEYS, 4, STEPS, **OPTIONS), trained)


def test_rows_of_weight_0_are_never_seen(trained):
    poisoned = np.where(WEIGHT[0][:, None] > 0, X, np.nan)
    found = fairness.train_grid(poisoned, Y, WEIGHT, KEYS, 4, STEPS, **OPTIONS)
    first = (jax.tree.map(lambda leaf: leaf[0], params) for params in (found, trained))
    assert_close(*first)


def test_no_row_leaves_the_network_as_it_began():
    """And does not become NaN: such a setting could not be anonymised."""
    network = fairness.dense_network(3, (4,))
    none = fairness.train_grid(X, Y, np.zeros((CONFIGS, ROWS)), KEYS, 4, STEPS, **OPTIONS)
    first = network.init(jax.random.split(KEYS[0])[0])
    assert_close(jax.tree.map(lambda leaf: leaf[0], none), first)


@pytest.mark.parametrize("explicit", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_mesh_over_configurations(trained, explicit):
    mesh = make_mesh({"config": 8}, explicit=explicit)
    sharded = fairness.train_grid(X, Y, WEIGHT, KEYS, 4, STEPS, mesh=mesh, **OPTIONS)
    assert len(sharded[0]["kernel"].sharding.device_set) == 8
    assert_close(sharded, trained)
    with pytest.raises(ValueError, match="mesh: expected an axis 'config' whose size divides 3"):
        fairness.train_grid(X, Y, WEIGHT[:3], KEYS[:3], 4, STEPS, mesh=mesh)


@pytest.mark.slow
def test_a_network_from_outside():
    network = mlp(3, (4,), (1,))
    params = fairness.train_grid(X, Y, WEIGHT[:2], KEYS[:2], steps=100, network=network, **OPTIONS)
    p = fairness.predict_grid(params, X, network=network)
    assert np.all(np.mean((np.asarray(p) > 0.5) == Y, axis=1) > 0.85)


@pytest.mark.slow
def test_logistic_regression_is_the_maximum_likelihood():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 2))
    y = (rng.random(400) < 1 / (1 + np.exp(-x @ [1.0, -0.5] - 0.3))).astype(int)
    weight = (rng.random(400) < 0.8).astype(np.float32)
    params = fairness.train_grid(x, y, weight[None], KEYS[:1], 0, 4000, batch_size=256, learning_rate=2e-3)
    kept = weight > 0
    expected = LogisticRegression(C=1e6).fit(x[kept], y[kept])
    np.testing.assert_allclose(params[0]["kernel"][0, :, 0], expected.coef_[0], atol=0.08)
    np.testing.assert_allclose(params[0]["bias"][0, 0], expected.intercept_[0], atol=0.08)


def test_what_is_refused():
    for arguments, message in (
        ((X, Y[:-1], WEIGHT, KEYS), r"features, y, weight: expected \[rows, features\], \[rows\]"),
        ((X, Y, WEIGHT[0], KEYS), r"features, y, weight: expected"),
        ((X[None], Y, WEIGHT, KEYS), "features: expected 8 configurations, as weight has, got 1"),
        ((X, Y, WEIGHT, KEYS[:2]), "keys: expected 8 configurations, as weight has, got 2"),
        ((X, Y, WEIGHT, jax.random.key(0)), "keys: expected one typed key for each of 8 configurations"),
        ((X, Y, WEIGHT, KEYS, 4, 0), "steps, batch_size, at_once: expected at least 1, got 0"),
        ((X, Y, WEIGHT, KEYS, (4, 0)), "features, hidden: expected positive sizes"),
    ):
        with pytest.raises(ValueError, match=message):
            fairness.train_grid(*arguments)
    with pytest.raises(ValueError, match="features: expected tables, got shape"):
        fairness.predict_grid([], jnp.ones(3))
