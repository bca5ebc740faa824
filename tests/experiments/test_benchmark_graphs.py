"""The benchmark of graphs: what it refuses, the arithmetic of its other side, and one round beside POT."""

import sys

import numpy as np
import pytest

from experiments.benchmarks import graphs

COLLECTION = graphs.Collection(graphs=4, nodes=16)
GRID = graphs.Grid(sources=(0, 9, 10), targets=(3,), resolution=6, steps=3)


def check(row):
    assert row["ratio_low"] <= row["ratio_median"] <= row["ratio_high"]
    assert row["pairs"] >= 3


def test_an_absent_peer_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match=r"'graphs' measures against POT .* pip install 'jaxneg\[bench\]'"):
        graphs.run()


@pytest.mark.slow
@pytest.mark.parametrize("method", graphs.ESTIMATORS)
def test_estimators_beside_the_published_arithmetic(method):
    row = graphs.estimator_compared(method, COLLECTION, 3)
    check(row)
    assert row["apart"] < 1e-4


def test_another_graphon_is_refused(monkeypatch):
    monkeypatch.setitem(graphs.PUBLISHED, "lg", lambda aligned, _: np.mean(aligned, axis=0))
    with pytest.raises(RuntimeError, match=r"graphon, lg: the two sides' probabilities are .* apart"):
        graphs.estimator_compared("lg", COLLECTION, 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "graphon"])
def test_gromov_wasserstein_beside_pot(kind):
    pytest.importorskip("ot")
    row = graphs.gw_compared(kind, 12, 40, 3)
    check(row)
    assert row["apart"] < 1e-6
    assert row["apart_float32"] < 0.05


@pytest.mark.slow
def test_feasibility_beside_pot():
    pytest.importorskip("ot")
    row = graphs.grid_compared(GRID, 3)
    check(row)
    assert row["feasibilities"] == 3
