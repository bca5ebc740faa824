"""Every golden vector of the Coulomb field theories, in float64."""

import re
from functools import partial

import jax
import numpy as np
import pytest

from jaxneg import coulomb
from jaxneg.coulomb import SpectralGrid

pytestmark = pytest.mark.usefixtures("x64")

# What only the README of the vectors states: the tolerances, and the case of the noise-free step.
RELATIVE = 1e-9
TOLERANCES = {"propagator": 1e-10, "real_space": 1e-10, "force": 1e-7, "quench": 1e-8, "conductivity": 1e-6}
STEPPED_CASE = "c0"


def close(found, expected, rtol=RELATIVE, atol=0.0):
    found = np.asarray(found)
    assert found.dtype in (np.float64, np.complex128)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


def in_space(spectrum, shape):
    return np.fft.irfftn(np.asarray(spectrum), shape, axes=range(len(shape)))


def cases(golden):
    """Prefixes ``c0``, ``c1``, ... of a file."""
    return sorted({name.split("_")[0] for name in golden if re.match(r"c\d+_", name)})


@pytest.mark.golden("coulomb", "structure_factors*.npz")
def test_structure_factors(golden):
    found = jax.jit(coulomb.structure_factor)(golden["kvec"], golden["E"])
    for name in ("s_nn", "s_qq", "s_nq_imag"):
        close(getattr(found, name), golden[name])
    close(coulomb.long_wavelength_limit(golden["lim_theta"], golden["lim_E"][:, None]), golden["lim_snn"])
    physical = coulomb.physical_structure_factor(
        golden["kvec"], golden["E"], golden["kappa_phys"], golden["C0_phys"]
    )
    # The physical wavevectors are the same numbers; kappa makes them dimensionless.
    close(physical.cc, golden["S_cc_phys"])
    close(physical.rr, golden["S_rr_phys"])


@pytest.mark.golden("coulomb", "propagator*.npz")
def test_propagator(golden):
    mode = [golden[name] for name in ("k2", "kx", "E", "t")]
    close(jax.jit(coulomb.propagator)(*mode), golden["U"], 0, TOLERANCES["propagator"])
    L = np.asarray(jax.jit(coulomb.ou_noise_factor)(*mode))
    np.testing.assert_array_equal(L[:, 0, 1], 0)
    close(L @ L.conj().swapaxes(1, 2), golden["noise_cov"], 0, TOLERANCES["propagator"])
    found = jax.jit(coulomb.quench_structure_factor)(*mode)
    close(found, golden["S_quench"], 0, TOLERANCES["propagator"])


@pytest.mark.golden("coulomb", "real_space*.npz")
def test_real_space(golden):
    x, rperp = golden["pts"].T
    for d in (2, 3):
        tail = jax.jit(partial(coulomb.real_space_tail, d=d))(x, np.abs(rperp), golden["E"])
        close(tail, golden[f"tail_nn_d{d}"], 1e-9, TOLERANCES["real_space"] * 1e-6)
    grid = SpectralGrid((int(golden["N"]),) * 2, float(golden["dx"]))
    found = jax.jit(coulomb.grid_correlation, static_argnums=0)(grid, golden["E_grid"])
    for values, name in zip(found, ("C_nn", "C_qq", "C_nq"), strict=True):
        close(values, golden[name], 0, TOLERANCES["real_space"])


@pytest.mark.golden("coulomb", "force*.npz")
def test_force(golden):
    rtol = TOLERANCES["force"]
    plane = jax.jit(partial(coulomb.casimir_force, d=2))(golden["H"], golden["E"][:, None])
    close(plane, golden["P_d2"], rtol)
    space = jax.jit(partial(coulomb.casimir_force, d=3))(golden["H_d3"], golden["E_d3"][:, None])
    close(space, golden["P_d3"], 1e-6)
    for name in golden:
        if amplitude := re.fullmatch(r"A_d(\d)", name):
            law = jax.jit(partial(coulomb.casimir_amplitude, d=int(amplitude[1])))
            close(law(golden["E"]), golden[name])
    close(jax.jit(partial(coulomb.wall_pressure, d=2))(golden["E"]), golden["bulk_wall_d2"], rtol)


@pytest.mark.golden("coulomb", "force*.npz")
def test_force_after_a_quench_and_in_a_box(golden):
    Ef, H, t = golden["tr_case"].T
    found = jax.jit(coulomb.casimir_force_quench)(t, H, Ef)
    close(found, golden["tr_P_d2"], TOLERANCES["quench"])
    for (Ef, H, Lx, k_max), expected in zip(golden["box_case"], golden["box_P"], strict=True):
        kx = 2 * np.pi / Lx * np.arange(1, int(k_max * Lx / (2 * np.pi)) + 1)[:, None]
        k2 = kx**2 + (np.pi / H * np.arange(int(k_max * H / np.pi) + 1)) ** 2
        excess = coulomb.mode_structure_factor(k2, kx, Ef).s_qq - k2 / (k2 + 1)
        close(coulomb.mode_sum_force(excess, H, Lx), expected)


@pytest.mark.golden("coulomb", "conductivity*.npz")
def test_conductivity(golden):
    for name in golden:
        if integral := re.fullmatch(r"I_d(\d)", name):
            of_fields = jax.jit(partial(coulomb.conductivity_integral, d=int(integral[1])))
            close(of_fields(golden["E"]), golden[name], TOLERANCES["conductivity"])
            if integral[1] == "3":
                limit = of_fields(0 * golden["E"])
                close(limit, np.full_like(limit, golden["onsager_d3"]), TOLERANCES["conductivity"])


@pytest.mark.golden("coulomb", "chemotaxis*.npz")
def test_chemotaxis(golden):
    for case in cases(golden):
        rho = golden[f"{case}_rho"]
        grid = SpectralGrid(rho.shape, float(golden[f"{case}_dx"]), bool(golden[f"{case}_deal"]))
        drift = jax.jit(coulomb.chemotaxis_rhs, static_argnums=3)
        found = drift(np.fft.rfftn(rho), *golden[f"{case}_mu"], grid)
        close(in_space(found, rho.shape), golden[f"{case}_N"], 1e-9, 1e-12)
    rho, dx = golden[f"{STEPPED_CASE}_rho"], float(golden[f"{STEPPED_CASE}_dx"])
    grid = SpectralGrid(rho.shape, dx, bool(golden[f"{STEPPED_CASE}_deal"]))
    step = jax.jit(coulomb.etdrk2_step, static_argnums=3)
    stepped = step(np.fft.rfftn(rho), *golden[f"{STEPPED_CASE}_mu"], grid, golden["etd_dt"], golden["etd_D"])
    close(in_space(stepped, rho.shape), golden["etd_out"], 1e-9, 1e-12)
    for index, d in enumerate(golden["d"]):
        for name in ("z", "chi", "S_exponent", "chi_phi"):
            assert getattr(coulomb.exponents(int(d)), name) == pytest.approx(golden[name][index], abs=1e-12)


@pytest.mark.golden("coulomb", "sdft_drift*.npz")
def test_sdft_drift(golden):
    for case in cases(golden):
        n, q = golden[f"{case}_n"], golden[f"{case}_q"]
        grid = SpectralGrid(n.shape, float(golden[f"{case}_dx"]))
        drift = jax.jit(coulomb.sdft_drift, static_argnums=2)
        found = drift(np.fft.rfftn(n), np.fft.rfftn(q), grid)
        for spectrum, name in zip(found, ("dn", "dq"), strict=True):
            close(in_space(spectrum, n.shape), golden[f"{case}_{name}"], 1e-9, 1e-12)


def test_no_vector_is_left_out(golden_folder):
    """A new file of these vectors must get a test."""
    known = (
        "structure_factors",
        "propagator",
        "real_space",
        "force",
        "conductivity",
        "chemotaxis",
        "sdft_drift",
    )
    assert all(stem.startswith(known) for stem in golden_folder("coulomb"))
