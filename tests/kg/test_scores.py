"""Scores of all models: official vectors, brute force in numpy, both sides, one against all, bad tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg import kg

GOLDEN = "scores_loss_*.npz"


def tables(golden):
    return {
        name: jnp.asarray(golden[name])
        for name in ("entity", "relation", "gamma", "modulus")
        if name in golden
    }


def model_of(request):
    return request.node.callspec.id.rpartition("_")[2]


def tolerance(model, x64=True):
    # The official pRotatE mistypes pi.
    return 1e-6 if model == "pRotatE" and x64 else 1e-10 if x64 else 1e-5


@pytest.mark.golden("lemon", GOLDEN)
def test_official_scores(golden, request, x64):
    model, params, pos = model_of(request), tables(golden), jnp.asarray(golden["pos"])
    width = params["relation"].shape[1] // kg.MODELS[model].relation_width
    assert width == int(golden["hidden_dim"])
    np.testing.assert_allclose((golden["gamma"] + 2) / width, golden["embedding_range"], rtol=1e-12)
    h, r, t = pos.T
    neg = jnp.asarray(golden["neg"])
    close = {"rtol": 0, "atol": tolerance(model)}
    np.testing.assert_allclose(kg.kge_score(model, params, h, r, t), golden["score_pos"], **close)
    np.testing.assert_allclose(kg.kge_score(model, params, neg, r, t), golden["score_head"], **close)
    np.testing.assert_allclose(kg.kge_score(model, params, h, r, neg), golden["score_tail"], **close)


@pytest.mark.golden("lemon", GOLDEN)
def test_official_scores_in_float32(golden, request):
    model, params, pos = model_of(request), tables(golden), jnp.asarray(golden["pos"])
    h, r, t = pos.T
    found = kg.kge_score(model, params, h, r, jnp.asarray(golden["neg"]))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, golden["score_tail"], rtol=0, atol=tolerance(model, False))
    np.testing.assert_allclose(
        kg.kge_score(model, params, h, r, t), golden["score_pos"], rtol=0, atol=tolerance(model, False)
    )


def brute(model, params, h, r, t):
    e, w, gamma = (np.asarray(params[name], np.float64) for name in ("entity", "relation", "gamma"))
    rho = (gamma + 2) / (w.shape[1] // kg.MODELS[model].relation_width)
    h, r, t = e[h], w[r], e[t]
    if model in ("ComplEx", "RotatE"):
        half = e.shape[1] // 2
        h, t = (x[..., :half] + 1j * x[..., half:] for x in (h, t))
    if model == "TransE":
        return gamma - np.abs(h + r - t).sum(-1)
    if model == "DistMult":
        return (h * r * t).sum(-1)
    if model == "ComplEx":
        return np.real((h * (r[..., :half] + 1j * r[..., half:]) * np.conj(t)).sum(-1))
    if model == "RotatE":
        return gamma - np.abs(h * np.exp(1j * np.pi * r / rho) - t).sum(-1)
    return gamma - float(params["modulus"][0, 0]) * np.abs(np.sin(np.pi * (h + r - t) / rho)).sum(-1)


@pytest.fixture(scope="module", params=list(kg.MODELS))
def drawn(request):
    return request.param, kg.kge_init(jax.random.key(3), request.param, 13, 3, 5, gamma=4.0)


def test_against_brute_force(drawn):
    model, params = drawn
    rng = np.random.default_rng(0)
    h, r, t = rng.integers(0, 13, 6), rng.integers(0, 3, 6), rng.integers(0, 13, (6, 4))
    expected = brute(model, params, h[:, None], r[:, None], t)
    ids = tuple(map(jnp.asarray, (h, r, t)))
    np.testing.assert_allclose(kg.kge_score(model, params, *ids), expected, atol=1e-5)
    # Compared from the other side, and with the same ids written out.
    wide = [jnp.broadcast_to(jnp.expand_dims(x, range(x.ndim, 2)), (6, 4)) for x in ids]
    np.testing.assert_allclose(kg.kge_score(model, params, *wide, side="head"), expected, atol=1e-5)


def test_one_against_all(drawn):
    model, params = drawn
    known, r = jnp.array([0, 4]), jnp.array([1, 2])
    everyone = jnp.broadcast_to(jnp.arange(13), (2, 13))
    for side in ("head", "tail"):
        query = kg.make_query(model, params, known, r, side)
        scores = jax.jit(kg.score_all, static_argnums=0)(model, params, query, params["entity"])
        ids = (known, r, everyone) if side == "tail" else (everyone, r, known)
        np.testing.assert_allclose(scores, kg.kge_score(model, params, *ids), atol=1e-5)
        twins = params["entity"].at[7].set(params["entity"][2])
        scores = kg.score_all(model, params, query, twins)
        np.testing.assert_array_equal(scores[:, 7], scores[:, 2])


def test_bfloat16_vmap_and_constant_margin(drawn):
    model, params = drawn
    ids = (jnp.array([0, 1]), jnp.array([0, 2]), jnp.array([[3, 4], [5, 6]]))
    exact = kg.kge_score(model, params, *ids)
    small = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    rough = kg.kge_score(model, small, *ids)
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, exact, atol=0.1 + 0.02 * float(jnp.max(jnp.abs(exact))))
    mapped = jax.vmap(lambda h, r, t: kg.kge_score(model, params, h, r, t))(*ids)
    np.testing.assert_allclose(mapped, exact, atol=1e-5)
    gradient = jax.grad(lambda p: jnp.sum(kg.kge_score(model, p, *ids)))(params)
    assert float(gradient["gamma"]) == 0
    assert bool(jnp.any(gradient["entity"] != 0))
    assert not bool(jnp.any(gradient["entity"][8:] != 0))


def test_rotate_has_a_gradient_where_the_distance_is_zero():
    params = {"entity": jnp.ones((2, 4)), "relation": jnp.zeros((1, 2)), "gamma": jnp.float32(6)}
    zero = jnp.zeros(1, int)
    gradient = jax.grad(lambda p: kg.kge_score("RotatE", p, zero, zero, zero + 1)[0])(params)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


def test_initial_tables():
    params = kg.kge_init(jax.random.key(0), "pRotatE", 100, 7, 4, gamma=6.0, row_multiple=16)
    assert params["entity"].shape == (112, 4)
    assert not bool(jnp.any(params["entity"][100:]))
    assert float(jnp.max(jnp.abs(params["entity"]))) <= 2.0  # rho = 8 / 4
    assert float(jnp.std(params["entity"][:100])) == pytest.approx(4 / 12**0.5, rel=0.1)
    assert float(params["modulus"][0, 0]) == 1.0
    assert "modulus" not in kg.kge_init(jax.random.key(0), "TransE", 3, 1, 2, gamma=1.0)


def test_bad_arguments():
    params = kg.kge_init(jax.random.key(0), "TransE", 5, 2, 4, gamma=6.0)
    ids = jnp.zeros(1, int)
    with pytest.raises(ValueError, match=r"model: expected one of TransE, DistMult, .* got 'TransX'"):
        kg.kge_score("TransX", params, ids, ids, ids)
    with pytest.raises(ValueError, match="model: expected one of"):
        kg.kge_init(jax.random.key(0), "TransX", 5, 2, 4, gamma=6.0)
    with pytest.raises(ValueError, match="side: expected one of head, tail, got 'both'"):
        kg.kge_score("TransE", params, ids, ids, ids, side="both")
    with pytest.raises(
        ValueError, match=r"RotatE has 2 numbers of an entity for 1 of a relation, got entity"
    ):
        kg.kge_score("RotatE", params, ids, ids, ids)
    with pytest.raises(ValueError, match=r"pRotatE needs .*\['modulus'\] missing"):
        kg.kge_score("pRotatE", params, ids, ids, ids)
    for change, message in (
        ({"nE": 0}, "nE: expected at least 1, got 0"),
        ({"d": 0}, "d: expected at least 1, got 0"),
        ({"gamma": 0.0}, "gamma: expected a positive number"),
        ({"row_multiple": 0}, "row_multiple: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            kg.kge_init(jax.random.key(0), "TransE", **{"nE": 5, "nR": 2, "d": 4, "gamma": 6.0, **change})
