"""Conditions that are dropped: which rows, what takes their place, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.diffusion import drop_condition, null_like

CONDITIONS = {"label": jnp.arange(16), "prompt": jnp.ones((16, 4, 6), jnp.bfloat16)}
NULL = {"label": 99, "prompt": np.zeros((4, 6))}


def test_a_row_is_dropped_from_all_leaves_or_from_none():
    dropped = drop_condition(jax.random.key(0), CONDITIONS, NULL, 0.5)
    gone = np.asarray(dropped["label"]) == 99
    assert 0 < gone.sum() < 16
    np.testing.assert_array_equal(np.asarray(dropped["prompt"] == 0).all((1, 2)), gone)
    np.testing.assert_array_equal(np.asarray(dropped["prompt"] == 1).all((1, 2)), ~gone)
    assert dropped["prompt"].dtype == jnp.bfloat16
    assert dropped["label"].dtype == CONDITIONS["label"].dtype


def test_the_rate():
    labels = jnp.zeros(4000, int)
    share = float(drop_condition(jax.random.key(1), labels, 1, 0.2).mean())
    assert share == pytest.approx(0.2, abs=5 * (0.16 / 4000) ** 0.5)
    assert drop_condition(jax.random.key(1), labels, 1, 0.0) is labels
    assert drop_condition(jax.random.key(1), None, None, 0.5) is None
    traced = jax.jit(lambda rate: drop_condition(jax.random.key(1), labels, 1, rate))
    assert float(traced(0.2).mean()) == share
    assert float(traced(0.0).mean()) == 0


def test_null_rows():
    nulls = null_like(NULL, CONDITIONS)
    assert nulls["label"].tolist() == [99] * 16
    assert nulls["prompt"].shape == (16, 4, 6)
    # One null condition for each example is as good.
    np.testing.assert_array_equal(null_like(jnp.arange(16), jnp.zeros(16, int)), np.arange(16))


def test_explicit_axes_keep_the_shardings():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    expected = drop_condition(jax.random.key(0), CONDITIONS, NULL, 0.5)
    with jax.set_mesh(mesh):
        placed = {
            "label": jax.device_put(CONDITIONS["label"], NamedSharding(mesh, P("data"))),
            "prompt": jax.device_put(CONDITIONS["prompt"], NamedSharding(mesh, P("data", None, "model"))),
        }
        ours = jax.jit(lambda cond: drop_condition(jax.random.key(0), cond, NULL, 0.5))(placed)
        assert jax.typeof(ours["prompt"]).sharding.spec == P("data", None, "model")
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_bad_input():
    with pytest.raises(ValueError, match=r"rate: expected a number between 0 and 1, got 1\.5"):
        drop_condition(jax.random.key(0), CONDITIONS, NULL, 1.5)
    with pytest.raises(ValueError, match="null_cond: expected the structure of cond, PyTreeDef"):
        null_like(0, CONDITIONS)
    wrong = {**NULL, "prompt": np.zeros((5, 6))}
    message = r"null_cond prompt: expected to broadcast to \(16, 4, 6\), got shape \(5, 6\)"
    with pytest.raises(ValueError, match=message):
        null_like(wrong, CONDITIONS)
