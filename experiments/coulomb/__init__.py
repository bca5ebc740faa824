"""Driven electrolytes and polar chemotaxis: two Coulomb field theories out of equilibrium.

Holds simulations against the closed forms of Mahdisoltani and Golestanian (arXiv:2011.12821, 2104.14498,
reviewed in 2207.00467) and against the exact exponents of Mahdisoltani, Ben Ali Zinati, Duclut, Gambassi and
Golestanian (arXiv:1911.08115). Everything is generated. Only the papers' abstracts could be read, so that the
formulas are derived from the model that they name, and their prefactors are a proposed reading.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from experiments.claims import mean_interval
from experiments.coulomb import chemotaxis, walls
from experiments.coulomb.claims import CLAIMS, Arrays, Results, agreeing, expected_bins, measurements
from experiments.coulomb.electrolyte import (
    RINGS,
    pointwise_error,
    sampled_tail,
    simulate,
    theory,
)
from experiments.coulomb.figures import (
    draw_chemotaxis,
    draw_fields,
    draw_force,
    draw_line,
    draw_quench,
    draw_structure_factors,
    draw_tails,
)
from experiments.coulomb.finite_differences import euler_maruyama_spectra
from experiments.parallel import in_parallel
from experiments.run_dir import Outcome, RunDir, Table
from jaxneg.coulomb import ChemotaxisConfig, SdftConfig, conductivity_integral, exponents

if TYPE_CHECKING:
    from jaxneg.train import Target

__all__ = ["CLAIMS", "PRESETS", "Config", "compile_target", "run"]


@dataclass(frozen=True)
class Config:
    """Both theories."""

    seed: int = 0
    """Number that all noise is drawn from."""
    seeds: int = 4
    """Runs with noise of their own."""
    fields: tuple[float, ...] = (0.0, 1.0, 2.0)
    """Fields of the simulated electrolyte, in kBT kappa / Q; 0 and 2 among them."""
    grid: int = 64
    """Points along each axis of the simulated electrolyte."""
    dx: float = 0.5
    """Their distance, in Debye lengths."""
    g: float = 0.02
    """Plasma parameter."""
    dt: float = 0.05
    """Step, in Debye times."""
    burn_in: int = 2_000
    """Steps before anything is measured, a multiple of 20."""
    steps: int = 12_000
    """Steps that are measured, every 20th of them; a multiple of 20."""
    tail_fields: tuple[float, ...] = (1.0, 2.0)
    """Fields of the tails in space, none of them 0."""
    tail_grid: int = 256
    """Points along each axis of their grid, one Debye length apart; 80 or more."""
    tail_samples: int = 3_000
    """Independent configurations for each field."""
    distances: tuple[float, ...] = (4.0, 8.0, 12.0)
    """Of the walls, in Debye lengths; multiples of dx."""
    wall_field: float = 1.0
    """Field between the walls."""
    wall_length: float = 400.0
    """Length of the box between them, a multiple of dx."""
    wall_samples: int = 1_000
    """Exact steps between the walls, 20 Debye times each."""
    line_points: int = 512
    """Points of the chemotaxis on a line."""
    line_replicas: int = 8
    """Its runs for each seed."""
    line_steps: int = 24_000
    """Its steps of 0.1, of which the first third is left out; a multiple of 10."""
    plane_points: int = 256
    """Points along each axis of the chemotaxis in the plane."""
    plane_coupling: float = 2.5
    """Its polarity mu2."""
    plane_steps: int = 18_000
    """Its steps of 0.05, of which the first third is left out; a multiple of 20."""
    pod_points: int = 1024
    """Points along each axis of the three-dimensional step that `compile` compiles; nothing else reads it."""

    def __post_init__(self) -> None:
        for name in ("seeds", "burn_in", "tail_samples", "wall_samples", "line_replicas"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name, least in (("grid", 16), ("tail_grid", 80), ("line_points", 64), ("plane_points", 32)):
            if getattr(self, name) < least or getattr(self, name) % 2:
                raise ValueError(
                    f"{name}: expected an even number of {least} or more, got {getattr(self, name)}"
                )
        if self.burn_in % 20:
            raise ValueError(f"burn_in: expected a multiple of 20, got {self.burn_in}")
        for name, every in (("steps", 20), ("line_steps", 10), ("plane_steps", 20)):
            if getattr(self, name) < 20 * every or getattr(self, name) % every:
                raise ValueError(
                    f"{name}: expected a multiple of {every}, {20 * every} or more, got {getattr(self, name)}"
                )
        if not {0.0, 2.0} <= set(self.fields) or min(self.fields) < 0:
            raise ValueError(
                f"fields: expected numbers from 0 on, with 0 and 2 among them, got {self.fields}"
            )
        if not self.tail_fields or min(self.tail_fields) <= 0:
            raise ValueError(f"tail_fields: expected at least one, all positive, got {self.tail_fields}")
        for name in (*self.distances, self.wall_length):
            if name <= 0 or abs(name / self.dx - round(name / self.dx)) > 1e-9:
                raise ValueError(
                    f"distances, wall_length: expected positive multiples of dx = {self.dx:g}, got {name}"
                )
        if self.pod_points < 256 or self.pod_points % 256:
            raise ValueError(f"pod_points: expected a positive multiple of 256, got {self.pod_points}")
        self.electrolyte()
        self.plane()

    def electrolyte(self) -> SdftConfig:
        """The simulated electrolyte; refuses a step that is unstable."""
        return SdftConfig((self.grid, self.grid), self.dx, 0.0, self.g, self.dt)

    def plane(self) -> ChemotaxisConfig:
        """The chemotaxis in the plane; refuses a coupling that is unstable."""
        return ChemotaxisConfig((self.plane_points,) * 2, mu2=self.plane_coupling, dt=0.05)


PRESETS: dict[str, Config] = {
    "smoke": Config(
        seeds=2,
        fields=(0.0, 2.0),
        grid=32,
        burn_in=100,
        steps=800,
        tail_grid=80,
        tail_samples=60,
        distances=(4.0,),
        wall_length=50.0,
        wall_samples=60,
        line_points=64,
        line_replicas=4,
        line_steps=900,
        plane_points=64,
        plane_steps=600,
    ),
    "cpu": Config(),
    # Longer runs on larger grids; `compile` compiles the three-dimensional theory on 1024^3 points in slabs.
    "paper": Config(
        seeds=8,
        fields=(0.0, 0.5, 1.0, 2.0, 4.0),
        grid=256,
        steps=48_000,
        tail_grid=1024,
        tail_samples=20_000,
        wall_length=1_600.0,
        wall_samples=4_000,
        line_points=2_048,
        line_steps=320_000,
        plane_points=1_024,
        plane_steps=60_000,
    ),
}


def run(config: Config, run_dir: RunDir) -> Outcome:
    """Simulates both theories on every seed and evaluates the closed forms.

    Args:
        config: sizes.
        run_dir: where results and figures go.

    Returns:
        A value of each claim for each seed or case, and the tables.
    """
    found = _all_stages(config, run_dir)
    cfg = config.electrolyte()
    expected = {field: expected_bins(replace(cfg, Ef=field)) for field in config.fields}
    for field, runs in found.electrolyte.items():
        for seed, one in enumerate(runs):
            error = pointwise_error(one["spectra"], replace(cfg, Ef=field))
            run_dir.log(seed, **{f"Ef{field:g}/pointwise_error": error})
    draw_structure_factors(run_dir, found.electrolyte, expected)
    draw_fields(run_dir, found.electrolyte, cfg)
    draw_tails(run_dir, found.tails)
    draw_force(run_dir, found.force, found.walls, config.wall_field)
    draw_quench(run_dir, found.quench)
    draw_line(run_dir, found.line)
    draw_chemotaxis(run_dir, found.plane)
    baseline = run_dir.stage("finite_differences", lambda: _baseline(config))
    return Outcome(
        measurements(found, cfg),
        tables=[
            _spectrum_table(found, cfg, expected, baseline),
            _tail_table(found),
            _wall_table(found, config.wall_field),
            _chemotaxis_table(found),
        ],
        notes=_notes(found),
    )


def compile_target(config: Config) -> "Target":
    """A step of the three-dimensional electrolyte in slabs over 256 chips.

    Args:
        config: points along each axis.

    Returns:
        The step and its abstract arguments.
    """
    from experiments.coulomb.pod import slab_step_target

    return slab_step_target(config.pod_points)


def _all_stages(config: Config, run_dir: RunDir) -> Results:
    """Every simulation is a stage of its own, so that a run that died goes on."""
    root = jax.random.key(config.seed)
    tasks: dict[str, Callable[[], Any]] = {"force": walls.closed_form, "quench": walls.quench}
    cfg = config.electrolyte()
    tail = SdftConfig((config.tail_grid,) * 2, dx=1.0, g=1.0, scheme="linear_exact")

    def add(name: str, compute: Callable[..., Arrays], *arguments: Any) -> None:
        tasks[name] = lambda: compute(*arguments)

    for seed in range(config.seeds):
        keys = jax.random.split(jax.random.fold_in(root, seed), 5)
        add(f"plane_seed{seed:02d}", chemotaxis.in_the_plane, keys[0], config.plane(), config.plane_steps, 20)
        for field in config.fields:
            driven = replace(cfg, Ef=field)
            add(f"electrolyte{field:g}_seed{seed:02d}", _simulated, keys[1], driven, config)
        for field in config.tail_fields:
            add(
                f"tail{field:g}_seed{seed:02d}",
                sampled_tail,
                keys[2],
                replace(tail, Ef=field),
                config.tail_samples,
            )
        for H in config.distances:
            shape = (round(config.wall_length / config.dx), round(H / config.dx))
            between = SdftConfig(shape, config.dx, config.wall_field, 1.0, 20.0, "linear_exact", walls=True)
            add(f"walls{H:g}_seed{seed:02d}", walls.simulated_force, keys[3], between, config.wall_samples)
        for name, (mu1, mu2) in chemotaxis.COUPLINGS.items():
            line = ChemotaxisConfig((config.line_points,), mu1=mu1, mu2=mu2)
            stage = f"line_{name.replace(' ', '_')}_seed{seed:02d}"
            add(stage, chemotaxis.on_a_line, keys[4], line, config.line_replicas, config.line_steps, 10)

    results = dict(
        zip(
            tasks,
            in_parallel(lambda name: run_dir.stage(name, tasks[name]), list(tasks), run_dir, "parts"),
            strict=True,
        )
    )

    def each(stage: str) -> list[Arrays]:
        return [results[f"{stage}_seed{seed:02d}"] for seed in range(config.seeds)]

    return Results(
        {field: each(f"electrolyte{field:g}") for field in config.fields},
        {field: each(f"tail{field:g}") for field in config.tail_fields},
        results["force"],
        {H: each(f"walls{H:g}") for H in config.distances},
        results["quench"],
        {name: each(f"line_{name.replace(' ', '_')}") for name in chemotaxis.COUPLINGS},
        each("plane"),
    )


def _simulated(key: jax.Array, cfg: SdftConfig, config: Config) -> Arrays:
    return simulate(key, cfg, config.burn_in, config.steps, 20)._asdict()


def _baseline(config: Config) -> Arrays:
    """The generic integrator at the largest field, on the same cells, with the same and with a small step."""
    cfg = replace(config.electrolyte(), Ef=max(config.fields))
    key = jax.random.fold_in(jax.random.key(config.seed), 1_000)
    steps = min(config.steps, 6_000)
    return {
        f"{share:g}": euler_maruyama_spectra(
            key, replace(cfg, dt=share * config.dt), config.burn_in, steps, 20
        )
        for share in (1.0, 0.2)
    }


def _interval(values: Any, digits: int = 3) -> str:
    estimate, low, high, _ = mean_interval(np.asarray(values, float))
    return f"{estimate:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _spectrum_table(
    found: Results, cfg: SdftConfig, expected: dict[float, np.ndarray], baseline: Arrays
) -> Table:
    rows = []
    for field, runs in found.electrolyte.items():
        driven = replace(cfg, Ef=field)
        agree = np.array([agreeing(one, expected[field]) for one in runs])
        conductivity = [one["conductivity"][0] for one in runs]
        rows.append(
            [
                f"{field:g}",
                "exponential Euler",
                _interval([pointwise_error(one["spectra"], driven) for one in runs]),
                f"{agree.sum()} of {agree.size}",
                _interval(conductivity, 4) if field else "",
                f"{1 - cfg.g * float(conductivity_integral(field, 2)):.4f}" if field else "",
            ]
        )
    driven = replace(cfg, Ef=max(found.electrolyte))
    k = np.sqrt(np.asarray(cfg.grid.k2()))
    inside = (k > 0.3) & (k < 2.5)
    for share, spectra in baseline.items():
        error = np.sqrt(np.mean((spectra[:, inside] / theory(driven)[:2, inside] - 1) ** 2))
        label = f"finite differences, Euler-Maruyama, dt = {float(share) * float(np.asarray(cfg.dt)):g}"
        rows.append([f"{float(np.asarray(driven.Ef)):g}", label, f"{error:.3f}", "", "", ""])
    return Table(
        "Structure factors beside the linear theory: 0.3 < k < 2.5",
        [
            "field",
            "integrator",
            "rms relative error of a mode [95 %]",
            "bins within 5 % or 3 errors",
            "J / Ef [95 %]",
            "1 - g I",
        ],
        rows,
    )


def _tail_table(found: Results) -> Table:
    rows = []
    for field, runs in found.tails.items():
        for index, R in enumerate(RINGS):
            ratios = [one["harmonic"][index] / one["tail"][index] for one in runs]
            exact = runs[0]["exact"][index] / runs[0]["tail"][index]
            rows.append([f"{field:g}", f"{R:g}", _interval(ratios), f"{exact:.3f}"])
    return Table(
        "Second harmonic of <nn> on stretched rings, over its law",
        ["field", "radius", "sampled [95 %]", "the grid's own modes"],
        rows,
    )


def _wall_table(found: Results, field: float) -> Table:
    rows = []
    for H, runs in found.walls.items():
        one = runs[0]
        rows.append(
            [
                f"{H:g}",
                *(_interval([x[name] * H * H for x in runs], 4) for name in ("force", "corrected")),
                f"{np.mean([x['error'] for x in runs]) * H * H:.4f}",
                f"{np.mean([x['tau'] for x in runs]):.2f}",
                f"{float(one['box']) * H * H:.4f}",
                f"{float(one['closed']) * H * H:.4f}",
            ]
        )
    return Table(
        f"Force between walls, F H^2 at Ef = {field:g} in two dimensions",
        [
            "distance",
            "simulated [95 %]",
            "with k_x = 0 [95 %]",
            "error of one run",
            "tau, samples",
            "modes of the box",
            "closed form",
        ],
        rows,
    )


def _chemotaxis_table(found: Results) -> Table:
    rows = []
    for name, (mu1, mu2) in chemotaxis.COUPLINGS.items():
        runs, exact = found.line[name], exponents(1)
        linear = name == "linear"
        rows.append(
            [
                f"line, {name}",
                f"{mu1:g}, {mu2:g}",
                _interval([one["S_slope"] for one in runs]),
                "0" if linear else f"{exact.S_exponent:g}",
                _interval([one["z"] for one in runs]),
                "2" if linear else f"{exact.z:g}",
                _interval([one["balance"].mean() for one in runs]),
            ]
        )
    rows.append(
        [
            "plane, polar",
            "0, plane_coupling",
            _interval([one["slope"] for one in found.plane]),
            f"{exponents(2).S_exponent:.3f}",
            "",
            "",
            "",
        ]
    )
    return Table(
        "Polar chemotaxis: exponents of S(k) and of the relaxation time",
        [
            "run",
            "mu1, mu2",
            "S exponent [95 %]",
            "exact",
            "z [95 %]",
            "exact",
            "-Re<rho* F>/(Dn k^2 V) [95 %]",
        ],
        rows,
    )


def _notes(found: Results) -> list[str]:
    force = found.force["force"]
    sign = "repulsive" if (force > 0).all() else "of changing sign" if (force > 0).any() else "attractive"
    taus = np.concatenate([np.ravel(one["taus"]) for runs in found.electrolyte.values() for one in runs])
    return [
        f"The force between these walls (no flux, no field across them, Maxwell's stress) is {sign} at every"
        " distance and field computed. The first paper's abstract says it can be either; what makes it so"
        " could not be found.",
        "Only the papers' abstracts could be read: the closed forms are derived, the prefactors of the"
        " chemotaxis are a proposed reading.",
        f"Integrated autocorrelation times of the binned structure factors are {np.nanmin(taus):.1f} to"
        f" {np.nanmax(taus):.1f} samples; every error accounts for them.",
        "Where nothing is random (exponents of the closed forms) a claim has one value for each case, and its"
        " interval is over these.",
        "On the line z is read off a slow crossover from 2: it is above 1 as long as the line is finite.",
    ]
