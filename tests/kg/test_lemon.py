"""Text neighbourhoods: PCA, k-means, candidate sets and their distributions."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.cluster import KMeans

from jaxneg import kg

GOLDEN = "sampling*.npz"


@pytest.mark.golden("lemon", GOLDEN)
def test_principal_components(golden, x64):
    X = jnp.asarray(golden["text_emb"])
    pca = kg.pca_fit(X, int(golden["pca_dim"]))
    close = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(pca.mean, golden["pca_mean"], **close)
    np.testing.assert_allclose(pca.components, golden["pca_components"], **close)
    np.testing.assert_allclose(pca.var, golden["pca_explained_variance"], **close)
    np.testing.assert_allclose(kg.pca_transform(pca, X), golden["reduced"], **close)


@pytest.mark.golden("lemon", GOLDEN)
def test_clusters(golden, x64):
    X, init = jnp.asarray(golden["reduced"]), jnp.asarray(golden["kmeans_init"])
    labels, centers, inertia, iterations = jax.jit(kg.lloyd)(X, init)
    np.testing.assert_array_equal(labels, golden["kmeans_labels"])
    np.testing.assert_allclose(centers, golden["kmeans_centers"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(inertia, golden["kmeans_inertia"], rtol=1e-9)
    assert int(iterations) == int(golden["kmeans_iter"])
    again = kg.kmeans(jax.random.key(0), X, len(init), init)
    np.testing.assert_array_equal(again[0], labels)


@pytest.mark.golden("lemon", GOLDEN)
def test_sampling_distributions(golden, x64):
    n_min, triples = int(golden["n_min"]), golden["triples"]
    centers, labels = golden["kmeans_centers"], golden["kmeans_labels"]
    np.testing.assert_allclose(kg.center_distances(centers), golden["centroid_dist"], atol=1e-9)
    nb = kg.text_neighbourhoods(labels, centers, n_min)
    np.testing.assert_array_equal(nb.order, golden["cluster_order"])
    known = kg.known_triples(triples, len(labels))
    for side in ("head", "tail"):
        found = kg.lemon_probabilities(nb, jnp.asarray(triples), known, side, n_min)
        np.testing.assert_allclose(found, golden[f"prob_{side}"], atol=1e-12)


LABELS = np.array([0, 0, 1, 2, 2, 2, -1, 3])
CENTERS = np.array([[0.0], [1.0], [5.0], [6.0], [30.0]])
"""Cluster 4 is empty, and entity 6 has no text."""


def neighbourhoods(n_min):
    return kg.text_neighbourhoods(LABELS, CENTERS, n_min)


def candidates(nb, cluster):
    return nb.members[nb.start[cluster] : nb.start[cluster + 1]].tolist()


def test_neighbourhoods_by_hand():
    nb = neighbourhoods(3)
    assert [candidates(nb, c) for c in range(5)] == [
        [0, 1, 2],
        [0, 1, 2],
        [3, 4, 5],
        [3, 4, 5, 7],
        [3, 4, 5, 7],  # the empty cluster's are its neighbours'
    ]
    assert [candidates(neighbourhoods(1), c) for c in range(5)] == [[0, 1], [2], [3, 4, 5], [7], [7]]
    everyone = [0, 1, 2, 3, 4, 5, 7]
    assert [candidates(neighbourhoods(99), c) for c in range(5)] == [everyone] * 5
    assert [nb.own.members[a:b].tolist() for a, b in zip(nb.own.start, nb.own.start[1:], strict=False)] == [
        [0, 1],
        [2],
        [3, 4, 5],
        [7],
        [],
    ]


def test_nearest_clusters_of_an_entity_itself():
    """Against a loop over entities: its own cluster need not be the only one, nor the rest that cluster's."""
    rng = np.random.default_rng(0)
    points, centers = rng.normal(size=(60, 2)), rng.normal(size=(7, 2))
    labels = np.argmin(np.linalg.norm(points[:, None] - centers, axis=-1), axis=1)
    labels[[5, 6]] = -1
    points[5] = np.nan  # not read without a text
    nb = kg.nearest_cluster_neighbourhoods(points, labels, centers, nearest=2)
    assert nb.row[5:7].tolist() == [-1, -1]
    assert len(nb.sets.start) - 1 < 60
    of_labels = set()
    for entity in np.flatnonzero(labels >= 0):
        near = np.argsort(np.linalg.norm(points[entity] - centers, axis=1))[:2]
        first, last = nb.sets.start[nb.row[entity]], nb.sets.start[nb.row[entity] + 1]
        assert nb.sets.members[first:last].tolist() == [i for i in range(60) if labels[i] in near]
        of_labels.add((labels[entity], tuple(sorted(near))))
    assert len(of_labels) > len({label for label, _ in of_labels})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": np.zeros((3, 2))}, r"points: expected shape \(8, 1\), got \(3, 2\)"),
        ({"points": np.full((8, 1), np.inf)}, "points: expected finite numbers"),
        ({"nearest": 6}, "nearest: expected 1 to 5, the number of clusters, got 6"),
        ({"nearest": 0}, "nearest: expected 1 to 5"),
        ({"labels": np.full(8, 5)}, "labels: entity 0: expected a cluster from 0 to 4"),
        ({"centers": np.zeros(5)}, "centers: expected shape"),
    ],
)
def test_bad_nearest_clusters(change, message):
    good = {"points": np.zeros((8, 1)), "labels": LABELS, "centers": CENTERS, "nearest": 2}
    with pytest.raises(ValueError, match=message):
        kg.nearest_cluster_neighbourhoods(**good | change)


def test_draws_have_the_distribution_in_closed_form():
    nb = neighbourhoods(3)
    known = kg.known_triples([[0, 0, 1], [0, 0, 5]], 8)
    triples = jnp.array([[0, 0, 1], [6, 0, 7], [3, 0, 6]])
    n = 20_000

    def draw(key):
        return kg.sample_lemon(key, nb, triples[:, 2], n, mix=0.0)

    draws = jax.jit(lambda key: kg.filter_known(key, draw(key), triples, known, "tail", rounds=14, draw=draw))
    found = np.stack([np.bincount(row, minlength=8) for row in np.asarray(draws(jax.random.key(0)))])
    # Both of cluster 0's other members survive the filter, so that redrawing has the exact distribution.
    expected = kg.lemon_probabilities(nb, triples, known, "tail", n_min=2)
    mixed = kg.lemon_probabilities(nb, triples, known, "tail", n_min=2, mix=0.25)
    free = np.array([1, 0, 1, 1, 1, 0, 1, 1]) / 6
    np.testing.assert_allclose(mixed[0], 0.75 * expected[0] + 0.25 * free, atol=1e-6)
    for counts, p in zip(found, np.asarray(expected, np.float64), strict=True):
        assert not counts[p == 0].any()
        assert stats.chisquare(counts[p > 0], n * p[p > 0] / p.sum()).pvalue > 1e-3
    np.testing.assert_allclose(expected[2], np.full(8, 1 / 8), atol=1e-6)  # the anchor has no text


def test_probabilities_add_clusters_until_enough_survive():
    nb = neighbourhoods(2)
    triples = jnp.array([[0, 0, 1]])
    known = kg.known_triples([[0, 0, 0], [0, 0, 1]], 8)
    p = kg.lemon_probabilities(nb, triples, known, "tail", n_min=2)
    np.testing.assert_allclose(p[0], [0, 0, 0.25, 0.25, 0.25, 0.25, 0, 0], atol=1e-6)
    everything = kg.known_triples([[0, 0, e] for e in range(8)], 8)
    np.testing.assert_allclose(
        kg.lemon_probabilities(nb, triples, everything, "tail", n_min=2), np.full((1, 8), 1 / 8), rtol=1e-6
    )
    kept = kg.lemon_probabilities(nb, jnp.array([[3, 0, 1]]), known, "tail", n_min=2, anchor="kept")
    np.testing.assert_allclose(kept[0, 3:6], np.full(3, 1 / 3), rtol=1e-6)


def test_gaussian_over_ranks():
    nb = neighbourhoods(1)
    draws = np.asarray(kg.sample_eans(jax.random.key(0), nb, jnp.array([2, 6]), 4000, sigma=0.6))
    p = 2 * stats.norm.cdf(0.5 / 0.6) - 1
    assert np.mean(draws[0] == 2) == pytest.approx(p, abs=0.03)
    assert len(np.unique(draws[1])) == 8
    with pytest.raises(ValueError, match="sigma: expected a positive number"):
        kg.sample_eans(jax.random.key(0), nb, jnp.array([2]), 4, sigma=0.0)


def test_affinity_clusters_follow_the_table():
    table = jnp.array([[0.0], [0.1], [9.0], [9.1], [9.2]])
    nb = kg.affinity_neighbourhoods(jax.random.key(0), table, 2)
    assert candidates(nb, int(nb.labels[0])) == [0, 1]
    assert candidates(nb, int(nb.labels[4])) == [2, 3, 4]


def test_kmeans_is_as_good_as_scikit_learn():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(c, 0.3, (40, 3)) for c in rng.normal(0, 4, (6, 3))])
    program = jax.jit(kg.kmeans, static_argnums=2)
    runs = [program(jax.random.key(i), X, 6) for i in range(8)]
    labels, centers, inertia = min(runs, key=lambda run: float(run[2]))
    theirs = KMeans(6, n_init=8, random_state=0).fit(X)
    assert float(inertia) < 1.01 * theirs.inertia_
    brute = np.argmin(((X[:, None] - np.asarray(centers)) ** 2).sum(-1), axis=1)
    np.testing.assert_array_equal(labels, brute)
    assert float(inertia) == pytest.approx(((X - np.asarray(centers)[brute]) ** 2).sum(), rel=1e-4)
    start = X[[0, 1, 2, 3, 4, 239]]
    ours = kg.kmeans(jax.random.key(0), X, 6, init=start)
    theirs = KMeans(6, n_init=1, init=start, tol=0, algorithm="lloyd").fit(X)
    np.testing.assert_array_equal(ours[0], theirs.labels_)


def test_an_empty_cluster_takes_the_farthest_row():
    X = np.array([[0.0], [1.0], [2.0], [10.0]])
    start = np.array([[1.0], [100.0], [200.0]])
    labels, centers, inertia, _ = kg.lloyd(jnp.asarray(X), jnp.asarray(start))
    assert len(set(labels.tolist())) == 3
    assert 10.0 in centers[:, 0].tolist()
    assert float(inertia) <= 0.5


def test_more_rows_than_fit_at_once(monkeypatch):
    X = jax.random.normal(jax.random.key(0), (50, 3))
    centers = X[:4]
    whole = kg.nearest_centers(X, centers)
    # The module, which the function of the same name hides.
    monkeypatch.setattr(importlib.import_module("jaxneg.kg.kmeans"), "ROWS_AT_ONCE", 16)
    for a, b in zip(whole, kg.nearest_centers(X, centers), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_equal_rows_and_elbow():
    centers = kg.kmeans_plus_plus(jax.random.key(0), jnp.ones((3, 2)), 3)
    np.testing.assert_array_equal(centers, np.ones((3, 2)))
    assert kg.elbow([2, 4, 8, 16], [100.0, 30.0, 20.0, 10.0]) == 4
    with pytest.raises(ValueError, match="at least three counts, got 2 for 2"):
        kg.elbow([1, 2], [1.0, 0.0])


def test_default_clusters():
    assert [kg.default_clusters(n) for n in (10, 135, 8632, 4_600_000)] == [8, 8, 108, 1000]


def test_texts():
    texts = ["a stone that marks a grave", "stones mark graves", "jazz music", "the music of jazz", "", "?!"]
    X = kg.hashing_tfidf_svd(texts, 4)
    assert X.shape == (6, 4)
    assert X.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(X[:4], axis=1), 1, rtol=1e-5)
    assert not X[4:].any()
    similarity = X @ X.T
    assert similarity[0, 1] > similarity[0, 2] + 0.2
    assert similarity[2, 3] > similarity[1, 3] + 0.2
    np.testing.assert_array_equal(X, kg.hashing_tfidf_svd(texts, 4))
    wide = kg.hashing_tfidf_svd(texts, 10)
    assert wide.shape == (6, 10)
    np.testing.assert_allclose(np.linalg.norm(wide[:4], axis=1), 1, rtol=1e-5)


def test_bad_arguments():
    rows = jnp.zeros((4, 2))
    key = jax.random.key(0)
    cases = [
        (lambda: kg.pca_fit(rows, 3), r"Z: expected from 1 to min\(n, d\) = 2, got 3"),
        (lambda: kg.pca_fit(rows[:1], 1), "X: expected shape .* at least two rows"),
        (lambda: kg.kmeans(key, rows, 5), "K: expected from 1 to the number of rows, 4, got 5"),
        (lambda: kg.kmeans(key, rows.at[2, 0].set(jnp.nan), 2), "X: expected finite numbers, row 2"),
        (lambda: kg.kmeans(key, rows, 2, init="best"), "init: expected one of k-means"),
        (
            lambda: kg.kmeans(key, rows, 2, init=rows),
            r"init: expected centres of shape \(2, 2\), got \(4, 2\)",
        ),
        (lambda: kg.lloyd(rows, rows, 0), "max_iter: expected at least 1"),
        (
            lambda: kg.text_neighbourhoods([0, 7], CENTERS, 1),
            "labels: entity 1: expected a cluster from 0 to 4",
        ),
        (lambda: kg.text_neighbourhoods([0.5], CENTERS, 1), "labels: expected one integer an entity"),
        (lambda: kg.text_neighbourhoods([0], [1.0], 1), r"centers: expected shape \[clusters, z\]"),
        (lambda: kg.text_neighbourhoods([0], [[np.nan]], 1), "centers: expected finite numbers"),
        (lambda: neighbourhoods(0), "n_min: expected at least 1, got 0"),
        (lambda: kg.sample_lemon(key, neighbourhoods(1), jnp.array([0]), 0), "n: expected at least 1, got 0"),
        (
            lambda: kg.sample_lemon(key, neighbourhoods(1), jnp.array([0]), 2, mix=1.5),
            "mix: expected a number from 0 to 1, got 1.5",
        ),
        (lambda: kg.hashing_tfidf_svd([], 4), "number of texts: expected at least 1, got 0"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="labels: expected known values, got an array under jit"):
        jax.jit(lambda x: kg.text_neighbourhoods(x, CENTERS, 1))(jnp.zeros(3, int))
