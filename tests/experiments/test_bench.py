"""Benchmarks: the arithmetic on a clock that the test turns, the result file, and the printed tables."""

import itertools
import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bench
from experiments.command_line import main


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when a program says how long it took."""
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def program(*seconds):
        durations = itertools.cycle(seconds)

        def call():
            now[0] += next(durations)

        return call

    return program


def test_paired_ratio(clock):
    timing = bench.paired_ratio(clock(0.5), clock(2.0), 9)
    assert timing == pytest.approx(
        {
            "ours_seconds": 0.5,
            "peer_seconds": 2.0,
            "ratio_median": 4.0,
            "ratio_low": 4.0,
            "ratio_high": 4.0,
            "pairs": 9,
        }
    )


@pytest.mark.parametrize(("budget", "pairs"), [(math.inf, 9), (12.4, 4), (2.4, 3), (100.0, 9)])
def test_slow_programs_get_fewer_pairs(clock, budget, pairs):
    assert bench.paired_ratio(clock(0.5), clock(2.0), 9, budget_seconds=budget)["pairs"] == pairs
    assert bench.paired_ratio(clock(0.5), clock(2.0), 2, budget_seconds=budget)["pairs"] == 2


def test_slow_programs_are_called_twice_before_they_are_timed(clock):
    calls = []
    tick = clock(3.0)
    bench.paired_ratio(lambda: (calls.append(1), tick())[1], clock(1.0), 1)
    assert len(calls) == 3


def test_the_ratio_is_taken_within_pairs(clock):
    # Both slow down together every other pair: the ratio does not see it.
    timing = bench.paired_ratio(clock(1.0, 10.0), clock(3.0, 30.0), 8)
    assert timing["ratio_low"] == timing["ratio_high"] == pytest.approx(3.0)


def test_the_ratio_has_an_interval(clock):
    timing = bench.paired_ratio(clock(1.0), clock(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0), 14)
    assert timing["ratio_median"] == pytest.approx(4.0)
    assert timing["ratio_low"] < 4.0 < timing["ratio_high"]


def test_short_programs_are_called_often_enough(clock):
    calls = []
    tick = clock(1e-4)
    timing = bench.paired_ratio(lambda: (calls.append(1), tick())[1], clock(1e-4), 3, sample_seconds=0.01)
    assert timing["ours_seconds"] == pytest.approx(1e-4)
    assert len(calls) == pytest.approx(3 * 100 + 4, abs=4)


def test_which_program_goes_first_changes(clock):
    order = []
    first, second = clock(1.0), clock(1.0)
    bench.paired_ratio(
        lambda: (order.append("ours"), first())[1], lambda: (order.append("peer"), second())[1], 2
    )
    assert order[-4:] == ["ours", "peer", "peer", "ours"]


def test_no_repeats():
    with pytest.raises(ValueError, match=r"repeats: expected at least 1, got 0"):
        bench.paired_ratio(lambda: None, lambda: None, 0)


def test_results_are_waited_for():
    function = jax.jit(lambda x: {"y": x @ x})
    matrix = jnp.ones((64, 64))
    assert 0 < bench.median_seconds(lambda: function(matrix), 3, sample_seconds=1e-3) < 1


def test_roofline_of_this_machine():
    peaks = bench.machine_peaks(size=256, megabytes=8, repeats=2)
    assert peaks["matmul_flops_per_second"] > 1e8
    assert peaks["copy_bytes_per_second"] > 1e8
    assert bench.roofline_seconds(peaks["matmul_flops_per_second"], 0, peaks) == 1.0
    assert bench.roofline_seconds(0, 2 * peaks["copy_bytes_per_second"], peaks) == 2.0


def test_tables_of_a_nested_dictionary():
    measured = {
        "seed": 3,
        "ok": True,
        "methods": {"mgda": {"ratio": 5.0, "T": 3}, "nash": {"ratio": 20.0, "note": "host"}},
        "flat": {"a": 1.0},
        "deep": {"T=3": {"mgda": {"ratio": 1.0, "sizes": [1, 2]}}},
        "rows": [{"x": 1}, {"x": 2}],
    }
    made = bench.result_tables("speed", measured)
    tables = {table.title: table for table in made}
    assert tables["speed: methods"].columns == ["", "ratio", "T", "note"]
    assert tables["speed: methods"].rows == [["mgda", 5.0, 3, ""], ["nash", 20.0, "", "host"]]
    assert tables["speed: rows"].rows == [["0", 1], ["1", 2]]
    shown = [cell for table in made for row in table.rows for cell in row]
    assert {"True", "1, 2"} <= set(shown)
    assert 1.0 in shown


def test_bench_writes_and_prints(toy, capfd):
    assert main(["bench", "toy_bench", "--results", "out", "--repeats", "5"]) == 0
    written = json.loads(Path("out/toy_bench.json").read_text())
    assert written["benchmark"] == "toy_bench"
    assert written["results"]["repeats"] == 5
    assert written["results"]["sizes"] == [0, 1]
    assert set(written["results"]["sums"]["short"]) == {
        "ours_seconds", "peer_seconds", "ratio_median", "ratio_low", "ratio_high", "pairs"
    }  # fmt: skip
    assert {"processor", "cores", "memory", "date", "devices"} <= set(written["machine"])
    assert {"jax", "numpy"} <= set(written["versions"])
    out = capfd.readouterr().out
    assert "ratio_median" in out.replace("\n", "") or "ratio" in out
    assert str(Path("out/toy_bench.json")) in out


def test_a_benchmark_without_its_peer(toy, capfd, monkeypatch):
    def run(repeats=3):
        import a_peer_that_is_not_there  # pyright: ignore[reportMissingImports] # noqa: F401

    assert main(["bench", "toy_bench", "--results", "out"]) == 0
    monkeypatch.setattr(sys.modules["experiments.benchmarks.toy_bench"], "run", run)
    assert main(["bench", "toy_bench", "--results", "out2"]) == 1
    assert "'toy_bench' needs a_peer_that_is_not_there: pip install '.[bench]'" in capfd.readouterr().err
    assert not Path("out2").exists()


def test_a_benchmark_of_the_wrong_kind(toy, monkeypatch):
    assert main(["bench", "toy_bench", "--results", "out"]) == 0
    module = sys.modules["experiments.benchmarks.toy_bench"]
    monkeypatch.setattr(module, "run", lambda size: {"size": size})
    with pytest.raises(TypeError, match=r"benchmark 'toy_bench': expected run\(repeats=...\), got run\(size"):
        bench.run_benchmark("toy_bench", results=Path("out"))
    monkeypatch.setattr(module, "run", lambda repeats=1: {"x": object()})
    with pytest.raises(TypeError, match=r"a benchmark returns numbers and strings .* got object"):
        bench.run_benchmark("toy_bench", results=Path("out"))
    np.testing.assert_equal(json.loads(Path("out/toy_bench.json").read_text())["benchmark"], "toy_bench")
