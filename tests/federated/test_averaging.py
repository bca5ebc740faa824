"""Averaging: weights, who is left out, FedProx's term, devices, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxneg.federated import federated_average, finite_clients, proximal_penalty, stack_clients


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=6).filter(lambda w: sum(w) > 0.1))
def test_brute_force(weights):
    leaves = np.random.default_rng(0).normal(size=(len(weights), 2, 3)).astype("f4")
    ours = federated_average({"w": jnp.asarray(leaves)}, jnp.array(weights))["w"]
    np.testing.assert_allclose(ours, np.average(leaves, axis=0, weights=weights), rtol=1e-4, atol=1e-5)


def test_a_client_without_weight_may_hold_anything():
    leaves = jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf]])
    np.testing.assert_array_equal(federated_average([leaves], jnp.array([1.0, 0.0]))[0], leaves[0])


def test_bfloat16_is_summed_in_float32():
    leaves = jnp.array([256.0] + [1.0] * 255, jnp.bfloat16)[:, None]
    average = federated_average(leaves)
    assert average.dtype == jnp.bfloat16
    assert float(average[0]) == float(jnp.bfloat16(511 / 256))


def test_devices_add_up():
    leaves = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    weights = jnp.arange(8.0)
    spread = jax.shard_map(
        lambda x, w: federated_average(x, w, axis_name="client"),
        mesh=jax.make_mesh(
            (4,), ("client",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4]
        ),
        in_specs=jax.P("client"),
        out_specs=jax.P(),
    )
    np.testing.assert_allclose(spread(leaves, weights), federated_average(leaves, weights), rtol=1e-6)


def test_gradient_is_the_share():
    grad = jax.grad(lambda x: federated_average(x, jnp.array([1.0, 3.0])).sum())(jnp.ones((2, 1)))
    np.testing.assert_allclose(grad, [[0.25], [0.75]])


def test_proximal_penalty():
    value, grad = jax.value_and_grad(proximal_penalty)({"w": jnp.array([3.0, 1.0])}, {"w": jnp.ones(2)}, 0.5)
    np.testing.assert_allclose(value, 1.0)
    np.testing.assert_allclose(grad["w"], [1.0, 0.0])
    np.testing.assert_array_equal(
        jax.grad(proximal_penalty, argnums=1)({"w": jnp.ones(2)}, {"w": jnp.zeros(2)}, 1.0)["w"], 0
    )
    with pytest.raises(ValueError, match="mu: expected a number that is not negative, got -1"):
        proximal_penalty({"w": jnp.ones(1)}, {"w": jnp.ones(1)}, -1)


def test_finite_clients_looks_at_every_array():
    tree = {
        "a": jnp.array([1.0, jnp.inf, 1.0]),
        "b": jnp.array([[1.0], [1.0], [jnp.nan]]),
        "n": jnp.arange(3),
    }
    assert finite_clients(tree).tolist() == [True, False, False]


def test_malformed_clients_are_named():
    good = {"a": np.ones(2, "f4"), "b": np.ones(1, "f4")}
    sent = {
        "whole": good,
        "short": {"a": np.ones(2, "f4")},
        "long": good | {"c": np.ones(1)},
        "wide": good | {"a": np.ones(3, "f4")},
        "other": good | {"a": np.ones(2, "i4")},
        "broken": good | {"b": np.array([np.nan], "f4")},
    }
    stacked = stack_clients(list(sent.values()), good, list(sent))
    assert stacked.names == ("whole",)
    assert stacked.tree["a"].shape == (1, 2)
    assert stacked.left_out == {
        "short": "'b' is missing",
        "long": "'c' is too much",
        "wide": "'a': expected shape (2,), got (3,)",
        "other": "'a': expected float32, got int32",
        "broken": "'b' is not finite",
    }


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: federated_average({}), ValueError, "stacked_tree: expected arrays with a leading axis"),
        (lambda: federated_average(jnp.ones(())), ValueError, "stacked_tree: '' has leading axis"),
        (
            lambda: federated_average({"a": jnp.ones(2), "b": jnp.ones(3)}),
            ValueError,
            r"stacked_tree: 'b' has leading axis \(3,\), expected \(2,\) as 'a'",
        ),
        (lambda: federated_average({"a": jnp.arange(2)}), TypeError, "'a': expected a floating dtype"),
        (
            lambda: federated_average(jnp.ones((2, 1)), jnp.ones(3)),
            ValueError,
            "weights: expected one number",
        ),
        (
            lambda: federated_average(jnp.ones((1, 1)), jnp.array([-1.0])),
            ValueError,
            "weights: expected finite",
        ),
        (lambda: stack_clients([{"a": np.ones(1)}], {"a": np.ones(2)}), ValueError, "at least one client"),
        (lambda: stack_clients([1.0, 2.0], 1.0, ["a", "a"]), ValueError, "names: expected a name of its own"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
