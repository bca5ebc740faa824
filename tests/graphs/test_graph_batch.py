"""Graphs from edge lists and matrices: what is forgiven, what is refused, and by which message."""

import numpy as np
import pytest

from jaxneg.graphs import align_graphs, graphs_from_edges, stack_graphs


def test_directions_duplicates_and_loops_are_forgiven():
    plain = graphs_from_edges([[(0, 1), (1, 2)]]).adj
    for edges in ([(1, 0), (2, 1)], [(0, 1), (1, 0), (1, 2)], [(0, 1), (0, 1), (1, 2), (2, 2)]):
        np.testing.assert_array_equal(graphs_from_edges([edges]).adj, plain)
    assert plain.dtype == np.float32
    np.testing.assert_array_equal(plain[0], [[0, 1, 0], [1, 0, 1], [0, 1, 0]])


def test_directions_are_kept_on_request():
    adj = graphs_from_edges([np.array([(0, 1), (2, 1)])], directed=True).adj[0]
    np.testing.assert_array_equal(adj, [[0, 1, 0], [0, 0, 0], [0, 1, 0]])


def test_isolated_nodes_need_a_count():
    assert graphs_from_edges([[(0, 1)]]).n_nodes.tolist() == [2]
    batch = graphs_from_edges([[(0, 1)], []], [4, 3])
    assert batch.adj.shape == (2, 4, 4)
    assert batch.n_nodes.tolist() == [4, 3]
    assert batch.adj[1].sum() == 0
    aligned, degrees = align_graphs(*batch)
    np.testing.assert_allclose(degrees, [[0.5, 0.5, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0]], rtol=1e-6)
    assert aligned[0].sum() == 2


@pytest.mark.parametrize(
    ("edges", "options", "error", "message"),
    [
        ([], {}, ValueError, "edges: expected at least one graph, got none"),
        ([[(0, 1)], []], {}, ValueError, "edges: graph 1 has no edges: give n_nodes"),
        ([[]], {"n_nodes": [0]}, ValueError, "n_nodes: graph 0: expected at least one node, got 0"),
        (
            [[(0, 1), (0, 5)]],
            {"n_nodes": [3]},
            ValueError,
            r"graph 0, edge 1: expected .* 0 to 2, got \(0, 5\)",
        ),
        ([[(0, -1)]], {}, ValueError, r"graph 0, edge 0: expected nodes from 0 to 0, got \(0, -1\)"),
        ([[(0, 1, 2)]], {}, ValueError, r"graph 0: expected rows \(u, v\), got shape \(1, 3\)"),
        ([[(0.0, 1.5)]], {}, TypeError, "graph 0: expected integer node numbers, got float64"),
        ([[(0, 1), (1, 1)]], {"self_loops": "error"}, ValueError, "graph 0, edge 1: .* node 1 twice"),
        (
            [[(0, 1)]],
            {"self_loops": "keep"},
            ValueError,
            "self_loops: expected one of drop, error, got 'keep'",
        ),
        ([[(0, 1)]], {"n_nodes": [2, 2]}, ValueError, "n_nodes: expected one for each of 1 graphs, got 2"),
    ],
)
def test_bad_edge_lists(edges, options, error, message):
    with pytest.raises(error, match=message):
        graphs_from_edges(edges, **options)


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        ([], "adjacencies: expected at least one graph"),
        ([np.ones((2, 2)), np.ones((2, 3))], r"graph 1: expected \[n, n\] .* got \(2, 3\)"),
        ([np.zeros((0, 0))], "graph 0: expected .* at least one node"),
        ([np.full((2, 2), np.nan)], "graph 0: expected finite numbers"),
    ],
)
def test_bad_matrices(matrices, message):
    with pytest.raises(ValueError, match=message):
        stack_graphs(matrices)


@pytest.mark.parametrize(
    ("adj", "n_nodes", "options", "error", "message"),
    [
        (np.ones((2, 2)), None, {}, ValueError, r"adj: expected \[batch, n, n\], .* got shape \(2, 2\)"),
        (np.ones((1, 2, 3)), None, {}, ValueError, "adj: expected"),
        (np.ones((1, 2, 2)), [1, 2], {}, ValueError, "n_nodes: expected one for each of 1 graphs"),
        (np.ones((1, 2, 2)), [3], {}, ValueError, "n_nodes: expected from 0 to 2, got 3 for graph 0"),
        (np.ones((1, 2, 2)), [1.0], {}, TypeError, "n_nodes: expected integers"),
        (np.ones((1, 2, 2)), [2], {"pad": "edge"}, ValueError, "pad: expected one of zero, resize"),
    ],
)
def test_bad_alignment(adj, n_nodes, options, error, message):
    with pytest.raises(error, match=message):
        align_graphs(adj, None if n_nodes is None else np.array(n_nodes), **options)
