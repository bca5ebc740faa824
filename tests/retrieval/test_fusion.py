"""Fusion of lists: by hand, beside a brute force, missing slots, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.retrieval import fuse_rankings, fuse_scores, hybrid


def random_lists(seed=0, queries=5, lengths=(6, 4, 5), documents=12):
    rng = np.random.default_rng(seed)
    lists = [np.stack([rng.permutation(documents)[:n] for _ in range(queries)]) for n in lengths]
    scores = [-np.sort(-rng.normal(size=ids.shape)).astype(np.float32) for ids in lists]
    for ids in lists:
        ids[0, -2:] = -1  # a query with short lists
    return lists, scores


def brute_force(lists, values):
    """Documents by falling sum of their values; equal sums in the order in which the lists take turns."""
    rows = []
    for query in range(len(lists[0])):
        total, place = {}, {}
        for number, (ids, value) in enumerate(zip(lists, values, strict=True)):
            for rank, document in enumerate(ids[query]):
                if document >= 0:
                    total[document] = total.get(document, 0) + value[query][rank]
                    turn = (rank, number)
                    place[document] = min(place.get(document, turn), turn)
        rows.append(sorted(total, key=lambda x: (-round(total[x], 6), place[x])))
    return rows


def as_lists(index):
    return [[int(x) for x in row if x >= 0] for row in index]


def test_reciprocal_ranks_with_weights():
    lists, _ = random_lists()
    weights = [1.0, 0.5, 2.0]
    values = [
        np.tile(w / (10 + np.arange(1, ids.shape[1] + 1)), (len(ids), 1))
        for w, ids in zip(weights, lists, strict=True)
    ]
    fused = fuse_rankings(lists, weights=weights, constant=10)
    assert as_lists(fused.index) == brute_force(lists, values)
    assert fused.index.shape == (5, 15)
    first = int(fused.index[1, 0])
    expected = sum(
        v[1][list(ids[1]).index(first)] for ids, v in zip(lists, values, strict=True) if first in ids[1]
    )
    assert float(fused.score[1, 0]) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(np.asarray(fused.index) < 0, np.asarray(fused.score) == -np.inf)
    jitted = jax.jit(lambda *x: fuse_rankings(x, weights=weights, constant=10))(*lists)
    np.testing.assert_array_equal(jitted.index, fused.index)
    np.testing.assert_array_equal(fuse_rankings(lists, k=20).index[:, 15:], -1)
    # One list comes back as it is; a weight of 0 leaves a list out.
    np.testing.assert_array_equal(fuse_rankings(lists[:1]).index, lists[0])
    alone = as_lists(fuse_rankings(lists[:2], weights=[1, 0], k=4).index)
    assert alone == as_lists(lists[0][:, :4])


def test_scores():
    lists, scores = random_lists(1)
    weights = [0.2, 1.0, 0.7]
    values = []
    for w, ids, s in zip(weights, lists, scores, strict=True):
        inside = np.where(ids >= 0, s, np.nan)
        low, high = np.nanmin(inside, 1, keepdims=True), np.nanmax(inside, 1, keepdims=True)
        values.append(w * (s - low) / (high - low))
    assert as_lists(fuse_scores(lists, scores, weights=weights).index) == brute_force(lists, values)
    plain = [w * s for w, s in zip(weights, scores, strict=True)]
    fused = fuse_scores(lists, scores, weights=weights, normalise="none")
    assert as_lists(fused.index) == brute_force(lists, plain)
    equal = fuse_scores([np.array([[4, 7, -1]])], [np.array([[2.0, 2.0, -np.inf]])])
    assert equal.index.tolist() == [[4, 7, -1]]
    assert equal.score.tolist() == [[1.0, 1.0, -np.inf]]


def test_hybrid_by_hand():
    a = jnp.array([[1, 2, 3], [4, -1, -1]])
    b = jnp.array([[3, 9, 1], [-1, -1, -1]])
    assert hybrid(a, b).tolist() == [[1, 3, 2, 9, -1, -1], [4, -1, -1, -1, -1, -1]]
    # 1: 1/61 + 1/63, 3: 1/63 + 1/61 (tie, a's first stays first), then 2 and 9 with 1/62 each.
    assert hybrid(a, b, "rrf", 4).tolist() == [[1, 3, 2, 9], [4, -1, -1, -1]]
    assert hybrid(jnp.array([[1, 2]]), jnp.array([[3, 2]]), "rrf", 1).tolist() == [[2]]
    assert hybrid(a, b, k=8).shape == (2, 8)
    np.testing.assert_array_equal(jax.jit(hybrid)(a, b), hybrid(a, b))


def test_bad_input():
    a = np.zeros((2, 3), int)
    cases = [
        ("mode: expected one of rrf, union, got 'mean'", lambda: hybrid(a, a, "mean")),
        (r"b: expected a list for each query of a", lambda: hybrid(a[:1], a)),
        ("k: expected at least 1, got 0", lambda: hybrid(a, a, k=0)),
        ("constant: expected at least 0, got -1", lambda: hybrid(a, a, constant=-1)),
        ("rankings: expected at least one list", lambda: fuse_rankings([])),
        (
            r"rankings\[1\]: expected a list for each of 2 queries, got \(1, 3\)",
            lambda: fuse_rankings([a, a[:1]]),
        ),
        ("weights: expected one for each of 2 lists, got 1", lambda: fuse_rankings([a, a], weights=[1])),
        ("scores: expected one array for each of 2 lists, got 1", lambda: fuse_scores([a, a], [a])),
        (r"scores\[0\]: expected the shape of its list", lambda: fuse_scores([a], [a[:, :2]])),
        ("normalise: expected one of minmax, none", lambda: fuse_scores([a], [a], normalise="z")),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()
