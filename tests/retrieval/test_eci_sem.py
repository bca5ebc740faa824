"""ECI_sem: goldens, the invariants of the specification, sharding, bad input."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxneg.retrieval import (
    eci_sem,
    information_matrix,
    lexical_overlap,
    query_directions,
    triple_weights,
)


def unit(rng, *shape):
    rows = rng.standard_normal(shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def triples(seed, count, dim):
    rng = np.random.default_rng(seed)
    q, p, n = unit(rng, count, dim), unit(rng, count, dim), unit(rng, count, dim)
    n = n * np.sign(np.sum(q * n, axis=1, keepdims=True))  # locality above 0
    return [x.astype(np.float32) for x in (q, p, n, rng.random(count))]


def everything(golden, dtype):
    floats = [jnp.asarray(golden[name], dtype) for name in ("q", "p", "neg", "idf", "tau", "lam")]
    return all_parts(*floats, golden["query_tokens"], golden["neg_tokens"])


@jax.jit
def all_parts(q, p, n, idf, tau, lam, query_tokens, doc_tokens):
    overlap = lexical_overlap(query_tokens, doc_tokens, idf)
    parts = triple_weights(jnp.sum(q * p, -1), jnp.sum(q * n, -1), overlap, tau=tau)
    direction = query_directions(q, p, n)
    result = eci_sem(q, p, n, overlap, tau=tau, lam=lam)
    return {
        "overlap": overlap,
        **dict(zip(("consistency", "locality", "lexical", "weight"), parts, strict=True)),
        "direction": direction,
        "info_matrix": information_matrix(direction, parts[3]),
        "eci_sem": result.score,
    }


INPUTS = {"q", "p", "neg", "query_tokens", "neg_tokens", "idf", "tau", "lam"}


# The README states no tolerance for these in float32; both forms of the determinant agree to 1e-9 in float64.
@pytest.mark.golden("eci", "eci_sem*.npz")
def test_golden_float32(golden):
    ours = everything(golden, jnp.float32)
    assert set(ours) == set(golden) - INPUTS
    for name, value in ours.items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, golden[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.golden("eci", "eci_sem*.npz")
def test_golden_float64(golden, x64):
    for name, value in everything(golden, jnp.float64).items():
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, golden[name], rtol=1e-9, atol=1e-9, err_msg=name)


jitted = jax.jit(eci_sem)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000), st.sampled_from([(12, 4), (4, 12)]))
def test_invariants(seed, shape):
    q, p, n, overlap = triples(seed, *shape)
    score = float(jitted(q, p, n, overlap).score)
    assert score >= 0
    rotation = np.linalg.qr(np.random.default_rng(seed + 1).standard_normal((shape[1],) * 2))[0]
    turned = [(x @ rotation).astype(np.float32) for x in (q, p, n)]
    assert float(jitted(*turned, overlap).score) == pytest.approx(score, rel=1e-4)
    # Monotone in every weight: less overlap, larger weight.
    less = overlap.copy()
    less[0] *= 0.5
    assert float(jitted(q, p, n, less).score) >= score - 1e-6


@pytest.mark.parametrize("dim", [3, 30])
def test_duplicates_have_rank_one(dim):
    q, p, n, overlap = (np.repeat(x[:1], 8, axis=0) for x in triples(0, 1, dim))
    result = jitted(q, p, n, overlap, lam=7.0)
    assert float(result.score) == pytest.approx(np.log1p(7.0 * float(result.weights[0])), abs=2e-6)


def test_both_sides_of_the_determinant_agree():
    q, p, n, overlap = triples(0, 6, 9)  # fewer triples than dimensions
    direction, weights = query_directions(q, p, n), eci_sem(q, p, n, overlap).weights
    other = np.linalg.slogdet(np.eye(9) + 10.0 * np.asarray(information_matrix(direction, weights)))[1]
    assert float(eci_sem(q, p, n, overlap).score) == pytest.approx(other, rel=1e-5)


def test_directions_are_tangent_or_zero():
    q, p, n, _ = triples(3, 5, 6)
    n[2] = p[2]
    v = np.asarray(jax.jit(query_directions)(q, p, n))
    np.testing.assert_allclose(np.sum(v * q, 1), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), [1, 1, 0, 1, 1], atol=1e-6)
    gradient = jax.jit(jax.grad(lambda n: query_directions(q, p, n).sum()))(jnp.asarray(n))
    assert bool(jnp.all(jnp.isfinite(gradient)))


def test_lexical_overlap_by_hand():
    idf = jnp.array([1.0, 2.0, 4.0])
    query = jnp.array([[0, 1, 1, -1], [2, 0, -1, -1], [-1, -1, -1, -1]])
    document = jnp.array([[1, 1, -1], [-1, -1, -1], [0, 1, 2]])
    np.testing.assert_allclose(lexical_overlap(query, document, idf), [2 / 3, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("shape", [(16, 4), (8, 20)])
def test_jit_vmap_grad_bfloat16(shape):
    arrays = triples(0, *shape)
    plain = eci_sem(*arrays)
    np.testing.assert_allclose(jitted(*arrays).score, plain.score, rtol=1e-5)
    both = jax.jit(jax.vmap(eci_sem))(*(jnp.stack([x, x]) for x in arrays))
    np.testing.assert_allclose(both.score, [plain.score] * 2, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda q, *rest: eci_sem(q, *rest).score))(*map(jnp.asarray, arrays))
    assert bool(jnp.all(jnp.isfinite(gradient)))
    assert bool(jnp.any(gradient != 0))
    low = jitted(*(jnp.asarray(x, jnp.bfloat16) for x in arrays))
    assert low.score.dtype == jnp.float32
    np.testing.assert_allclose(low.score, plain.score, rtol=0.05)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("shape", [(16, 4), (8, 20)])
def test_sharded_equals_unsharded(axis_type, shape):
    q, p, n, _ = triples(0, *shape)
    rng = np.random.default_rng(0)
    tokens = rng.integers(-1, 9, (2, shape[0], 5))
    idf = jnp.asarray(rng.random(9), jnp.float32)

    def score(q, p, n, query_tokens, doc_tokens):
        return eci_sem(q, p, n, lexical_overlap(query_tokens, doc_tokens, idf)).score

    arrays = (q, p, n, *tokens)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    placed = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))) for x in arrays]
    with jax.set_mesh(mesh):
        value, gradient = jax.jit(jax.value_and_grad(score))(*placed)
    expected, expected_gradient = jax.jit(jax.value_and_grad(score))(*map(jnp.asarray, arrays))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


def test_bad_input():
    q, p, n, overlap = triples(0, 4, 3)
    tokens = jnp.zeros((4, 2), jnp.int32)
    cases = [
        (ValueError, "q: expected .* at least one triple", lambda: eci_sem(q[:0], p[:0], n[:0], overlap[:0])),
        (
            ValueError,
            r"n: expected the shape of q, \(4, 3\), got \(4, 2\)",
            lambda: eci_sem(q, p, n[:, :2], overlap),
        ),
        (ValueError, r"overlap: expected shape \(4,\), got \(2,\)", lambda: eci_sem(q, p, n, overlap[:2])),
        (ValueError, "tau: expected a positive number, got 0", lambda: eci_sem(q, p, n, overlap, tau=0)),
        (ValueError, "lam: expected a positive number, got -1", lambda: eci_sem(q, p, n, overlap, lam=-1)),
        (ValueError, "q: expected rows of length 1", lambda: eci_sem(2 * q, p, n, overlap)),
        (
            TypeError,
            "doc_tokens: expected integer",
            lambda: lexical_overlap(tokens, tokens * 1.0, jnp.ones(3)),
        ),
        (ValueError, "doc_tokens: expected shape", lambda: lexical_overlap(tokens, tokens[:2], jnp.ones(3))),
        (ValueError, r"idf: expected shape \[vocabulary\]", lambda: lexical_overlap(tokens, tokens, tokens)),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
