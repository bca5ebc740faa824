"""Topology and baselines: brute force by walks, limits, the scores' formulas, the EGI gap, bad input."""

import itertools

import jax
import numpy as np
import pytest

from jaxneg.graphs import (
    baseline_scores,
    betweenness,
    egi_gap,
    graph_statistics,
    graphs_from_edges,
    laplacian_histogram,
    laplacian_spectrum,
    mean_betweenness,
    stack_graphs,
    topology_features,
)


def random_graph(nodes, p, seed):
    upper = np.triu(np.random.default_rng(seed).uniform(size=(nodes, nodes)) < p, 1).astype(float)
    return upper + upper.T


def shortest_paths(a, s, t):
    """All of them, by breadth first."""
    paths = [[s]]
    for _ in range(len(a)):
        found = [path for path in paths if path[-1] == t]
        if found:
            return found
        paths = [[*path, int(v)] for path in paths for v in np.flatnonzero(a[path[-1]]) if v not in path]
    return []


@pytest.mark.parametrize(("nodes", "p", "seed"), [(7, 0.35, 0), (8, 0.25, 1), (6, 0.9, 2)])
def test_brute_force(nodes, p, seed):
    a = random_graph(nodes, p, seed)
    through, distance = np.zeros(nodes), np.zeros((nodes, nodes))
    for s, t in itertools.permutations(range(nodes), 2):
        paths = shortest_paths(a, s, t)
        for path in paths:
            distance[s, t] = len(path) - 1
            through[path[1:-1]] += 1 / len(paths)
    np.testing.assert_allclose(betweenness(a), through / ((nodes - 1) * (nodes - 2)), atol=1e-12)
    reached = (distance > 0).sum(1)
    closeness = np.array(
        [r / d * r / (nodes - 1) if d else 0 for r, d in zip(reached, distance.sum(1), strict=True)]
    )
    ends = np.array([(a[u].sum(), a[v].sum()) for u, v in np.argwhere(a)])
    pearson = np.corrcoef(ends.T)[0, 1]
    closed = np.array([sum(a[v, w] for v, w in itertools.permutations(np.flatnonzero(row), 2)) for row in a])
    wedges = a.sum(1) * (a.sum(1) - 1)
    local = np.where(wedges > 0, closed / np.maximum(wedges, 1), 0)
    expected = [
        a.sum(1).mean(), a.sum(1).std(), a.sum() / nodes / (nodes - 1), closeness.mean(),
        pearson, pearson, closed.sum() / wedges.sum(), local.mean(),
    ]  # fmt: skip
    np.testing.assert_allclose(topology_features(a), expected, atol=1e-12)


def test_limits():
    assert topology_features(np.zeros((4, 4))).tolist() == [0] * 8
    assert topology_features(np.zeros((1, 1))).tolist() == [0] * 8
    assert topology_features(np.roll(np.eye(5), 1, 0) + np.roll(np.eye(5), -1, 0))[4] == 0  # regular
    assert mean_betweenness(1 - np.eye(2)) == 0
    star = graphs_from_edges([[(0, i) for i in range(1, 6)]]).adj[0]
    np.testing.assert_allclose(betweenness(star), [1, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(laplacian_spectrum(star), [0, 1, 1, 1, 1, 2], atol=1e-9)
    np.testing.assert_allclose(laplacian_spectrum(np.zeros((3, 3))), 0)


def test_isolated_nodes_and_padding():
    a = random_graph(6, 0.5, 0)
    batch = stack_graphs([a, np.pad(a, (0, 2))])
    features = topology_features(*batch)
    np.testing.assert_allclose(features[0], topology_features(a))
    assert features[1, 0] == pytest.approx(features[0, 0] * 6 / 8)
    # Closeness counts who can be reached: those who are alone reach nobody.
    assert features[1, 3] == pytest.approx(features[0, 3] * 5 / 7 * 6 / 8)
    np.testing.assert_allclose(laplacian_histogram(*batch).sum(1), 1)
    np.testing.assert_allclose(laplacian_spectrum(batch.adj[1], 8)[:2], 0, atol=1e-12)
    assert mean_betweenness(*batch).shape == (2,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: topology_features(np.ones((2, 3))), r"adj: expected \[nodes, nodes\] or a batch"),
        (lambda: topology_features(np.eye(2)), "adj: expected no loops, got one at node 0"),
        (
            lambda: topology_features(np.eye(3, k=1)),
            "adj: expected an undirected graph, got an edge between 0 and 1",
        ),
        (lambda: mean_betweenness(np.zeros((3, 3)), 4), "n: expected from 1 to 3 nodes, got 4"),
        (lambda: laplacian_spectrum(np.zeros((3, 3)), 0), "n: expected from 1 to 3 nodes, got 0"),
        (lambda: laplacian_histogram(np.zeros((3, 3)), bins=0), "bins: expected at least 1"),
        (
            lambda: baseline_scores([], graph_statistics(stack_graphs([1 - np.eye(3)]))),
            "selection: expected at least",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture(scope="module")
def collections():
    return [
        stack_graphs([random_graph(nodes, p, seed) for seed in range(count)])
        for nodes, p, count in ((10, 0.3, 4), (12, 0.6, 2), (9, 0.9, 3))
    ]


def test_baseline_scores(collections):
    statistics = [graph_statistics(graphs) for graphs in collections]
    scores = baseline_scores(statistics[:2], statistics[2], statistics)
    pooled = np.concatenate([topology_features(*graphs) for graphs in collections[:2]]).mean(0)
    means = np.stack([each.features for each in statistics])
    z = (pooled - means[2]) / means.std(0)
    target = statistics[2]
    between = np.concatenate([mean_betweenness(*graphs) for graphs in collections[:2]]).mean()
    spectrum = np.concatenate([laplacian_histogram(*graphs) for graphs in collections[:2]]).mean(0)
    expected = {
        "graph statistics": np.linalg.norm(z),
        "density": abs(pooled[2] - target.features[2]),
        "clustering coefficient": abs(pooled[7] - target.features[7]),
        "betweenness": abs(between - target.betweenness),
        "Laplacian spectrum": np.linalg.norm(spectrum - target.spectrum),
    }
    assert scores == pytest.approx({name: -value for name, value in expected.items()})
    assert set(baseline_scores([target], target).values()) == {0.0}


def test_egi_gap(collections):
    key = jax.random.key(0)
    near = egi_gap(key, collections[0], collections[0], egos=6)
    assert near == egi_gap(key, collections[0], collections[0], egos=6)
    far = egi_gap(key, collections[0], collections[2], egos=6)
    assert 0 < near < far
    with pytest.raises(ValueError, match="target: expected graphs with edges, got none"):
        egi_gap(key, collections[0], stack_graphs([np.zeros((3, 3))]))
    with pytest.raises(ValueError, match="neighbors: expected at least 1"):
        egi_gap(key, collections[0], collections[0], neighbors=0)


def test_egi_gap_of_known_ego_networks():
    # Two nodes against a star's centre and leaves, one hop further: all orders give the same norm.
    pair, star = graphs_from_edges([[(0, 1)]]), graphs_from_edges([[(0, 1), (0, 2)]])
    ours = np.array([[1.0, -1.0], [-1.0, 1.0]])
    gaps = []
    for layout in itertools.permutations(range(2)):
        padded = np.zeros((3, 3))
        padded[np.ix_([0, 1 + layout[0]], [0, 1 + layout[0]])] = ours
        root = np.diag([2**-0.5, 1, 1])
        a = np.array([[0.0, 1, 1], [1, 0, 0], [1, 0, 0]])
        gaps.append(np.linalg.norm(padded - (np.eye(3) - root @ a @ root), 2))
    assert np.ptp(gaps) < 1e-12
    found = [egi_gap(jax.random.key(seed), pair, star, egos=1) for seed in range(8)]
    assert any(abs(gap - gaps[0]) < 1e-9 for gap in found)  # the centre was drawn
