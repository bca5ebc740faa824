"""Offsets and merged weights: goldens, missing leaves, dtypes, sharding, bad input."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.diffusion import merge_weights, offset

# The goldens' README: 1e-12 in float64.
TOLERANCE = 1e-12
MIXED = re.compile(r"(sd15|sdxl)_mw([\d.]+)")
MERGED = re.compile(r"theta_neg_a([\d.]+)_b([\d.]+)")


@pytest.mark.golden("self_npo", "merge*.npz")
def test_golden(golden, x64):
    theta, eta, delta = (golden.pop(name) for name in ("theta", "eta", "delta"))
    assert golden
    for name, expected in golden.items():
        if found := MIXED.fullmatch(name):
            alpha, beta = 1 - float(found[2]), 1.0
        else:
            found = MERGED.fullmatch(name)
            assert found, f"{name} has no test"
            alpha, beta = map(float, found.groups())
        ours = merge_weights({"w": theta}, {"w": eta}, {"w": delta}, alpha, beta)["w"]
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)


def trees():
    rng = np.random.default_rng(0)
    shapes = {"layers": [{"kernel": (3, 4), "bias": (4,)}, {"kernel": (4, 2)}], "scale": ()}
    return [
        jax.tree.map(
            lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )
        for _ in range(3)
    ]


def test_what_was_added_brings_the_tuned_weights_back():
    base, tuned, other = trees()
    eta, delta = offset(tuned, base), offset(other, base)
    for merged, expected in (
        (merge_weights(base, eta, delta, 0.0, 0.0), base),
        (merge_weights(base, eta, delta, 1.0, 0.0), tuned),
        (merge_weights(base, eta, delta, 0.0, 1.0), other),
        (merge_weights(base, eta, delta), jax.tree.map(lambda b, t, o: t + o - b, base, tuned, other)),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, expected)


def test_missing_leaves_count_as_zero():
    base, eta, delta = trees()
    partly = {"layers": [{"kernel": delta["layers"][0]["kernel"]}]}  # as of a LoRA on some layers
    merged = merge_weights(base, None, partly, beta=0.5)
    expected = base["layers"][0]["kernel"] + 0.5 * delta["layers"][0]["kernel"]
    np.testing.assert_array_equal(merged["layers"][0]["kernel"], expected)
    merged["layers"][0]["kernel"] = base["layers"][0]["kernel"]
    jax.tree.map(np.testing.assert_array_equal, merged, base)
    nones = jax.tree.map(lambda leaf: None, eta)
    jax.tree.map(np.testing.assert_array_equal, merge_weights(base, nones, None), base)


def test_bfloat16_weights_are_summed_in_float32():
    base = {"w": jnp.array([1.0], jnp.bfloat16)}
    tuned = {"w": jnp.array([1.0078125], jnp.bfloat16)}
    assert offset(tuned, base)["w"].dtype == jnp.float32
    # Each of the two is lost when it is added to 1 in bfloat16; their sum is not.
    small = {"w": jnp.array([0.003], jnp.float32)}
    merged = merge_weights(base, small, small)
    assert merged["w"].dtype == jnp.bfloat16
    assert float(merged["w"][0]) == 1.0078125


def test_jit_vmap_and_gradient():
    base, eta, delta = trees()
    plain = merge_weights(base, eta, delta, 0.5, 0.25)
    jitted = jax.jit(merge_weights)(base, eta, delta, 0.5, 0.25)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), jitted, plain)
    shares = jnp.array([0.0, 0.5])
    stacked = jax.vmap(lambda share: merge_weights(base, eta, delta, share, 0.25))(shares)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-6), stacked, plain)
    slope = jax.grad(lambda share: merge_weights(base, eta, delta, share)["scale"])(0.5)
    np.testing.assert_allclose(slope, eta["scale"], rtol=1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_weights_stay_where_they_are(kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=(16, 3)).astype(np.float32) for _ in range(3)]
    with jax.set_mesh(mesh):
        placed = [{"w": jax.device_put(a, NamedSharding(mesh, P("data")))} for a in arrays]
        merged = jax.jit(merge_weights)(*placed, 0.5, 0.5)["w"]
        assert merged.sharding.spec[0] == "data"
    np.testing.assert_allclose(merged, arrays[0] + (arrays[1] + arrays[2]) / 2, rtol=1e-5)


def test_bad_input():
    base, eta, _ = trees()
    with pytest.raises(ValueError, match=r"alpha: expected a number between 0 and 1, got 1\.5"):
        merge_weights(base, eta, None, 1.5)
    with pytest.raises(ValueError, match="beta: expected a number between 0 and 1, got -1"):
        merge_weights(base, eta, None, beta=-1)
    with pytest.raises(ValueError, match="negative_offset: 'extra' is no path of the base weights"):
        merge_weights(base, None, {"extra": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"positive_offset: 'scale': expected shape \(\), got \(2,\)"):
        merge_weights(base, {"scale": jnp.zeros(2)}, None)
    with pytest.raises(TypeError, match="base: 'n': expected a floating dtype, got int32"):
        merge_weights({"n": jnp.zeros(2, jnp.int32)}, None, None)
    with pytest.raises(ValueError, match="tuned: 'layers/0/bias' is missing"):
        offset({"layers": [{"kernel": jnp.zeros((3, 4))}]}, base)
