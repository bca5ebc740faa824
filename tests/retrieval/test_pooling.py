"""Pool simulation beside brute force, filters, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxneg.retrieval import denoise_weight, oracle_weight, perc_pos_weight, pool_labels, top_negatives
from jaxneg.train import make_mesh


@pytest.mark.golden("cet", "pooling*.npz")
def test_golden_pooling(golden):
    basic, strong, rel = golden["basic"], golden["strong"], golden["rel"]
    depth, topn = int(golden["depth"]), int(golden["topn"])
    label = pool_labels(basic, rel, depth)
    np.testing.assert_array_equal(label, golden["label"])
    np.testing.assert_array_equal(pool_labels(basic, np.ones_like(rel), depth), golden["pooled"])
    negatives = np.asarray(jax.jit(top_negatives, static_argnums=2)(strong, label, topn))
    np.testing.assert_array_equal(negatives, golden["negatives"])
    false = np.take_along_axis(rel, negatives, axis=1) > 0
    np.testing.assert_array_equal(false, golden["false_negative"])
    np.testing.assert_allclose(false.mean(), golden["fn_rate"], rtol=1e-12)


def test_brute_force_with_ties_and_documents_that_are_not_retrieved():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, (6, 12)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.2] = -np.inf
    scores[0, 3], scores[1] = np.nan, -np.inf
    rel = rng.random(scores.shape) < 0.5
    rel[2] = False
    labels, negatives = (np.asarray(f) for f in (pool_labels(scores, rel, 4), top_negatives(scores, rel, 14)))
    for q in range(6):
        found = [d for d in range(12) if scores[q, d] > -np.inf]
        ranked = sorted(found, key=lambda d, q=q: (-scores[q, d], d))
        assert set(np.flatnonzero(labels[q])) == {d for d in ranked[:4] if rel[q, d]}
        expected = [d for d in ranked if not rel[q, d]]
        assert negatives[q].tolist() == expected + [-1] * (14 - len(expected))
    assert not labels[1].any()  # nothing was retrieved
    assert not labels[2].any()  # nothing is relevant
    one = top_negatives(jnp.ones((1, 1)), jnp.zeros((1, 1), bool), 2)
    assert one.tolist() == [[0, -1]]
    rows = jax.vmap(lambda s, r: top_negatives(s, r, 3))(jnp.asarray(scores), jnp.asarray(rel))
    np.testing.assert_array_equal(rows, negatives[:, :3])
    low = jnp.asarray(scores, jnp.bfloat16)
    np.testing.assert_array_equal(pool_labels(low, rel, 4), labels)


@pytest.mark.parametrize("explicit", [False, True])
def test_sharded_equals_unsharded(explicit):
    rng = np.random.default_rng(0)
    scores, rel = rng.normal(size=(8, 12)), rng.random((8, 12)) < 0.3

    def both(scores, rel):
        label = pool_labels(scores, rel, 4)
        return label, top_negatives(scores, label, 5)

    mesh = make_mesh({"data": 8}, explicit=explicit)
    place = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        found = jax.jit(both)(jax.device_put(scores, place), jax.device_put(rel, place))
    for a, b in zip(found, both(scores, rel), strict=True):
        np.testing.assert_array_equal(a, b)


def test_filters():
    assert oracle_weight(np.array([0, 2, -1])).tolist() == [1, 0, 1]
    assert denoise_weight(np.array([0.5, 0.6, np.nan]), 0.5).tolist() == [1, 0, 0]
    pos, neg = np.array([1.0, -1.0, -1.0, np.nan]), np.array([0.951, -1.06, -1.04, 0.0])
    assert perc_pos_weight(pos, neg).tolist() == [0, 1, 0, 0]
    assert perc_pos_weight(pos[:1], pos[:1], share=1.0).tolist() == [1]
    assert all(w.dtype == jnp.float32 for w in (oracle_weight(pos), denoise_weight(pos, 0.0)))


def test_bad_input():
    scores, rel = np.ones((2, 3)), np.ones((2, 3))
    cases = [
        (lambda: pool_labels(scores, rel[:1], 2), r"rel: expected the shape of basic_scores, \(2, 3\), got"),
        (lambda: pool_labels(scores, rel, 0), "k: expected at least 1, got 0"),
        (lambda: top_negatives(scores, rel[:1], 2), r"label: expected the shape of scores, \(2, 3\), got"),
        (lambda: top_negatives(scores, rel, 0), "n: expected at least 1, got 0"),
        (lambda: perc_pos_weight(scores, rel[0]), r"neg_score: expected the shape of pos_score, \(2, 3\)"),
        (lambda: perc_pos_weight(scores, rel, 1.5), r"share: expected a number in \(0, 1\], got 1.5"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
