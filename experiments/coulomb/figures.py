"""The figures of both theories; error bars are 95 % intervals of the mean over seeds."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import SymLogNorm

from experiments.claims import mean_interval
from experiments.coulomb.chemotaxis import FIT
from experiments.coulomb.electrolyte import EDGES, KINDS, RINGS, SECTORS, theory
from experiments.coulomb.walls import FIELDS_2D, RELAXING
from experiments.run_dir import RunDir
from jaxneg.coulomb import SdftConfig, casimir_amplitude, exponents

Runs = Sequence[Mapping[str, np.ndarray]]
COLOURS = {"along": "#b2182b", "across": "#2166ac", "between": "#7b7b7b"}
CASES = ("#2166ac", "#b2182b", "#1b7837", "#762a83", "#c2792b")
LIMITS = {"s_nn": (0, 1.3), "s_qq": (0, 1.2), "s_nq_imag": (-0.1, 0.25)}
NAMES = {"s_nn": "density, $s_{nn}$", "s_qq": "charge, $s_{qq}$", "s_nq_imag": "Im $s_{nq}$ sign $k_x$"}


def draw_structure_factors(
    run_dir: RunDir, electrolyte: Mapping[float, Runs], expected: Mapping[float, np.ndarray]
) -> None:
    """Binned structure factors beside the theory, for each field."""
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    figure, grid = plt.subplots(
        3,
        len(electrolyte),
        figsize=(3.6 * len(electrolyte) + 1, 8),
        layout="constrained",
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    for column, (field, runs) in zip(grid.T, electrolyte.items(), strict=True):
        bins = np.stack([one["bins"] for one in runs])
        for kind, (axis, name) in enumerate(zip(column, KINDS, strict=True)):
            for sector, label in enumerate(SECTORS):
                colour = COLOURS[label]
                axis.plot(
                    middle,
                    expected[field][kind, sector],
                    color=colour,
                    label=f"{label} the field" if label != "between" else label,
                )
                values = bins[:, kind, sector]
                axis.errorbar(middle, values.mean(0), _half(values), fmt="o", color=colour, markersize=4)
            axis.set_ylim(*LIMITS[name])
        column[0].set_title(f"field {field:g}")
        column[-1].set_xlabel("wavenumber, 1 / Debye length")
    for axis, name in zip(grid[:, 0], KINDS, strict=True):
        axis.set_ylabel(NAMES[name])
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    run_dir.figure(
        "structure_factors",
        figure,
        "Structure factors over g in shells of wavenumber and sectors of direction: points from the"
        " non-linear simulation (mean over seeds, 95 % interval), lines from the linear theory over the same"
        " modes. The"
        " field suppresses the density's fluctuations along it however long the wave.",
    )


def draw_fields(run_dir: RunDir, electrolyte: Mapping[float, Runs], cfg: SdftConfig) -> None:
    """Densities in space and the spectrum of the density, simulated and by the theory."""
    field = max(electrolyte)
    one = electrolyte[field][0]
    extent = (0.0, cfg.shape[0] * cfg.dx) * 2
    figure, row = plt.subplots(1, 4, figsize=(15, 3.9), layout="constrained")
    for axis, values, title in zip(row, one["snapshot"], ("density n", "charge q"), strict=False):
        bound = np.abs(values).max()
        shown = axis.imshow(values.T, origin="lower", extent=extent, cmap="RdBu_r", vmin=-bound, vmax=bound)
        axis.set(xlabel="x (along the field)", ylabel="y", title=title)
        figure.colorbar(shown, ax=axis, shrink=0.8)
    simulated = np.mean([run["spectra"][0] for run in electrolyte[field]], 0)
    k = np.pi / cfg.dx
    for axis, values, title in zip(
        row[2:],
        (simulated, theory(_driven(cfg, field))[0]),
        ("$s_{nn}$ simulated", "$s_{nn}$ theory"),
        strict=True,
    ):
        whole = np.fft.fftshift(values, axes=0).T
        shown = axis.imshow(
            whole, origin="lower", extent=(-k, k, 0, k), aspect="auto", cmap="viridis", vmin=0.1, vmax=1.1
        )
        axis.set(xlabel="$k_x$", ylabel="$k_y$", title=title, xlim=(-2.5, 2.5), ylim=(0, 2.5))
        figure.colorbar(shown, ax=axis, shrink=0.8)
    run_dir.figure(
        "fields_and_spectra",
        figure,
        f"Field {field:g}. Left: density and charge at the end of a run, lengths in Debye lengths. Right: the"
        " density's structure factor over wavevectors, mean over time and seeds, and the linear theory's; the"
        " value at small wavenumbers depends on the direction alone.",
    )


def draw_tails(run_dir: RunDir, tails: Mapping[float, Runs]) -> None:
    """The correlation around the origin, and its second harmonic against the radius."""
    figure, row = plt.subplots(1, len(tails) + 1, figsize=(4.6 * (len(tails) + 1), 4), layout="constrained")
    for axis, (field, runs) in zip(row, tails.items(), strict=False):
        values = np.mean([one["map"] for one in runs], 0)
        half = values.shape[0] // 2
        norm = SymLogNorm(1e-4, vmin=-0.02, vmax=0.02)
        shown = axis.imshow(values.T, origin="lower", extent=(-half, half) * 2, cmap="RdBu_r", norm=norm)
        axis.set(
            xlabel="x (along the field)",
            ylabel="y",
            title=f"$\\langle nn\\rangle / g$, field {field:g}",
            xlim=(-20, 20),
            ylim=(-20, 20),
        )
        bar = figure.colorbar(shown, ax=axis, shrink=0.8, ticks=[-1e-2, -1e-3, 0, 1e-3, 1e-2])
        bar.ax.set_yticklabels(["−0.01", "−0.001", "0", "0.001", "0.01"])
    for colour, (field, runs) in zip(CASES, tails.items(), strict=False):
        values = np.stack([one["harmonic"] for one in runs])
        row[-1].errorbar(
            RINGS,
            values.mean(0),
            _half(values),
            fmt="o",
            color=colour,
            markersize=4,
            label=f"sampled, field {field:g}",
        )
        row[-1].plot(RINGS, runs[0]["exact"], ":", color=colour, label="the grid's own modes")
        row[-1].plot(RINGS, runs[0]["tail"], color=colour, label="law, $R^{-2}$")
    row[-1].set(
        xscale="log",
        yscale="log",
        xlabel="radius R, Debye lengths",
        title="second harmonic on stretched rings",
    )
    row[-1].set_xticks([4, 6, 8, 10, 15], ["4", "6", "8", "10", "15"])
    row[-1].minorticks_off()
    row[-1].legend(frameon=False, fontsize=8)
    run_dir.figure(
        "tails",
        figure,
        "Correlations of the density in space (colours logarithmic beyond 0.0001): positive along the field,"
        " negative across it, and not screened. Right: their second harmonic falls as the square of the"
        " distance; mean over seeds, 95 % interval.",
    )


def draw_force(
    run_dir: RunDir, force: Mapping[str, np.ndarray], walls: Mapping[float, Runs], field: float
) -> None:
    """The force between walls, times H^2, against their distance."""
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    H = force["H"]
    for colour, of, values in zip(CASES, FIELDS_2D, force["force"], strict=False):
        axis.plot(H, values * H * H, color=colour, label=f"closed form, field {of:g}")
        axis.axhline(float(casimir_amplitude(of, 2)), color=colour, linestyle=":", linewidth=1)
    distances = np.array(list(walls))
    for shift, name, marker, label in (
        (0.98, "force", "s", "simulated, finite box"),
        (1.02, "corrected", "o", "with the modes $k_x = 0$"),
    ):
        values = np.array([[float(one[name]) for one in runs] for runs in walls.values()]).T
        axis.errorbar(
            shift * distances,
            values.mean(0) * distances**2,
            _half(values) * distances**2,
            fmt=marker,
            color="k",
            markerfacecolor="w" if marker == "s" else "k",
            markersize=5,
            label=f"{label}, field {field:g}",
        )
    axis.set(
        xscale="log",
        xlabel="distance H of the walls, Debye lengths",
        ylabel="$F H^2 / k_BT$",
        ylim=(0, 0.145),
    )
    axis.set_xticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    run_dir.figure(
        "force_against_distance",
        figure,
        "The force between neutral walls along the field in two dimensions, times the distance squared:"
        " repulsive, and soon at its universal amplitude (dotted). Points: linear theory simulated between"
        " walls, mean over seeds, 95 % interval.",
    )


def draw_quench(run_dir: RunDir, quench: Mapping[str, np.ndarray]) -> None:
    """The force after the field is switched on."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for index, ((field, H), colour) in enumerate(zip(RELAXING, CASES, strict=False)):
        label = f"field {field:g}, H = {H:g}"
        left.plot(quench["curve_t"], quench["curve"][index] * H**2, color=colour, label=label)
        left.axhline(quench["stationary"][index] * H**2, color=colour, linestyle=":", linewidth=1)
        t, s = quench["t"][index], 1 + field**2
        right.plot(t / H**2, quench["excess"][index], "o", color=colour, label=label, markersize=4)
        right.plot(t / H**2, field**4 / (4 * s * H * np.sqrt(2 * np.pi * s * t)), color=colour)
    left.set(
        xscale="log",
        yscale="log",
        xlabel="time since the quench, Debye times",
        ylabel="$F(t) H^2 / k_BT$",
        ylim=(0.02, 1.5),
    )
    right.set(xscale="log", yscale="log", xlabel="$t / H^2$", ylabel="$F(t) - F$")
    left.legend(frameon=False, fontsize=8)
    run_dir.figure(
        "quench",
        figure,
        "The force after the field is switched on in equilibrium, by exact propagation. It overshoots its"
        " stationary value (dotted) and returns with a power of the time (right; lines: the law"
        " $t^{-1/2}$ with its amplitude).",
    )


def draw_line(run_dir: RunDir, line: Mapping[str, Runs]) -> None:
    """Chemotaxis on a line: the density in space and time, structure factor and relaxation time."""
    figure, row = plt.subplots(1, 4, figsize=(16, 4), layout="constrained", width_ratios=(1, 1, 1, 1))
    for axis, name in zip(row, ("linear", "polar"), strict=False):
        history = line[name][0]["history"]
        bound = np.percentile(np.abs(history), 99)
        axis.imshow(
            history,
            origin="lower",
            aspect="auto",
            cmap="RdBu_r",
            vmin=-bound,
            vmax=bound,
            extent=(0, history.shape[1], 0, len(history)),
        )
        axis.set(xlabel="x", ylabel="time", title=f"density, {name}")
    for (name, runs), colour in zip(line.items(), CASES, strict=False):
        k = runs[0]["k"]
        for axis, what in zip(row[2:], ("S", "tau"), strict=True):
            values = np.stack([one[what] for one in runs])
            axis.errorbar(
                k,
                values.mean(0),
                _half(values),
                fmt="o-",
                color=colour,
                markersize=3,
                linewidth=0.8,
                label=name,
            )
    k = line["polar"][0]["k"]
    first = np.mean([one["S"][0] for one in line["polar"]])
    row[2].plot(
        k, first * (k / k[0]) ** exponents(1).S_exponent, "k--", linewidth=1, label="exact exponent, S ~ k"
    )
    tau = np.mean([one["tau"][1] for one in line["polar"]])
    row[3].plot(
        k[1:], tau * (k[1:] / k[1]) ** -exponents(1).z, "k--", linewidth=1, label="exact exponent, z = 1"
    )
    row[2].set(xscale="log", yscale="log", xlabel="wavenumber", title="structure factor S(k)")
    row[3].set(xscale="log", yscale="log", xlabel="wavenumber", title="time in which C(k, t) halves")
    for axis in row[2:]:
        axis.set_xticks([0.02, 0.05, 0.1], ["0.02", "0.05", "0.1"])
        axis.minorticks_off()
        axis.legend(frameon=False, fontsize=8)
    run_dir.figure(
        "chemotaxis_line",
        figure,
        "Chemotaxis on a line: density in space and time without and with the polar coupling; structure"
        " factor and relaxation time of the lowest modes (mean over seeds, 95 % interval). Long waves are"
        " suppressed and relax faster than by diffusion; the two couplings with the same lambda agree.",
    )


def draw_chemotaxis(run_dir: RunDir, plane: Runs) -> None:
    """Chemotaxis in the plane: the density, and its structure factor."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    rho = plane[0]["snapshot"]
    bound = np.percentile(np.abs(rho), 99.5)
    shown = left.imshow(rho.T, origin="lower", cmap="RdBu_r", vmin=-bound, vmax=bound)
    left.set(xlabel="x", ylabel="y", title="density at the end of a run")
    figure.colorbar(shown, ax=left, shrink=0.8)
    k, S = plane[0]["k"], np.stack([one["S"] for one in plane])
    right.errorbar(k, S.mean(0), _half(S), fmt="o", color=CASES[0], markersize=4, label="simulated")
    inside = (k > FIT[0]) & (k < FIT[1])
    if inside.any():
        middle = np.exp(np.mean(np.log(S.mean(0)[inside])) - 2 / 3 * np.mean(np.log(k[inside])))
        right.plot(
            k[inside],
            middle * k[inside] ** exponents(2).S_exponent,
            "k--",
            label="exact exponent, S ~ $k^{2/3}$",
        )
    right.axhline(1, color="k", linewidth=0.5)
    right.set(xscale="log", yscale="log", xlabel="wavenumber", title="structure factor S(k)")
    right.set_xticks([0.05, 0.1, 0.2, 0.4], ["0.05", "0.1", "0.2", "0.4"])
    right.set_yticks([0.2, 0.4, 0.6, 1], ["0.2", "0.4", "0.6", "1"])
    right.minorticks_off()
    right.legend(frameon=False)
    run_dir.figure(
        "chemotaxis_plane",
        figure,
        "Chemotaxis in the plane with the polar coupling alone: the density, and its structure factor (mean"
        " over seeds, 95 % interval), which is 1 without the coupling (thin line).",
    )


def _half(values: np.ndarray) -> np.ndarray:
    """Half of the 95 % interval of the mean over seeds, for each column; 0 for one seed."""
    if len(values) == 1:
        return np.zeros(values.shape[1])
    return np.array([(high - low) / 2 for _, low, high, _ in map(mean_interval, values.T)])


def _driven(cfg: SdftConfig, field: float) -> SdftConfig:
    return SdftConfig(cfg.shape, cfg.dx, field, cfg.g, cfg.dt, cfg.scheme, cfg.walls)
