"""View-conditioned prompts and weights: goldens, symmetry, limits, transformations, sharding, bad input."""

import re
from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxneg.diffusion import rotation_embeddings, view_embeddings, view_index, view_weights
from jaxneg.diffusion.view_weights import VIEWS

# The goldens' README: rtol 1e-9, in float32 rtol 2e-5 and atol 1e-5; their weights are float32: 1e-6.
TOLERANCES = {np.float64: {"rtol": 1e-9, "atol": 1e-12}, np.float32: {"rtol": 2e-5, "atol": 1e-5}}
WEIGHTS = {"rtol": 1e-6, "atol": 1e-6}

# What only the README of the goldens says: degrees.
THRESHOLDS = {"front_threshold": 45.0, "back_threshold": 45.0, "overhead_threshold": 60.0}

# Compiled: op by op they would be compiled one by one. Parameters are traced.
DREAMFUSION = jax.jit(view_weights, static_argnames="schedule")
THREESTUDIO = partial(DREAMFUSION, schedule="threestudio")
EMBED = jax.jit(view_embeddings, static_argnames="schedule")
# Where the weights are not continuous, degrees: rounding decides there.
JUMPS = (18, 72, 90, 108)
AZIMUTHS = np.linspace(-200, 380, 59, dtype=np.float32)
TABLE = {view: np.eye(5, dtype=np.float32)[i].reshape(5, 1) for i, view in enumerate(VIEWS)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.golden("perp_neg", "views_sdf.npz")
def test_stable_dreamfusion(golden, dtype):
    with jax.enable_x64(dtype is np.float64):
        table = {view: golden[view][0].astype(dtype) for view in VIEWS[:3]}
        azimuth = golden["azimuth_deg"].astype(dtype)
        given = {
            "negative_w": float(golden["negative_w"]),
            "front_decay": float(golden["front_decay_factor"]),
            "side_decay": float(golden["side_decay_factor"]),
        }
        pos, neg, weights = jax.jit(lambda azimuth: view_embeddings(table, azimuth, **given))(azimuth)
        text = np.concatenate([np.asarray(pos)[:, None], neg], axis=1)
        assert text.dtype == dtype
        weights = np.concatenate([np.ones((len(azimuth), 1)), weights], axis=1)
        np.testing.assert_allclose(text, golden["text_z"], **TOLERANCES[dtype])
        tolerance = WEIGHTS if dtype is np.float64 else TOLERANCES[dtype]
        np.testing.assert_allclose(weights, golden["weights"], **tolerance)
        # Their batch lays prompt after prompt.
        prompt_major = np.moveaxis(text, 1, 0).reshape(golden["batched_text_z"].shape)
        np.testing.assert_allclose(prompt_major, golden["batched_text_z"], **TOLERANCES[dtype])
        np.testing.assert_allclose(weights.T.reshape(-1), golden["batched_weights"], **tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.golden("perp_neg", "views_threestudio.npz")
def test_threestudio(golden, dtype):
    with jax.enable_x64(dtype is np.float64):
        rows, empty = (
            golden[f"{name}_side_front_back_overhead"].astype(dtype)[[1, 0, 2, 3]]
            for name in ("emb", "uncond")
        )
        table = {**dict(zip(VIEWS, rows, strict=False)), "uncond": empty[VIEWS.index("overhead")]}
        given = {name: tuple(golden[name].tolist()) for name in golden if name.startswith("f_")}
        angles = [golden[f"{name}_deg"].astype(dtype) for name in ("azimuth", "elevation")]

        @jax.jit
        def found(*angles):
            return (
                *view_embeddings(table, *angles, schedule="threestudio", **given),
                jnp.asarray(empty)[view_index(*angles, **THRESHOLDS)],
            )

        names = ("pos", "neg", "neg_weights", "uncond")
        for name, array in zip(names, found(*angles), strict=True):
            weights = name == "neg_weights" and dtype is np.float64
            tolerance = WEIGHTS if weights else TOLERANCES[dtype]
            np.testing.assert_allclose(array, golden[name], err_msg=name, **tolerance)


@settings(deadline=None, max_examples=10)
@given(st.floats(-170, 170), st.integers(-3, 3))
def test_left_is_as_right_and_turns_are_nothing(phi, turns):
    assume(min(abs(abs(phi) - jump) for jump in JUMPS) > 0.01)
    for weights in (DREAMFUSION, THREESTUDIO):
        found = weights(jnp.array([phi, -phi, phi + 360.0 * turns], jnp.float32))
        for array in found.values():
            np.testing.assert_allclose(array[1:], array[:1].repeat(2, 0), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("schedule", ["dreamfusion", "threestudio"])
def test_embeddings_are_those_of_the_weights(schedule):
    """Negatives by their index, shares by r, between the two views of the sector."""
    found = DREAMFUSION(AZIMUTHS, schedule=schedule)
    pos, neg, weights = EMBED(TABLE, AZIMUTHS, schedule=schedule)
    np.testing.assert_allclose(weights, found["weights"], rtol=1e-5, atol=1e-6)
    stacked = np.stack(list(TABLE.values()))
    np.testing.assert_array_equal(neg, stacked[found["neg_index"]])
    sector, r = np.asarray(found["sector"]), np.asarray(found["r"])[:, None, None]
    np.testing.assert_allclose(pos, r * stacked[sector] + (1 - r) * stacked[sector + 1], atol=1e-6)
    assert float(r.min()) >= -1e-6
    assert float(r.max()) <= 1 + 1e-6


def test_published_values():
    """The three pure views and the border, from the printed formulas."""
    found = DREAMFUSION(np.array([0.0, -90.0, 90.0, 180.0], np.float32))
    np.testing.assert_array_equal(found["sector"], [0, 0, 1, 1])
    np.testing.assert_array_equal(found["neg_index"], [[0, 1], [0, 1], [1, 0], [1, 0]])
    np.testing.assert_allclose(found["weights"], [[0, -2], [-2, 0], [0, -2], [-1, -2]], atol=1e-6)
    found = THREESTUDIO(np.array([0.0, -90.0, 90.0, 180.0], np.float32))
    np.testing.assert_array_equal(found["sector"], [0, 1, 1, 1])
    f0, f1 = 4 - 2.426, 4 * np.exp(-0.5) - 2.426
    s0, s1, b0, b1 = 1 - 0.606, np.exp(-0.5) - 0.606, 1 + 0.967, np.exp(-0.5) + 0.967
    expected = [[-f1, -f0], [-s1, -b1], [-s1, -b1], [-s0, -b0]]
    np.testing.assert_allclose(found["weights"], expected, atol=1e-6)


def test_parameters_have_an_effect():
    """Each parameter changes some weight, and only through its own formula."""
    plain = DREAMFUSION(AZIMUTHS)["weights"]
    np.testing.assert_allclose(DREAMFUSION(AZIMUTHS, negative_w=-4.0)["weights"], 2 * plain, rtol=1e-6)
    for name in ("front_decay", "side_decay"):
        assert float(np.abs(DREAMFUSION(AZIMUTHS, **{name: 1.0})["weights"] - plain).max()) > 0.1
    plain = THREESTUDIO(AZIMUTHS)["weights"]
    for name in ("f_fs", "f_sf", "f_sb", "f_fsb"):
        changed = np.asarray(THREESTUDIO(AZIMUTHS, **{name: (0.0, 0.5, 0.25)})["weights"])
        moved = changed != np.asarray(plain)
        assert moved.any()
        np.testing.assert_allclose(changed[moved], -0.25)


def test_overhead():
    """Above the threshold there is one prompt, and nothing is pushed away from."""
    elevation = np.where(np.arange(len(AZIMUTHS)) % 2, 61.0, 60.0).astype(np.float32)
    above = elevation > 60
    found = THREESTUDIO(AZIMUTHS, elevation)
    np.testing.assert_array_equal(found["sector"] == 2, above)
    assert np.all(np.asarray(found["weights"])[above] == 0)
    pos, neg, _ = EMBED(TABLE, AZIMUTHS, elevation, schedule="threestudio")
    assert np.all(np.asarray(pos)[above] == TABLE["overhead"])
    assert np.all(np.asarray(neg)[above] == TABLE["uncond"])
    below = EMBED(TABLE, AZIMUTHS[~above], schedule="threestudio")
    for array, same in zip((pos, neg, found["weights"]), below, strict=True):
        np.testing.assert_allclose(np.asarray(array)[~above], same, atol=1e-6)
    low = THREESTUDIO(AZIMUTHS, elevation, overhead_threshold=30.0)["sector"]
    assert np.all(np.asarray(low) == 2)


def test_rotation():
    z_1, z_2 = TABLE["front"], TABLE["back"]
    pos, neg = rotation_embeddings(z_1, z_2, np.array([1.0, 0.25], np.float32))
    np.testing.assert_allclose(pos, [z_1, 0.25 * z_1 + 0.75 * z_2])
    np.testing.assert_array_equal(neg, [[z_1, z_1], [z_2, z_2]])


def test_jit_vmap_and_gradient():
    plain = view_weights(AZIMUTHS)
    for other in (DREAMFUSION(AZIMUTHS), jax.jit(jax.vmap(view_weights))(AZIMUTHS[:, None])):
        for name, array in plain.items():
            np.testing.assert_allclose(np.reshape(other[name], array.shape), array, rtol=1e-5, atol=1e-6)
    # d/dphi n exp(-front_decay (1 - phi / 90)) at 45 degrees, the other weight alike.
    gradient = jax.jit(jax.jacobian(lambda phi: view_weights(phi[None])["weights"][0]))(np.float32(45.0))
    np.testing.assert_allclose(gradient, [-2 * np.exp(-1) * 2 / 90, -2 * np.exp(-5) * -10 / 90], rtol=1e-4)


def test_types_come_back(x64):
    low = {view: jnp.asarray(leaf, jnp.bfloat16) for view, leaf in TABLE.items()}
    pos, neg, weights = EMBED(low, AZIMUTHS)
    assert (pos.dtype, neg.dtype, weights.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    exact, _, wide = EMBED(TABLE, AZIMUTHS.astype(np.float64))
    assert (exact.dtype, wide.dtype) == (jnp.float32, jnp.float64)
    np.testing.assert_array_equal(pos, EMBED(TABLE, AZIMUTHS)[0].astype(jnp.bfloat16))


@pytest.mark.parametrize("kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit])
def test_sharded(kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    azimuth = AZIMUTHS[:56]
    elevation = np.where(np.arange(56) % 2, 61.0, 0.0).astype(np.float32)
    embed = partial(EMBED, TABLE, schedule="threestudio")
    expected = embed(azimuth, elevation)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec("data"))
        found = embed(jax.device_put(azimuth, sharding), jax.device_put(elevation, sharding))
    for array, same in zip(found, expected, strict=True):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)
        np.testing.assert_allclose(array, same, rtol=1e-5, atol=1e-6)


ONE = np.zeros(1, np.float32)
MISTAKES = {
    "integers": (
        lambda: view_weights(np.array([90])),
        TypeError,
        "azimuth_deg: expected a floating dtype, got int32",
    ),
    "rank": (
        lambda: view_weights(np.float32(90)),
        ValueError,
        "azimuth_deg: expected one number for each sample, [batch], got shape ()",
    ),
    "elevation": (
        lambda: THREESTUDIO(ONE, np.zeros(2, np.float32)),
        ValueError,
        "elevation_deg: expected the shape of azimuth_deg, (1,), got (2,)",
    ),
    "no overhead view": (
        lambda: view_weights(ONE, ONE),
        ValueError,
        "elevation_deg: expected None with schedule 'dreamfusion', which has no overhead view",
    ),
    "schedule": (
        lambda: view_weights(ONE, schedule="magic3d"),
        ValueError,
        "schedule: expected one of dreamfusion, threestudio, got 'magic3d'",
    ),
    "parameter": (
        lambda: view_weights(ONE, f_fs=(1.0, 1.0, 1.0)),
        TypeError,
        "params: schedule 'dreamfusion' takes negative_w, front_decay, side_decay, got f_fs",
    ),
    "view": (
        lambda: view_embeddings({"front": ONE, "side": ONE}, ONE),
        ValueError,
        "table: expected the views front, side, back, got none for back",
    ),
    "overhead": (
        lambda: view_embeddings({"front": ONE, "side": ONE, "back": ONE}, ONE, ONE, schedule="threestudio"),
        ValueError,
        "got none for overhead, uncond",
    ),
    "table": (
        lambda: view_embeddings({"front": ONE, "side": ONE, "back": np.zeros(2, np.float32)}, ONE),
        ValueError,
        "table: expected embeddings of one shape, got {'front': (1,), 'side': (1,), 'back': (2,)}",
    ),
    "rotation": (
        lambda: rotation_embeddings(ONE, np.zeros(2, np.float32), ONE),
        ValueError,
        "z_2: expected the shape of z_1, (1,), got (2,)",
    ),
    "share": (
        lambda: rotation_embeddings(ONE, ONE, np.float32(0.5)),
        ValueError,
        "c: expected one number for each sample, [batch], got shape ()",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_input(mistake):
    call, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=re.escape(message)):
        call()
