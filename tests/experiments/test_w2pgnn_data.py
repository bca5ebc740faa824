"""What the W2PGNN experiment reads: networks in all formats, damaged files, walks, views, ego networks."""

import re
from pathlib import Path

import numpy as np
import pytest

from experiments.w2pgnn import molecules, networks, views
from experiments.w2pgnn.networks import Network, load_network, read_edge_list, read_tu


def brute_adjacency(network):
    adj = np.zeros((network.n, network.n), np.uint8)
    for i, j in network.edges:
        adj[i, j] = adj[j, i] = 1
    return adj


@pytest.fixture(scope="module")
def brazil():
    return load_network("brazil_airport", networks.TINY)


def test_embedded_networks(brazil):
    assert (brazil.n, len(brazil.edges)) == (131, 1003)
    assert np.bincount(brazil.labels).size == 4
    for name in networks.EMBEDDED:
        network = load_network(name, networks.TINY)
        assert (network.edges[:, 0] < network.edges[:, 1]).all()
        assert not network.notes
    adj = brute_adjacency(brazil)
    start, others = brazil.neighbours
    np.testing.assert_array_equal(brazil.degree, adj.sum(0))
    for node in (0, 7, 130):
        np.testing.assert_array_equal(others[start[node] : start[node + 1]], np.flatnonzero(adj[node]))
    nodes = np.array([[3, 9, 50, -1], [4, -1, -1, -1]])
    found = brazil.subgraphs(nodes)
    np.testing.assert_array_equal(found[0, :3, :3], adj[np.ix_([3, 9, 50], [3, 9, 50])])
    assert not found[0, 3].any()
    assert not found[1].any()


def test_edge_list_with_labels(tmp_path):
    """Comments, both directions, a repetition, a loop, an isolated piece, weights, labels in two formats."""
    path = tmp_path / "net.edgelist"
    path.write_text("# comment\n% another\n10 20\n20\t10\n10,30 0.5\n\n30 30\n40 50 1082040961\n40 50\n")
    network = read_edge_list(path)
    assert network.n == 5
    assert network.edges.tolist() == [[0, 1], [0, 2], [3, 4]]
    assert network.labels is None
    assert network.notes == (
        "net.edgelist: 1 loops were left out.",
        "net.edgelist: 2 edges that repeat another, perhaps in the other direction, were left out.",
    )
    (tmp_path / "net.nodelabel").write_text("20 7\n10 3\n30 3\n40 9\n50 9\n")
    assert load_network(f"edges:{path}").labels.tolist() == [0, 1, 0, 2, 2]
    (tmp_path / "net.nodelabel").unlink()
    (tmp_path / "labels-net.txt").write_text("node label\n10 0\n20 1\n30 0\n40 1\n50 1\n")
    assert read_edge_list(path).labels.tolist() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("edges", "labels", "message"),
    [
        (
            "1 2\n1 x\n",
            None,
            "net.txt, line 2: expected two node numbers, got '1 x': mend the line or remove it",
        ),
        ("1 2\n3\n", None, "net.txt, line 2: expected two node numbers, got '3'"),
        ("# nothing\n", None, "net.txt: no edge: expected two node numbers a line"),
        ("4 4\n", None, "net.txt: all edges are loops"),
        (
            "1 2\n",
            "1 0\n3 1\n",
            "net.nodelabel, line 2: node 3 has a label and no edge in net.txt: remove the line",
        ),
        ("1 2\n", "1 0\n", "net.nodelabel: node 2 of net.txt has no label"),
        ("1 2\n", "1 0\n2 b\n", "net.nodelabel, line 2: expected a node and its label, got '2 b'"),
    ],
)
def test_damaged_edge_lists(tmp_path, edges, labels, message):
    path = tmp_path / "net.txt"
    path.write_text(edges)
    if labels:
        (tmp_path / "net.nodelabel").write_text(labels)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_edge_list(path)


def tu_files(folder: Path, **parts: str) -> Path:
    """A collection of a triangle, a pair, and a node alone."""
    files = {
        "A": "1, 2\n2, 1\n2, 3\n3, 2\n1, 3\n3, 1\n4, 5\n5, 4\n",
        "graph_indicator": "1\n1\n1\n2\n2\n3\n",
        "graph_labels": "1\n-1\n1\n",
    } | parts
    folder = folder / "DS"
    folder.mkdir()
    for part, text in files.items():
        (folder / f"DS_{part}.txt").write_text(text)
    return folder


def test_tu_format(tmp_path):
    network = load_network(f"tu:{tu_files(tmp_path)}")
    assert network.name == "DS"
    assert network.edges.tolist() == [[0, 1], [0, 2], [1, 2], [3, 4]]
    assert network.graph.tolist() == [0, 0, 0, 1, 1, 2]
    assert network.labels.tolist() == [1, 0, 1]
    assert network.notes == ()
    found = views.graph_views(network, 4)
    assert found.sizes.tolist() == [3, 2, 1]
    assert found.adj[0].sum() == 6
    assert not found.x[..., views.DEGREE_BINS].any()  # no ego
    adj, sizes = views.small_graphs(network, 5, np.random.default_rng(0), least=2, most=9)
    assert sorted(sizes.tolist()) == [2, 3]
    assert adj.sum() == 8


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"A": "1, 2\n2, 9\n"}, "DS_A.txt, line 2: expected nodes from 1 to 6, got 2 and 9"),
        ({"A": "1, 4\n"}, "DS_A.txt, line 1: nodes 1 and 4 are of different graphs, 1 and 2"),
        ({"graph_indicator": "1\n2\n1\n"}, "DS_graph_indicator.txt, line 3: expected ascending numbers"),
        (
            {"graph_labels": "1\n"},
            "expected graphs from 1 to 1, as many as DS_graph_labels.txt has lines, got 1 to 3",
        ),
        ({"graph_labels": "1\na\n"}, "DS_graph_labels.txt, line 2: expected a graph's class, got 'a'"),
        ({"graph_labels": ""}, "DS_graph_labels.txt: no line"),
    ],
)
def test_damaged_tu_files(tmp_path, parts, message):
    folder = tu_files(tmp_path, **parts)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_tu(folder)
    (folder / "DS_A.txt").unlink()
    (folder / "DS_graph_labels.txt").write_text("1\n2\n3\n")
    (folder / "DS_graph_indicator.txt").write_text("1\n2\n3\n")
    with pytest.raises(FileNotFoundError, match=r"DS_A.txt: unpack the TU data set DS there"):
        read_tu(folder)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a_n": 3}, "there is no array 'a_edges': expected one of the networks b, or edges:PATH"),
        (
            {"a_n": 3, "a_edges": np.zeros((0, 2))},
            "a_edges: expected [edges, 2] with at least one edge, got (0, 2)",
        ),
        ({"a_n": 3, "a_edges": [[0, 3]]}, "a_edges: expected nodes from 0 to 2, got 3"),
        (
            {"a_n": 3, "a_edges": [[0, 1]], "a_y": [0, 1]},
            "a_y: expected a label for each of 3 nodes, got (2,)",
        ),
    ],
)
def test_damaged_arrays(tmp_path, arrays, message):
    path = tmp_path / "graphs.npz"
    np.savez(path, b_edges=np.array([[0, 1]]), **{name: np.asarray(value) for name, value in arrays.items()})
    with pytest.raises(ValueError, match=re.escape(message)):
        load_network("a", path)
    with pytest.raises(
        FileNotFoundError, match=r"set JAXNEG_DATA to the folder that holds w2pgnn/graphs\.npz"
    ):
        load_network("a", tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"expected edges:PATH, tu:FOLDER, smiles:FILE or a name, got csv:"):
        load_network("csv:x")


def test_scaffold_domains():
    """Five runs of 4 scaffolds, half of each; the last keeps all that is left."""
    scaffolds = [f"s{i % 23}" for i in range(46)]
    found = [molecules.scaffold_domain(scaffolds, domain) for domain in range(5)]
    assert [len(domain) for domain in found] == [4, 4, 4, 4, 4]
    assert len({number for domain in found for number in domain}) == 20
    assert len(molecules.scaffold_domain([f"s{i}" for i in range(20)], 4)) == 4
    assert all(sorted(d) == sorted(np.concatenate([[i, i + 23] for i in d if i < 23])) for d in found)
    with pytest.raises(ValueError, match="expected at least 10 different ones for 5 domains, got 9"):
        molecules.scaffold_domain([f"s{i}" for i in range(9)], 0)


def test_molecules_need_rdkit(tmp_path, monkeypatch):
    path = tmp_path / "zinc.csv"
    path.write_text("CCO,1\n")
    monkeypatch.setitem(__import__("sys").modules, "rdkit", None)
    with pytest.raises(ImportError, match="reading SMILES needs RDKit: pip install rdkit, or convert"):
        load_network(f"smiles:{path}")
    with pytest.raises(ValueError, match="expected a scaffold domain from 0 to 4"):
        load_network(f"smiles:{path}#5")
    with pytest.raises(FileNotFoundError, match="expected a SMILES at the beginning of each line"):
        load_network("smiles:nowhere.smi")


def test_molecules(tmp_path):
    pytest.importorskip("rdkit")
    path = tmp_path / "zinc.csv"
    path.write_text("smiles,label\nCCO,1\nc1ccccc1,0\n")
    network = load_network(f"smiles:{path}")
    assert (network.n, len(network.edges)) == (9, 8)
    assert network.labels.tolist() == [1, 0]
    rings = ["c1ccccc1C", "C1CCCCC1C", "c1ccncc1C", "C1CCNCC1C", "c1ccoc1C"]
    rings += ["c1ccsc1C", "C1CCCC1C", "C1CC1C", "C1CCC1C", "C1CCOCC1C"]
    path.write_text("\n".join([*rings, *(ring + "C" for ring in rings)]))
    domains = [load_network(f"smiles:{path}#{domain}") for domain in range(5)]
    assert [int(domain.graph[-1]) + 1 for domain in domains] == [2, 2, 2, 2, 4]
    assert domains[0].labels is None
    path.write_text("CCO\nnot a molecule\n")
    with pytest.raises(ValueError, match=r"zinc.csv, line 2: expected a SMILES that RDKit can read"):
        load_network(f"smiles:{path}")


def test_walks(brazil):
    """Seeds first, no repetition, nodes within reach; a node alone stays alone; restarts keep walks near."""
    rng = np.random.default_rng(0)
    seeds = np.arange(brazil.n)
    nodes = views.walk_nodes(brazil, seeds, 0.5, 40, 8, rng)
    np.testing.assert_array_equal(nodes[:, 0], seeds)
    adj = brute_adjacency(brazil)
    for row in nodes:
        real = row[row >= 0]
        assert len(set(real.tolist())) == len(real)
        assert (row[len(real) :] == -1).all()
        for k in range(1, len(real)):  # each is a neighbour of one visited before
            assert adj[real[k], real[:k]].any()
    steps = views.walk_nodes(brazil, seeds, 0.0, 1, 3, rng)
    assert adj[steps[:, 0], steps[:, 1]].all()
    assert (steps[:, 2] == -1).all()
    alone = Network("alone", 3, np.array([[0, 1]]))
    assert views.walk_nodes(alone, np.array([2]), 0.5, 5, 4, rng).tolist() == [[2, -1, -1, -1]]
    # The share of first steps to each neighbour is even.
    hub = int(brazil.degree.argmax())
    ends = views.walk_nodes(brazil, np.full(20_000, hub), 0.0, 1, 2, rng)[:, 1]
    shares = np.bincount(ends, minlength=brazil.n)[adj[hub] > 0] / 20_000
    np.testing.assert_allclose(shares, 1 / brazil.degree[hub], atol=0.006)


def test_views_and_features(brazil):
    found = views.walk_views(
        brazil, np.arange(6).reshape(3, 2), np.random.default_rng(1), restart=0.5, steps=30, most=7, chunk=4
    )
    assert found.x.shape == (3, 2, 7, views.FEATURES)
    for x, adj, size in zip(
        found.x.reshape(6, 7, -1), found.adj.reshape(6, 7, 7), found.sizes.ravel(), strict=True
    ):
        degree = adj.sum(1)[:size].astype(float)
        walk = adj[:size, :size] / np.maximum(degree, 1)[:, None]
        for node in range(size):
            bins = np.maximum(0, 1 - np.abs(np.log2(degree[node] + 1) - np.arange(6)))
            returns = [np.linalg.matrix_power(walk, k)[node, node] for k in (2, 3, 4, 5)]
            np.testing.assert_allclose(x[node], [*bins, node == 0, *returns], atol=1e-6)
        assert not x[size:].any()


def test_positions_are_leading_eigenvectors():
    """Of a path of four nodes two vectors, with rows of length one; none of a graph of two nodes."""
    path = np.zeros((2, 6, 6))
    for i in range(3):
        path[0, i, i + 1] = path[0, i + 1, i] = 1
    path[1, 0, 1] = path[1, 1, 0] = 1
    x = views.view_features(path, np.array([4, 2]), positions=3)
    scale = np.diag([1, 0.5**0.5, 0.5**0.5, 1])
    values, vectors = np.linalg.eigh(scale @ path[0, :4, :4] @ scale)
    leading = vectors[:, np.argsort(-values)[:2]]
    leading /= np.linalg.norm(leading, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(x[0, :4, :2]), np.abs(leading), atol=1e-6)
    assert not x[0, :, 2].any()
    assert not x[1, :, :3].any()


def test_ego_networks(brazil):
    rng = np.random.default_rng(0)
    adj, sizes = views.small_graphs(brazil, 4, rng, least=8, most=131)
    assert len(adj) == len(sizes) == 4
    whole = brute_adjacency(brazil)
    reach = (np.eye(131) + whole + whole @ whole.astype(int)) > 0
    assert set(sizes.tolist()) <= set(reach.sum(1).tolist())
    with pytest.raises(ValueError, match=r"no 2-hop ego network \(or graph\) has 500 to 600 nodes: change"):
        views.small_graphs(brazil, 4, rng, least=500, most=600)
