"""The benchmark of fairness: what it refuses, its pieces, and one round beside the peers."""

import sys

import numpy as np
import pytest

from experiments.anonymity_fairness.tables import SMALL, load_table
from experiments.benchmarks import fairness
from jaxneg.fairness import individual_metrics, optimal_lattice


@pytest.fixture(scope="module")
def table():
    return load_table("compas", SMALL)[0].rows(np.arange(300))


@pytest.mark.parametrize("name", ["anjana.anonymity", "pycanon.anonymity"])
def test_absent_peers_are_named(monkeypatch, name):
    for module in fairness.PEERS:
        monkeypatch.setitem(sys.modules, module, sys)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ImportError, match=r"'fairness' measures against .* pip install 'jaxneg\[bench-fairness\]'"
    ):
        fairness.run()


def test_the_frame_has_a_label_for_each_code(table):
    frame, hierarchies = fairness.frame_of(table)
    assert frame.shape == (300, 6)
    for j, column in enumerate(hierarchies):
        assert len(hierarchies[column]) == table.dataset.n_levels[j]
        labels = [label for level in hierarchies[column].values() for label in set(level)]
        assert len(set(labels)) == len(labels)  # no label belongs to two levels
        assert frame[column].nunique() == len(np.unique(table.dataset.X[:, j]))


def test_the_loss_is_the_lattices(table):
    data = table.dataset
    found = optimal_lattice(data.X, data.maps, data.n_levels, 5, 20.0)
    assert fairness.loss_of(data, found.levels, found.keep) == pytest.approx(found.loss)


def test_the_loops_are_the_metrics():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(40, 2))
    p1 = rng.random(40)
    p = np.stack([1 - p1, p1], axis=1)
    np.testing.assert_allclose(individual_metrics(p, z, 7), fairness.official_individual(p, z, 7), rtol=1e-4)


@pytest.mark.slow
def test_one_round_beside_the_peers(monkeypatch):
    pytest.importorskip("anjana")
    monkeypatch.setattr(fairness, "SETTINGS", fairness.SETTINGS[:3])
    measured = {
        **fairness.anonymisation_compared(fairness.Anonymisation(table="compas", rows=500, k=5), 3),
        **fairness.similarity_compared(fairness.Similarity(rows=60, features=3, neighbours=9), 3),
        **fairness.grid_compared(fairness.Grid(seeds=1, steps=100, neighbours=9, rows=600), 3),
    }
    assert set(measured) == {
        "k_anonymity_beside_anjana",
        "fourteen_k_beside_fourteen_calls",
        "optimal_lattice_beside_anjana",
        "k_l_t_beside_pycanon",
        "individual_metrics",
        "grid_beside_scikit_learn",
    }
    assert measured["optimal_lattice_beside_anjana"]["loss"] <= measured["k_anonymity_beside_anjana"]["loss"]
    for row in measured.values():
        assert row["ratio_median"] > 0
