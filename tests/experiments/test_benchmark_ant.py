"""ANT's benchmark: its peers' intervals, the ways to make a step, and one round of each part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import ant
from jaxneg.diffusion import cosine_schedule

TINY = ant.Setting("mlp", 16, 1, 100)


def test_three_ways_to_the_same_intervals():
    log_snr = cosine_schedule(24).log_snr
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(24, 24))
    affinity = np.eye(24) + noise + noise.T
    for kind, values in (("snr", log_snr), ("gradient", affinity)):
        expected = ant.official_clustering(kind, values, 4)
        assert expected[0] == 0
        assert expected[-1] == 24
        assert ant.numpy_clustering(kind, values, 4) == expected
        assert ant.our_clustering(kind, values, 4) == expected
    assert ant.official_clustering("snr", log_snr, 1) == ant.numpy_clustering("snr", log_snr, 1) == [0, 24]


def test_different_intervals_are_not_timed(monkeypatch):
    monkeypatch.setattr(ant, "our_clustering", lambda kind, values, k: [0, 1, len(values)])
    with pytest.raises(RuntimeError, match=r"snr, k=2: the intervals differ: .* not timed"):
        ant._clustering(12, (2,), 1)


def test_every_way_names_what_the_paper_has():
    assert set(ant.PAPER) <= set(ant.WAYS)
    assert {way.steps for way in ant.WAYS.values() if way.aggregator == "nash"} == {ant.NASH_EVERY}


@pytest.mark.slow
def test_one_round_of_each_part(monkeypatch):
    clustering = ant._clustering(30, (2, 3), 1)
    assert set(clustering) == {"snr k=2", "snr k=3", "gradient k=2"}
    assert all(row["ratio_median"] > 0 < row["numpy_ratio_median"] for row in clustering.values())
    monkeypatch.setattr(ant, "machine_peaks", lambda: {
        "matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10
    })  # fmt: skip
    names = ("uw", "pcgrad", "pcgrad on the whole batch", "nash on the whole batch")
    monkeypatch.setattr(ant, "WAYS", {name: ant.WAYS[name] for name in names})
    steps = ant._steps(TINY, 6)
    assert set(steps) == set(names)
    for name, row in steps.items():
        assert row["over_vanilla_low"] <= row["over_vanilla"] <= row["over_vanilla_high"]
        assert ("paper_over_vanilla" in row) == (name in ant.PAPER)
    # All the task gradients in one backward pass, or in one for each task.
    one, each = (steps[name]["flops_over_vanilla"] for name in ("pcgrad", "pcgrad on the whole batch"))
    assert one < 1.5 < 2 < each
    nash = steps["nash on the whole batch"]
    assert nash["flops_between"] < nash["flops_over_vanilla"] < nash["flops_of_a_solve"]


@pytest.mark.slow
def test_other_directions_are_not_timed(monkeypatch):
    chosen = {"pcgrad": ant.WAYS["pcgrad"], "other": ant.WAYS["pcgrad"]._replace(pullback="sequential")}
    monkeypatch.setattr(ant, "WAYS", chosen)
    monkeypatch.setattr(ant, "machine_peaks", lambda: {
        "matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10
    })  # fmt: skip
    monkeypatch.setattr(ant, "DIRECTION_APART", -1.0)
    with pytest.raises(RuntimeError, match=r"pcgrad: another direction, 0\.0e\+00 apart: it is not timed"):
        ant._steps(TINY, 1)


@pytest.mark.slow
def test_a_dit_takes_the_step():
    step, state, batch = ant.step_of(ant.WAYS["uw"], ant.Setting("dit", 32, 1, 5, 4))
    after, metrics = jax.eval_shape(step, state, batch)
    assert metrics["losses"].shape == (ant.CLUSTERS,)
    assert jax.tree.map(jnp.shape, after.params) == jax.tree.map(jnp.shape, state.params)
