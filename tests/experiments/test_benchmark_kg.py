"""The benchmark beside PyKEEN: what it refuses, and one round where PyKEEN is installed."""

import sys

import numpy as np
import pytest

from experiments.benchmarks import kg as benchmark
from jaxneg import kg

SIZES = benchmark.Sizes(dimensions=4, batch=16, negatives=3, test=10, chunk=4)
PEAKS = {"matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10}


@pytest.fixture(scope="module")
def graph():
    return benchmark.random_graph(600)


def test_absent_peers_are_named(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, "pykeen", None)
    monkeypatch.setitem(sys.modules, "pykeen.models", None)
    with pytest.raises(
        ImportError, match=r"measures against PyKEEN .* pip install 'jaxneg\[bench\]', or give it"
    ):
        benchmark.run()


def test_graph_and_negatives(graph):
    assert len(graph.entities) == 600 * 40_943 // 86_835
    assert [len(part) for part in (graph.train, graph.valid, graph.test)] == [600, 20, 20]
    positives, negatives = benchmark.negatives_of(graph, SIZES)
    assert positives.shape == (16, 3)
    assert negatives.shape == (16, 3)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["TransE", "RotatE"])
def test_steps_beside_pykeen(graph, model):
    pytest.importorskip("pykeen")
    measured = benchmark.steps_compared(model, graph, SIZES, 3, PEAKS)
    assert len(measured) == 3
    for row in measured.values():
        assert row["scores_apart"] < 1e-5
        assert row["ratio_low"] <= row["ratio_median"] <= row["ratio_high"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["TransE", "DistMult", "ComplEx", "RotatE"])
def test_ranks_are_pykeens(graph, model):
    pytest.importorskip("pykeen")
    assert benchmark.evaluation_compared(model, graph, SIZES, 1)["metrics_apart"] < 1e-5


@pytest.mark.slow
def test_other_scores_are_refused(graph, monkeypatch):
    pytest.importorskip("pykeen")
    monkeypatch.setattr(kg, "kge_score", lambda *args, **_: 1.01 * _SCORE(*args))
    with pytest.raises(RuntimeError, match=r"TransE, scores: the two sides are .* apart"):
        benchmark.require_same_start("TransE", graph, SIZES)


_SCORE = kg.kge_score


def test_kmeans_beside_scikit_learn():
    row = benchmark.kmeans_compared(1, rows=300, width=4, clusters=8)
    assert np.isfinite(row["ratio_median"])
    assert row["inertia_apart"] < 1e-2
