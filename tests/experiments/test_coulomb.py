"""The Coulomb experiment: its measurements, its baseline, the step for a pod, and a whole run."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import coulomb as experiment
from experiments.coulomb import claims, electrolyte
from experiments.coulomb.claims import CLAIMS, Results, agreeing, measurements
from experiments.coulomb.electrolyte import EDGES, RINGS, SECTORS, in_bins, theory
from experiments.coulomb.finite_differences import euler_maruyama_spectra, longest_step
from experiments.coulomb.pod import SlabState, slab_step_target
from experiments.run_dir import RunDir
from experiments.runner import judge, run_experiment
from jaxneg.coulomb import SdftConfig, SdftState, SpectralGrid, sdft_init, sdft_step
from jaxneg.train import make_mesh, shard_step

CFG = SdftConfig((32, 32), Ef=2.0)


@pytest.fixture(scope="module")
def perfect():
    """Results of a simulation that finds the theory's own numbers, twice."""
    bins = {Ef: np.asarray(in_bins(theory(dataclasses.replace(CFG, Ef=Ef)), CFG.grid)) for Ef in (0.0, 2.0)}
    law = 4 / (2 * np.pi * 5**1.5 * RINGS**2)
    tail = {"harmonic": law, "tail": law, "signs": np.array([0.9, 1.1])}
    wall = {"force": 0.1, "box": 0.1, "corrected": 0.2, "closed": 0.2, "error": 0.01}
    k = np.arange(1.0, 12.0)
    line = {"S": k, "S_slope": 1.0, "z": 1.2}
    linear = {"S": 0 * k + 1, "S_slope": 0.0, "z": 2.0}
    quench = {"slopes": np.full(4, -0.5), "late": np.ones((4, 2)), "early": np.ones(4)}
    return Results(
        {Ef: [{"bins": b, "errors": 0 * b}] * 2 for Ef, b in bins.items()},
        {2.0: [tail] * 2},
        {"slopes_2d": np.full(3, -2.0), "slopes_3d": np.full(3, -3.0)},
        {4.0: [{name: np.array(x) for name, x in wall.items()}] * 2},
        quench,
        {"polar": [line] * 2, "polar and repulsive": [line] * 2, "linear": [linear] * 2},
        [{"slope": np.array(0.67)}] * 2,
    )


def test_every_claim_holds_of_the_theory(perfect):
    judged = judge(CLAIMS, measurements(perfect, CFG))
    assert [j.claim.name for j in judged if j.verdict != "holds"] == []


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("structure-factors-follow-the-theory", lambda r: r.electrolyte[2.0][0]["bins"].__imul__(1.2)),
        ("tails-fall-with-a-power", lambda r: r.tails[2.0][0]["harmonic"].__imul__(1 / RINGS)),
        ("tails-change-sign-with-direction", lambda r: r.tails[2.0][0]["signs"].__imul__([1, -1])),
        ("simulated-force-is-that-of-its-box", lambda r: r.walls[4.0][0]["force"].__iadd__(0.05)),
        ("simulated-force-is-the-closed-form", lambda r: r.walls[4.0][0]["closed"].__iadd__(0.05)),
        ("couplings-act-as-one", lambda r: r.line["polar and repulsive"][0]["S"].__imul__(1.5)),
        ("density-and-charge-are-coupled", lambda r: r.electrolyte[2.0][0]["bins"].__imul__(-1)),
    ],
)
def test_a_claim_fails_of_something_else(perfect, name, spoil):
    spoiled = jax.tree.map(np.copy, perfect)
    spoil(spoiled)
    values = np.asarray(measurements(spoiled, CFG)[name])
    claim = next(claim for claim in CLAIMS if claim.name == name)
    assert claim.judge(np.full(3, values[0])).verdict == "does not hold"


def test_bins_count_modes_by_direction():
    """On spectra that are functions of the direction alone, the sectors see their own values."""
    grid = SpectralGrid((64, 64), 0.5)
    kx, k = np.asarray(grid.wavenumber(0)), np.sqrt(np.asarray(grid.k2()))
    cosine = np.broadcast_to(np.abs(kx) / np.where(k > 0, k, 1), grid.spectrum_shape)
    found = np.asarray(
        in_bins(jnp.asarray(np.stack([cosine, k + 0 * cosine, np.sign(kx) + 0 * cosine])), grid)
    )
    for (low, high), values in zip(SECTORS.values(), found[0], strict=True):
        assert np.nanmin(values) >= low - 1e-6
        assert np.nanmax(values) <= high + 1e-6
    assert np.all((found[1] > EDGES[:-1]) & (found[1] <= EDGES[1:]))
    # Im <n q*> is odd along the field; k_x = 0 adds nothing to the sector across it.
    np.testing.assert_allclose(found[2, 0], 1, rtol=1e-5)
    assert agreeing({"bins": found, "errors": 0 * found}, found).all()


def test_explicit_steps_have_their_limit():
    """Well below it the generic integrator is right, above it it is refused; without field it is dx^2 / 4."""
    assert longest_step(0.1, 0.0) == pytest.approx(0.1**2 / 4, rel=1e-2)
    limit = longest_step(0.5, 2.0)
    small = SdftConfig((16, 16), Ef=2.0, dt=0.2 * limit)
    k = np.sqrt(np.asarray(small.grid.k2()))
    inside = (k > 0.5) & (k < 1.5)
    found = euler_maruyama_spectra(jax.random.key(0), small, 400, 16_000, 10)
    ratio = found[:, inside] / theory(small)[:2, inside]
    assert abs(ratio.mean() - 1) < 0.1
    with pytest.raises(ValueError, match=re.escape("above which explicit steps are unstable for Ef = 2.0")):
        euler_maruyama_spectra(jax.random.key(0), dataclasses.replace(small, dt=1.05 * limit), 10, 10, 10)


def test_a_run_that_blows_up_says_so(monkeypatch):
    def blown(key, cfg, steps, every):
        return (np.ones((10, 3, 32, 17)), np.ones((10, 3, 3, 7)), np.full(10, np.nan)), np.zeros((2, 32, 32))

    monkeypatch.setattr(electrolyte, "_samples", blown)
    with pytest.raises(
        FloatingPointError, match=r"Ef = 2.0, g = 0.02 on .* blew up before step 20: take a smaller"
    ):
        electrolyte.simulate(jax.random.key(0), CFG, 0, 200, 20)


def test_the_step_for_the_pod_on_a_small_mesh():
    """In slabs on eight devices it is the library's step, its key folded with the number of the step."""
    target = slab_step_target(8, 8)
    cfg = SdftConfig((8, 8, 8), Ef=1.5, g=0.03)
    key = jax.random.key(1)
    start = jax.jit(lambda key: sdft_init(key, cfg))(key)
    expected = jax.jit(sdft_step)(SdftState(*start), jax.random.fold_in(key, 0), cfg)
    sharded = shard_step(
        target.step,
        make_mesh(target.mesh),
        target.state,
        target.batch,
        rules=target.rules,
        fsdp=target.fsdp,
        batch_spec=target.batch_spec,
    )
    state = sharded.place_state(SlabState(jnp.zeros((), jnp.int32), start.n, start.q, key))
    batch = sharded.place_batch({"Ef": jnp.float32(1.5), "g": jnp.float32(0.03)})
    assert state.n.sharding.spec[1] == "data"
    state, metrics = sharded(state, batch)
    np.testing.assert_allclose(state.n, expected.n, atol=1e-4)
    np.testing.assert_allclose(state.q, expected.q, atol=1e-4)
    assert float(metrics["charges"]) > 0
    with pytest.raises(ValueError, match="points: expected a multiple of the 256 chips, got 1000"):
        slab_step_target(1000)


@pytest.mark.slow
@pytest.mark.tpu_compile
def test_the_step_compiles_for_a_slice():
    pytest.importorskip("libtpu")
    from jaxneg.train import compile_for

    report = compile_for(slab_step_target(64, 4), "v5e:2x2")
    assert report.fits
    assert report.collectives["all-to-all"] > 0
    assert report.collectives["all-gather"] == 0


@pytest.mark.slow
def test_smoke_run(tmp_path):
    """A verdict for each claim, figures and tables; a run that is resumed finds the same."""
    config = experiment.PRESETS["smoke"]
    with RunDir.create("coulomb", config, preset="smoke", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in CLAIMS]
    certain = {claim["name"]: claim["verdict"] for claim in report["claims"]}
    for name in (
        "force-exponent-in-two-dimensions",
        "force-exponent-in-three-dimensions",
        "force-relaxes-with-a-power-after-a-quench",
        "force-relaxes-with-its-amplitude",
    ):
        assert certain[name] == "holds"
    figures = sorted(path.stem for path in (tmp_path / "run" / "figures").glob("*.png"))
    assert figures == [
        "chemotaxis_line",
        "chemotaxis_plane",
        "fields_and_spectra",
        "force_against_distance",
        "quench",
        "structure_factors",
        "tails",
    ]
    assert len(report["tables"]) == 4
    (tmp_path / "run" / "report.json").unlink()
    with RunDir.resume(tmp_path / "run", "coulomb", experiment.Config) as run_dir:
        again = run_experiment(run_dir)
    assert again["claims"] == report["claims"]


def test_presets():
    assert set(experiment.PRESETS) == {"smoke", "cpu", "paper"}
    assert experiment.PRESETS["cpu"].seeds >= 3
    assert experiment.PRESETS["paper"].pod_points == 1024
    assert {claim.source for claim in CLAIMS} == {claims.PAPER, claims.QUENCH, claims.CHEMOTAXIS}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"grid": 63}, "grid: expected an even number of 16 or more, got 63"),
        ({"burn_in": 30}, "burn_in: expected a multiple of 20, got 30"),
        ({"steps": 410}, "steps: expected a multiple of 20, 400 or more, got 410"),
        ({"fields": (0.0, 1.0)}, "fields: expected numbers from 0 on, with 0 and 2 among them"),
        ({"tail_fields": (0.0,)}, "tail_fields: expected at least one, all positive"),
        ({"distances": (4.1,)}, "distances, wall_length: expected positive multiples of dx = 0.5, got 4.1"),
        ({"dt": 0.5}, "dt: expected at most 0.114, above which sdft_etd"),
        ({"plane_coupling": 4.0}, "dt: unstable: expected a grid Reynolds number"),
        ({"pod_points": 1000}, "pod_points: expected a positive multiple of 256, got 1000"),
    ],
)
def test_a_wrong_config(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        experiment.Config(**fields)
