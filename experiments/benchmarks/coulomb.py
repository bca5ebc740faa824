"""Spectral steps beside exponax and py-pde on the same CPU, and the force beside scipy's quadrature.

Polar chemotaxis is the KPZ equation of the potential: exponax's ETDRK2 step of it is the same step as ours,
which is checked before it is timed. It has no noise; a user adds that of the linear part by hand, in Fourier
space, in one compiled loop with the step. py-pde takes Euler and Maruyama's steps of the linear theory of a
driven electrolyte on central differences, compiled by numba, with its own noise (white, where the theory's is
the divergence of white noise: no more work). Its step has a limit; ours is exact for every step, so that the
time for a Debye time is what compares. Steps are of float32 on our side and exponax's, float64 in py-pde.

The peers clash with other pins, so give them an environment of their own::

    python3 -m venv --without-pip coulomb-bench
    python3 -m pip --python coulomb-bench/bin/python install py-pde exponax -e '.[experiments]'
    coulomb-bench/bin/python -m experiments bench coulomb
"""

import importlib
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import machine_peaks, median_seconds, paired_ratio, roofline_seconds
from experiments.coulomb.finite_differences import longest_step
from experiments.isolated import available_cores, in_a_process
from experiments.peers import require_same
from jaxneg import coulomb
from jaxneg.coulomb import ChemotaxisConfig, SdftConfig

MU2, CHEMOTAXIS_DT = 2.5, 0.05
FIELD, DX, G = 2.0, 0.5, 0.02
EXACT_DT, EXPLICIT_SHARE = 0.5, 0.9
"""Our step of the linear theory, and the share of its limit that the explicit peer steps by."""


class Sizes(NamedTuple):
    """Points along each axis, steps in a sample, and pairs of distance and field."""

    points: tuple[int, ...] = (256, 512)
    steps: int = 10
    pairs: int = 100


def run(repeats: int = 21) -> dict[str, Any]:
    """Times steps and forces on one core and on all.

    Args:
        repeats: pairs of samples for each comparison.

    Returns:
        ``settings``; ``one_core`` and ``all_cores``, each with a row for every comparison: ``ratio_median``
        is the peer's time over ours for one step, ``roofline_share`` the share of the memory's bandwidth.

    Raises:
        ImportError: a peer is not installed.
        RuntimeError: two sides compute different numbers.
    """
    exponax, pde = peer_for("exponax"), peer_for("pde")
    cores, sizes = available_cores(), Sizes()
    return {
        "settings": {
            "exponax": getattr(exponax, "__version__", "unknown"),
            "py-pde": pde.__version__,
            "chemotaxis": f"mu1 = 0, mu2 = {MU2:g}, dt = {CHEMOTAXIS_DT:g}, {sizes.steps} steps a call",
            "electrolyte": f"linear theory, Ef = {FIELD:g}, dx = {DX:g}, our dt = {EXACT_DT:g}",
            "cores": f"1, and {len(cores)} for all_cores",
            "pairs of samples": repeats,
        },
        "one_core": in_a_process(cores[:1], times, sizes, repeats),
        "all_cores": in_a_process(cores, times, sizes, repeats) if len(cores) > 1 else {},
    }


def peer_for(module: str) -> ModuleType:
    """A peer; this benchmark alone needs it.

    Args:
        module: "exponax" or "pde".

    Returns:
        The module.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"the benchmark 'coulomb' measures against exponax and py-pde ({error}); give them an environment"
            " of their own, as the benchmark's docstring says"
        ) from error


def times(sizes: Sizes, repeats: int) -> dict[str, dict[str, float]]:
    """All comparisons, in this process.

    Args:
        sizes: of the grids.
        repeats: pairs of samples.

    Returns:
        A row for each comparison.
    """
    peaks, measured = machine_peaks(), {}
    for points in sizes.points:
        for noisy in (False, True):
            name = f"chemotaxis {points}^2, {'noise' if noisy else 'no noise'}, beside exponax"
            measured[name] = chemotaxis_compared(points, noisy, sizes.steps, repeats, peaks)
        name = f"driven electrolyte {points}^2, beside py-pde"
        measured[name] = electrolyte_compared(points, sizes.steps, repeats, peaks)
        name = f"non-linear electrolyte {points}^2, alone"
        measured[name] = full_theory_alone(points, sizes.steps, repeats, peaks)
    return measured | {"closed-form force, beside scipy quad": forces_compared(sizes.pairs, repeats)}


def chemotaxis_compared(
    points: int, noisy: bool, steps: int, repeats: int, peaks: dict[str, float]
) -> dict[str, float]:
    """Our ETDRK2 step beside exponax's, both in a compiled loop over spectra."""
    exponax = peer_for("exponax")
    cfg = ChemotaxisConfig((points, points), mu2=MU2, dt=CHEMOTAXIS_DT)
    grid = cfg.grid
    peer = exponax.stepper.generic.GeneralGradientNormStepper(
        2,
        float(points),
        points,
        CHEMOTAXIS_DT,
        linear_coefficients=(0.0, 0.0, 1.0),
        gradient_norm_scale=2 * MU2,
        order=2,
        # Its own 2/3 leaves out one mode more.
        dealiasing_fraction=(points // 3 + 1.5) / (points // 2),
    )
    k2 = grid.k2()
    # The potential's noise is that of the density over k^2.
    size = jnp.sqrt(-jnp.expm1(-2 * k2 * CHEMOTAXIS_DT)) * grid.inverse_k2()

    def ours(rho_hat: jax.Array, key: jax.Array) -> jax.Array:
        if noisy:
            return coulomb.chemotaxis_run(
                key, ChemotaxisConfig((points, points), mu2=MU2, dt=CHEMOTAXIS_DT), steps, state=rho_hat
            )[0]
        return jax.lax.fori_loop(
            0, steps, lambda _, x: coulomb.etdrk2_step(x, 0, MU2, grid, CHEMOTAXIS_DT), rho_hat
        )

    def theirs(phi_hat: jax.Array, key: jax.Array) -> jax.Array:
        def step(i: Any, phi_hat: jax.Array) -> jax.Array:
            phi_hat = peer.step_fourier(phi_hat)
            if noisy:
                drawn = jax.random.normal(jax.random.fold_in(key, i), (1, points, points))
                phi_hat = phi_hat + size * jnp.fft.rfftn(drawn, axes=(1, 2))
            return phi_hat

        return jax.lax.fori_loop(0, steps, step, phi_hat)

    key = jax.random.key(0)
    rho_hat = grid.kept() * coulomb.chemotaxis_init(key, cfg)
    phi_hat = (grid.inverse_k2() * rho_hat)[None]
    compiled = jax.jit(ours).lower(rho_hat, key).compile()
    peer_compiled = jax.jit(theirs).lower(phi_hat, key).compile()
    found, expected = compiled(rho_hat, key), k2 * peer_compiled(phi_hat, key)[0]
    apart = (
        {}
        if noisy
        else {"apart": require_same(f"chemotaxis {points}^2", np.asarray(found), np.asarray(expected))}
    )
    timing = paired_ratio(lambda: compiled(rho_hat, key), lambda: peer_compiled(phi_hat, key), repeats)
    step = (
        partial(coulomb.chemotaxis_step, cfg=cfg)
        if noisy
        else lambda x, _: coulomb.etdrk2_step(x, 0, MU2, grid, CHEMOTAXIS_DT)
    )
    return {**_for_a_step(timing, steps), **apart, **_roofline(step, (rho_hat, key), timing, steps, peaks)}


def electrolyte_compared(points: int, steps: int, repeats: int, peaks: dict[str, float]) -> dict[str, float]:
    """An exact step beside py-pde's explicit one: for a step, and for a Debye time."""
    pde = peer_for("pde")
    cfg = SdftConfig((points, points), DX, FIELD, G, EXACT_DT, "linear_exact")
    limit = EXPLICIT_SHARE * longest_step(DX, FIELD)
    cells = pde.CartesianGrid([[0, points * DX]] * 2, points, periodic=True)
    equation = pde.PDE(
        {"n": f"laplace(n) - {FIELD} * d_dx(q)", "q": f"laplace(q) - q - {FIELD} * d_dx(n)"}, noise=2 * G
    )
    wave = np.cos(2 * np.pi * np.arange(points) / points)[:, None] * np.ones(points)
    smooth = pde.FieldCollection([pde.ScalarField(cells, wave), pde.ScalarField(cells, 0.5 * wave)])
    apart = _same_drift(equation.evolution_rate(smooth).data, wave, points)

    state = pde.FieldCollection([pde.ScalarField(cells, 0.0), pde.ScalarField(cells, 0.0)])
    stepper = pde.solvers.EulerSolver(equation, backend="numba").make_stepper(state, dt=limit)
    clock = [0.0]

    def theirs() -> None:
        clock[0] = stepper(state, clock[0], clock[0] + (steps - 0.5) * limit)

    key = jax.random.key(0)
    start = coulomb.sdft_init(key, cfg)
    compiled = jax.jit(lambda s, k: coulomb.sdft_run(k, cfg, steps, state=s)[0]).lower(start, key).compile()
    timing = paired_ratio(lambda: compiled(start, key), theirs, repeats)
    if not np.isfinite(state.data).all():
        raise RuntimeError("py-pde's run blew up: it is not timed")
    step = partial(coulomb.sdft_step, cfg=cfg)
    return {
        **_for_a_step(timing, steps),
        "ratio_for_a_debye_time": timing["ratio_median"] * EXACT_DT / limit,
        "peer_dt": limit,
        "drift_apart": apart,
        **_roofline(step, (start, key), timing, steps, peaks),
    }


def full_theory_alone(points: int, steps: int, repeats: int, peaks: dict[str, float]) -> dict[str, float]:
    """A step of the whole theory, multiplicative conserved noise included, for which no peer was found."""
    cfg = SdftConfig((points, points), DX, FIELD, G)
    key = jax.random.key(0)
    start = coulomb.sdft_init(key, cfg)
    compiled = jax.jit(lambda s, k: coulomb.sdft_run(k, cfg, steps, state=s)[0]).lower(start, key).compile()
    seconds = {"ours_seconds": median_seconds(lambda: compiled(start, key), repeats)}
    step = partial(coulomb.sdft_step, cfg=cfg)
    return {
        "ours_seconds": seconds["ours_seconds"] / steps,
        **_roofline(step, (start, key), seconds, steps, peaks),
    }


def forces_compared(pairs: int, repeats: int) -> dict[str, float]:
    """The closed-form force for many distances and fields at once, beside an adaptive rule for each."""
    from scipy.integrate import quad

    rng = np.random.default_rng(0)
    H, Ef = rng.uniform(2, 50, pairs), rng.uniform(0.5, 5, pairs)

    def integrand(k: float, H: float, Ef: float) -> float:
        w0 = np.sqrt(complex(0.25 - (Ef * k) ** 2))
        poles = np.array([0, -1, -0.5, -0.5 + w0, -0.5 - w0])
        shares = np.array([1, 1, 0.5 / w0**2 - 2, -0.25 / w0**2, -0.25 / w0**2])
        A = np.sqrt(k * k - poles)
        return float(np.sum(shares * k * k / A * 2 / np.expm1(2 * H * A)).real)

    def theirs() -> np.ndarray:
        whole = [
            quad(integrand, 1e-9, 40 / H, args=(H, Ef), epsrel=1e-7, epsabs=0, limit=200)[0] / (2 * np.pi)
            for H, Ef in zip(H.tolist(), Ef.tolist(), strict=True)
        ]
        return np.array(whole)

    with jax.enable_x64(True):
        compiled = jax.jit(lambda H, Ef: coulomb.casimir_force(H, Ef, 2)).lower(H, Ef).compile()
        apart = require_same("force", np.asarray(compiled(H, Ef)), theirs())
        return {**paired_ratio(lambda: compiled(H, Ef), theirs, repeats), "apart": apart}


def _same_drift(rates: np.ndarray, wave: np.ndarray, points: int) -> float:
    """How far the peer's drift of a long wave is from ours; the grid's error of it is ``k^2 dx^2 / 6``."""
    k = 2 * np.pi / (points * DX)
    slope = -k * np.sin(2 * np.pi * np.arange(points) / points)[:, None] * np.ones(points)
    expected = np.stack([-k * k * wave - FIELD * 0.5 * slope, -(k * k + 1) * 0.5 * wave - FIELD * slope])
    apart = float(np.abs(rates - expected).max() / np.abs(expected).max())
    if not apart < 1e-3:
        raise RuntimeError(f"py-pde: the two sides' drifts are {apart:.1e} apart, and not timed")
    return apart


def _for_a_step(timing: dict[str, float], steps: int) -> dict[str, float]:
    return {name: x / steps if name.endswith("seconds") else x for name, x in timing.items()}


def _roofline(
    step: Callable[..., Any], arguments: Any, timing: dict[str, float], steps: int, peaks: dict[str, float]
) -> dict[str, float]:
    """The least time of one step, by what XLA says that it computes and moves, and our share of it."""
    cost: Any = jax.jit(step).lower(*arguments).compile().cost_analysis()
    least = roofline_seconds(cost.get("flops", 0.0), cost.get("bytes accessed", 0.0), peaks)
    return {"roofline_seconds": least, "roofline_share": least * steps / timing["ours_seconds"]}
