"""ECI: goldens, properties, transformations, sharding, bad input."""

import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxneg.retrieval import (
    eci,
    eci_from_embeddings,
    eci_from_ids,
    efficiency,
    hardness,
    information_capacity,
    rank_sources,
    safety,
    similarities,
)

# The goldens' README: 1e-6 in float32.
TOLERANCE = 1e-6
INPUTS = {"sim_pos", "sim_neg", "mask", "threshold_tau", "capacity"}
SCORED = re.compile(r"(hardness|safety|efficiency|eci|source_score)_([a-z]+)_([a-z]+)_([a-z]+)")


def sample(seed=0, batch=16, negatives=5):
    rng = np.random.default_rng(seed)
    mask = rng.random((batch, negatives)) < 0.8
    mask[0] = False
    return (
        rng.uniform(-0.2, 1.0, batch).astype(np.float32),
        rng.uniform(-0.5, 1.0, (batch, negatives)).astype(np.float32),
        mask,
    )


def unit(rng, *shape):
    rows = rng.standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.golden("eci", "eci_[be]*.npz")
def test_golden(golden):
    sim_pos, sim_neg = (golden[name].astype(np.float32) for name in ("sim_pos", "sim_neg"))
    mask, tau = golden["mask"], float(golden["threshold_tau"])
    outputs = {name: SCORED.fullmatch(name) for name in golden if name not in INPUTS}
    assert outputs
    assert all(outputs.values()), "an array of this file has no test"
    results = {}
    for name, found in outputs.items():
        part, *options = found.groups()
        if tuple(options) not in results:
            h, s, t = options
            results[tuple(options)] = eci(sim_pos, sim_neg, mask, hardness=h, safety=s, sim01=t, tau=tau)
        ours = getattr(results[tuple(options)], {"source_score": "score"}.get(part, part))
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, golden[name], atol=TOLERANCE, rtol=0, err_msg=name)
    for result in results.values():
        np.testing.assert_allclose(result.capacity, golden["capacity"], atol=TOLERANCE, rtol=0)


def test_parts_are_available_alone():
    sim_pos, sim_neg, mask = sample()
    whole = eci(sim_pos, sim_neg, mask, hardness="max", safety="mean", sim01="affine")
    np.testing.assert_array_equal(whole.hardness, hardness(sim_neg, mask, "max", sim01="affine"))
    np.testing.assert_array_equal(whole.safety, safety(sim_pos, sim_neg, mask, "mean"))
    np.testing.assert_array_equal(whole.capacity, information_capacity(mask.sum(1)))
    np.testing.assert_array_equal(whole.efficiency, efficiency(whole.hardness, whole.safety))
    np.testing.assert_allclose(whole.unsafe_rate, np.mean(np.asarray(whole.safety) == 0))


def test_product_of_means_by_hand():
    sim_pos, sim_neg, mask = sample()
    rows = eci(sim_pos, sim_neg, mask)
    c, h, s = (float(jnp.mean(part)) for part in (rows.capacity, rows.hardness, rows.safety))
    score = eci(sim_pos, sim_neg, mask, aggregate="product_of_means").score
    assert float(score) == pytest.approx(c * 2 * h * s / (h + s), rel=1e-6)
    assert float(score) != pytest.approx(float(rows.score), rel=1e-3)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.permutations(range(5)))
def test_order_of_negatives_and_padding_do_not_matter(seed, order):
    sim_pos, sim_neg, mask = sample(seed)
    plain = eci(sim_pos, sim_neg, mask)
    shuffled = eci(sim_pos, sim_neg[:, order], mask[:, order])
    padded = eci(
        sim_pos, np.pad(sim_neg, ((0, 0), (0, 3)), constant_values=9.0), np.pad(mask, ((0, 0), (0, 3)))
    )
    for other in (shuffled, padded):
        for a, b in zip(plain, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000))
def test_bounds_and_the_unsafe_negative(seed):
    sim_pos, sim_neg, mask = sample(seed)
    result = eci(sim_pos, sim_neg, mask)
    for part in (result.hardness, result.safety, result.efficiency):
        assert float(part.min()) >= 0
        assert float(part.max()) <= 1
    assert np.all(np.asarray(result.eci) <= np.asarray(result.capacity) + 1e-6)
    unsafe = np.concatenate([sim_neg, sim_pos[:, None]], axis=1)
    assert np.all(eci(sim_pos, unsafe, np.pad(mask, ((0, 0), (0, 1)), constant_values=True)).eci == 0)


def test_rows_without_negatives_are_zero():
    for result in (
        eci(jnp.ones(3), jnp.zeros((3, 0))),
        eci(jnp.ones(3), jnp.full((3, 4), 0.5), jnp.zeros((3, 4), bool), hardness="max", sim01="affine"),
    ):
        for part in result[:6]:
            assert np.all(np.asarray(part) == 0)
        assert float(result.unsafe_rate) == 1


def test_jit_vmap_and_bfloat16():
    sim_pos, sim_neg, mask = sample()
    plain = eci(sim_pos, sim_neg, mask)
    for a, b in zip(plain, jax.jit(eci)(sim_pos, sim_neg, mask), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    stacked = jax.vmap(eci)(*(jnp.stack([x, x]) for x in (sim_pos, sim_neg, mask)))
    np.testing.assert_allclose(stacked.score, [plain.score, plain.score], rtol=1e-6)
    low = eci(jnp.asarray(sim_pos, jnp.bfloat16), jnp.asarray(sim_neg, jnp.bfloat16), mask)
    assert {part.dtype for part in low} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(low.score, plain.score, atol=0.01)


def test_float64_stays(x64):
    sim_pos, sim_neg, mask = sample()
    assert eci(sim_pos.astype(np.float64), sim_neg.astype(np.float64), mask).score.dtype == jnp.float64


def test_gradient_is_finite_and_right():
    sim_pos, sim_neg, mask = sample()
    sim_neg[1], mask[1] = 0.0, True  # hardness 0

    def score(sim_pos, sim_neg, aggregate="mean_of_products"):
        return eci(sim_pos, sim_neg, mask, aggregate=aggregate).score

    for aggregate in ("mean_of_products", "product_of_means"):
        gradients = jax.grad(score, argnums=(0, 1))(sim_pos, sim_neg, aggregate)
        assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradients)
    # One row by hand: E = 2 H S / (H + S), H = .3, S = .5, dE/ds+ = 2 H² / (H + S)².
    one = jax.grad(lambda s: eci(s, jnp.array([[0.2, 0.4]])).score)(jnp.array([0.9]))
    assert float(one[0]) == pytest.approx(np.log(3) * 2 * 0.3**2 / 0.8**2, rel=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_equals_unsharded(axis_type):
    rng = np.random.default_rng(0)
    q, p, n = unit(rng, 16, 8), unit(rng, 16, 8), unit(rng, 16, 3, 8)
    mask = rng.random((16, 3)) < 0.7
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    plain = eci_from_embeddings(q, p, n, mask)
    for rows in (PartitionSpec("data"), PartitionSpec("data", None, "model")):
        # The embedding's dimension may be sharded too.
        spec = [
            PartitionSpec("data", *rows[2:]),
            PartitionSpec("data", *rows[2:]),
            rows,
            PartitionSpec("data"),
        ]
        placed = [
            jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip((q, p, n, mask), spec, strict=True)
        ]
        with jax.set_mesh(mesh):
            sharded = jax.jit(eci_from_embeddings)(*placed)
            gradient = jax.jit(jax.grad(lambda q, *rest: eci_from_embeddings(q, *rest).score))(*placed)
        for a, b in zip(plain, sharded, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
        expected = jax.grad(lambda q: eci_from_embeddings(q, p, n, mask).score)(jnp.asarray(q))
        np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize(
    "aggregate", ["mean_of_products", pytest.param("product_of_means", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_shard_map_completes_the_means(aggregate):
    sim_pos, sim_neg, mask = sample()
    mesh = jax.make_mesh((8,), ("data",))
    plain = eci(sim_pos, sim_neg, mask, aggregate=aggregate)

    def scores(*rows):
        result = eci(*rows, aggregate=aggregate, axis_name="data")
        return result.score, result.unsafe_rate

    split = PartitionSpec("data")
    mapped = jax.shard_map(scores, mesh=mesh, in_specs=(split,) * 3, out_specs=PartitionSpec())
    placed = jax.device_put((sim_pos, sim_neg, mask), NamedSharding(mesh, split))
    np.testing.assert_allclose(mapped(*placed), (plain.score, plain.unsafe_rate), rtol=1e-6)


def test_embeddings_agree_with_similarities():
    rng = np.random.default_rng(0)
    q, p, n = unit(rng, 6, 8), unit(rng, 6, 8), unit(rng, 6, 3, 8)
    sim_pos, sim_neg = similarities(*(jnp.asarray(x) for x in (q, p, n)))
    np.testing.assert_allclose(sim_neg, np.einsum("bd,bkd->bk", q, n), atol=1e-6)
    np.testing.assert_array_equal(eci_from_embeddings(q, p, n).eci, eci(sim_pos, sim_neg).eci)
    low = eci_from_embeddings(*(jnp.asarray(x, jnp.bfloat16) for x in (q, p, n)))
    np.testing.assert_allclose(low.score, eci(sim_pos, sim_neg).score, atol=0.01)


def test_rank_sources():
    sim_pos = jnp.full(4, 0.9)
    sources = {
        "easy": (sim_pos, jnp.full((4, 2), 0.05), None),
        "hard": (sim_pos, jnp.full((4, 2), 0.5), None),
        "unsafe": (sim_pos, jnp.full((4, 2), 0.95), None),
        "hard, more of them": (sim_pos, jnp.full((4, 8), 0.5), None),
    }
    table = rank_sources(sources)
    assert [row.name for row in table] == ["hard, more of them", "hard", "easy", "unsafe"]
    assert table[-1].unsafe_rate == 1
    assert table[-1].score == 0
    assert table[1].score == pytest.approx(table[1].capacity * table[1].efficiency, rel=1e-5)
    with pytest.warns(UserWarning, match="'easy' and 'other' differ in sim_pos"):
        rank_sources({"easy": sources["easy"], "other": (sim_pos / 2, jnp.zeros((4, 2)), None)})
    with pytest.raises(ValueError, match="sources: expected at least one source"):
        rank_sources({})


def test_bad_input():
    sim_pos, sim_neg, mask = sample()
    cases = [
        (ValueError, "sim_neg: expected at least one row", lambda: eci(jnp.zeros(0), jnp.zeros((0, 3)))),
        (
            ValueError,
            r"sim_neg: expected shape \[batch, negatives\], got \(5,\)",
            lambda: eci(sim_pos, sim_neg[0]),
        ),
        (ValueError, r"sim_pos: expected .*\(16,\), got \(3,\)", lambda: eci(sim_pos[:3], sim_neg)),
        (
            ValueError,
            r"mask: expected shape \(16, 5\), got \(16, 2\)",
            lambda: eci(sim_pos, sim_neg, mask[:, :2]),
        ),
        (TypeError, "mask: expected a boolean array, got dtype int", lambda: eci(sim_pos, sim_neg, mask * 1)),
        (
            ValueError,
            "hardness: expected one of max, mean, got 'min'",
            lambda: eci(sim_pos, sim_neg, hardness="min"),
        ),
        (
            ValueError,
            "safety: expected one of fraction, max, mean, threshold, got 'none'",
            lambda: eci(sim_pos, sim_neg, safety="none"),
        ),
        (ValueError, "sim01: expected one of affine, clip", lambda: eci(sim_pos, sim_neg, sim01="raw")),
        (
            ValueError,
            "aggregate: expected one of mean_of_products, product_of_means, got 'sum'",
            lambda: eci(sim_pos, sim_neg, aggregate="sum"),
        ),
        (ValueError, "kind: expected one of", lambda: hardness(sim_neg, kind="median")),
        (ValueError, "kind: expected one of", lambda: safety(sim_pos, sim_neg, kind="median")),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()


def test_embeddings_must_have_unit_length():
    rng = np.random.default_rng(0)
    q, p, n = unit(rng, 4, 8), unit(rng, 4, 8), unit(rng, 4, 3, 8)
    with pytest.raises(ValueError, match=r"p: expected rows of length 1.*row \(0,\) has length 2.*4 of 4"):
        eci_from_embeddings(q, 2 * p, n)
    long = n.copy()
    long[2, 1] *= 3
    with pytest.raises(ValueError, match=r"n: expected rows of length 1.*row \(2, 1\) has length 3"):
        eci_from_embeddings(q, p, long)
    not_that_one = np.ones((4, 3), bool)
    not_that_one[2, 1] = False
    eci_from_embeddings(q, p, long, not_that_one)
    jax.jit(eci_from_embeddings)(q, 2 * p, n)  # lengths are data: not checked under jit
    q[1], n[0, 0] = 0, 0
    assert np.isfinite(eci_from_embeddings(q, p, n).score)  # empty texts
    with pytest.raises(ValueError, match="p: expected rows of length 1"):
        eci_from_embeddings(q, p * np.nan, n)
    with pytest.raises(ValueError, match=r"n: expected shape \[4, negatives, 8\], got \(4, 8\)"):
        eci_from_embeddings(q, p, p)
    with pytest.raises(ValueError, match=r"p: expected the shape of q, \(4, 8\), got \(3, 8\)"):
        similarities(q, p[:3], n)
    with pytest.raises(ValueError, match=r"q: expected shape \[batch, dim\], got \(8,\)"):
        similarities(q[0], p[0], n)


def test_rows_that_name_their_documents():
    """The same as with the embeddings put side by side; missing slots; documents sharded over a mesh."""
    rng = np.random.default_rng(3)
    q, d = unit(rng, 6, 4), unit(rng, 40, 4)
    query, positive = rng.integers(0, 6, 13), rng.integers(0, 40, 13)
    negative = rng.integers(-1, 40, (13, 3))
    negative[0] = -1
    expected = eci_from_embeddings(q[query], d[positive], d[negative], jnp.asarray(negative >= 0))
    ours = eci_from_ids(q, d, query, positive, negative, block_rows=4)
    mesh = jax.make_mesh((8,), ("data",))
    sharded = eci_from_ids(q, d, query, positive, negative, mesh=mesh)
    for a, b, c in zip(ours, expected, sharded, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        np.testing.assert_allclose(c, b, atol=1e-6)
    assert float(eci_from_ids(q, d, query[:1], np.array([99]), negative[1:2]).score) == 0
    with pytest.raises(ValueError, match=r"positive_ids: expected the shape of query_ids"):
        eci_from_ids(q, d, query, positive[:2], negative)
    with pytest.raises(ValueError, match=r"negative_ids: expected shape \[13, negatives\], got \(2, 3\)"):
        eci_from_ids(q, d, query, positive, negative[:2])
