"""What the two theories claim, and how this experiment measures it.

Only the papers' abstracts could be read: figures are those of the linear theory, derived again from the model
that the abstracts name, and the exact exponents of the second paper.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from experiments.claims import AtLeast, AtMost, Claim, Within
from experiments.coulomb.electrolyte import KINDS, RINGS, SECTORS, in_bins, theory
from jaxneg.coulomb import SdftConfig, exponents, log_slope

Arrays = dict[str, np.ndarray]

PAPER = "arXiv:2011.12821, abstract"
QUENCH = "arXiv:2104.14498, abstract"
CHEMOTAXIS = "arXiv:1911.08115, abstract"
THEORY = "linear theory, derived: "
_SIMULATED = "non-linear theory simulated on a square grid"
_LINE = "density on a line"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "structure-factors-follow-the-theory",
        "Fluctuations of a driven electrolyte are those of linearised stochastic density functional theory.",
        PAPER,
        THEORY + "closed forms of s_nn, s_qq and s_nq",
        f"{_SIMULATED}: share of bins of wavenumber, direction, field and correlation within 5 % or three"
        " standard errors of the theory's mean over the same modes",
        AtLeast(0.95),
    ),
    Claim(
        "density-correlations-are-suppressed-along-the-field",
        "A field makes long-range density correlations that depend on the direction.",
        PAPER,
        THEORY + "0.483 at wavenumbers from 0.3 to 0.6 and Ef = 2",
        f"{_SIMULATED}, Ef = 2: s_nn along over across the field at wavenumbers from 0.3 to 0.6",
        AtMost(0.6),
    ),
    Claim(
        "equilibrium-density-is-uncorrelated",
        "Without a field the density is that of an ideal gas at every wavenumber.",
        PAPER,
        THEORY + "s_nn = 1",
        f"{_SIMULATED}, Ef = 0: largest distance of s_nn from 1 over bins at wavenumbers from 0.3 to 0.6",
        AtMost(0.1),
    ),
    Claim(
        "density-and-charge-are-coupled",
        "The field couples density and charge, with a phase of a quarter turn whose sign is that of k_x.",
        PAPER,
        THEORY + "Im s_nq has the sign of k_x",
        f"{_SIMULATED}, Ef > 0: share of bins along the field where Im <n q*> sign(k_x) > 0",
        AtLeast(0.99),
    ),
    Claim(
        "tails-fall-with-a-power",
        "Correlations in a driven electrolyte are not screened, but fall with a power of the distance.",
        PAPER,
        "r^-d",
        "linear theory sampled in two dimensions: exponent of the second harmonic of <nn> on stretched rings,"
        " radii 4 to 15, the field of those with |exponent + 2| largest",
        Within(-2.25, -1.75),
    ),
    Claim(
        "tails-have-their-amplitude",
        "The amplitude of the tail is set by the field.",
        PAPER,
        THEORY + "Ef^2 / (2 pi s^(3/2) R^2), s = 1 + Ef^2",
        "the same: largest distance of the second harmonic over its law from 1, mean over radii 6 to 12",
        AtMost(0.08),
    ),
    Claim(
        "tails-change-sign-with-direction",
        "Correlations are positive along the field and negative across it.",
        PAPER,
        "qualitative only",
        "the same: <nn> summed over radii 6 to 12, over the sum of its law, which is positive along the field"
        " and negative across it; the smallest of both directions and all fields",
        AtLeast(0.5),
    ),
    Claim(
        "force-exponent-in-two-dimensions",
        "The fluctuation-induced force between walls falls as kBT / H^d.",
        PAPER,
        "-2",
        "closed form in float64: exponent over H = 10 to 100; one value for each of three fields, d = 2",
        Within(-2.02, -1.98),
    ),
    Claim(
        "force-exponent-in-three-dimensions",
        "The fluctuation-induced force between walls falls as kBT / H^d.",
        PAPER,
        "-3",
        "closed form in float64: exponent over H = 10 to 50; one value for each of three fields, d = 3",
        Within(-3.02, -2.98),
    ),
    Claim(
        "simulated-force-is-that-of-its-box",
        "The force is the pressure of the driven fluctuations on the walls.",
        PAPER,
        THEORY + "sum over the modes of the finite box",
        "linear theory simulated between walls, with and without field in the same noise: largest distance"
        " from the sum over the walls' distances, in standard errors",
        AtMost(3.0),
    ),
    Claim(
        "simulated-force-is-the-closed-form",
        "The force is set by the field and the walls' distance alone.",
        PAPER,
        THEORY + "sum over the poles",
        "the same, with the modes of k_x = 0 that no box has: largest distance from the closed form",
        AtMost(3.0),
    ),
    Claim(
        "force-relaxes-with-a-power-after-a-quench",
        "After the field is switched on the force relaxes algebraically.",
        QUENCH,
        THEORY + "t^(-1/2) in two dimensions",
        "exact propagation in float64: exponent of F(t) - F over t = 10 H^2 to 1000 H^2; one value for each"
        " of four pairs of field and distance",
        Within(-0.52, -0.48),
    ),
    Claim(
        "force-relaxes-with-its-amplitude",
        "After the field is switched on the force relaxes algebraically.",
        QUENCH,
        THEORY + "F(t) - F = Ef^4 / [4 s H (2 pi s t)^(1/2)]",
        "the same: F(t) - F over the law, at t = 1000 H^2",
        Within(0.996, 1.004),
    ),
    Claim(
        "force-begins-with-its-first-amplitude",
        "After a quench the force goes through a transient that depends on the field.",
        QUENCH,
        THEORY + "pi Ef^2 / 16 for 1 << t << H^2",
        "the same: F(t) H^2 over pi Ef^2 / 16; one value for each of four fields, distances and times",
        Within(0.95, 1.02),
    ),
    Claim(
        "number-fluctuations-are-suppressed",
        "Number fluctuations of polar chemotaxis are not Poissonian.",
        CHEMOTAXIS,
        f"S ~ k^{exponents(1).S_exponent:g} in one dimension",
        f"{_LINE}, mu1 = 0, mu2 = 0.5: exponent of S over the 11 lowest modes",
        Within(0.85, 1.1),
    ),
    Claim(
        "chemotaxis-superdiffuses",
        "At the critical point particles superdiffuse, with an exact exponent.",
        CHEMOTAXIS,
        f"z = {exponents(1).z:g} in one dimension",
        f"{_LINE}, mu1 = 0, mu2 = 0.5: minus the exponent of the time in which C(k, t) halves, modes 2 to 11",
        Within(0.9, 1.35),
    ),
    Claim(
        "linear-control-is-poissonian",
        "Without the non-linear couplings number fluctuations are Poissonian.",
        CHEMOTAXIS,
        "S constant",
        f"{_LINE}, mu1 = mu2 = 0: exponent of S over the 11 lowest modes",
        Within(-0.15, 0.15),
    ),
    Claim(
        "linear-control-diffuses",
        "Without the non-linear couplings particles diffuse.",
        CHEMOTAXIS,
        "z = 2",
        f"{_LINE}, mu1 = mu2 = 0: minus the exponent of the time in which C(k, t) halves, modes 2 to 11",
        Within(1.8, 2.2),
    ),
    Claim(
        "couplings-act-as-one",
        "In one dimension only lambda = mu2 - mu1 / 2 matters.",
        CHEMOTAXIS,
        "identical equations",
        f"{_LINE}: mean over the 11 lowest modes of S with (mu1, mu2) = (1, 1) over S with (0, 0.5)",
        Within(0.95, 1.05),
    ),
    Claim(
        "number-fluctuations-are-suppressed-in-the-plane",
        "Number fluctuations of polar chemotaxis are not Poissonian.",
        CHEMOTAXIS,
        f"S ~ k^{exponents(2).S_exponent:.3g} in two dimensions",
        "density in the plane, mu1 = 0: exponent of S over wavenumbers from 0.05 to 0.25, without the lowest"
        " shell",
        Within(0.55, 0.8),
    ),
)


class Results(NamedTuple):
    """What all stages found; lists hold one dictionary of arrays for each seed.

    Attributes:
        electrolyte: by field: what `electrolyte.simulate` gives.
        tails: by field: what `electrolyte.sampled_tail` gives.
        force: what `walls.closed_form` gives.
        walls: by distance: what `walls.simulated_force` gives.
        quench: what `walls.quench` gives.
        line: by the name of the couplings: what `chemotaxis.on_a_line` gives.
        plane: what `chemotaxis.in_the_plane` gives.
    """

    electrolyte: dict[float, list[Arrays]]
    tails: dict[float, list[Arrays]]
    force: Arrays
    walls: dict[float, list[Arrays]]
    quench: Arrays
    line: dict[str, list[Arrays]]
    plane: list[Arrays]


def expected_bins(cfg: SdftConfig) -> np.ndarray:
    """The theory's bins ``[3, sectors, shells]``, from the modes that the simulation's bins have."""
    return np.asarray(in_bins(theory(cfg), cfg.grid))


def agreeing(found: Arrays, expected: np.ndarray) -> np.ndarray:
    """Which bins are within 5 % or three standard errors of the theory; the empty ones are left out."""
    apart, allowed = (
        np.abs(found["bins"] - expected),
        np.maximum(0.05 * np.abs(expected), 3 * found["errors"]),
    )
    filled = np.isfinite(expected)
    return (apart <= allowed)[filled]


def measurements(results: Results, cfg: SdftConfig) -> dict[str, ArrayLike]:
    """One value of every claim for each seed, or for each case where nothing is random.

    Args:
        results: of all stages.
        cfg: the electrolyte that was simulated; its field has no part in this.

    Returns:
        Values by the claim's name.
    """
    along, across = list(SECTORS).index("along"), list(SECTORS).index("across")
    first_shell = 0
    seeds = range(len(results.plane))
    fields = list(results.electrolyte)
    expected = {field: expected_bins(replace(cfg, Ef=field)) for field in fields}

    def bins(field: float, seed: int, kind: str) -> np.ndarray:
        return results.electrolyte[field][seed]["bins"][KINDS.index(kind)]

    inner = (RINGS >= 6) & (RINGS <= 12)
    tails: dict[str, list[float]] = {"slope": [], "plateau": [], "sign": []}
    for seed in seeds:
        of_fields = [results.tails[field][seed] for field in results.tails]
        slopes = [float(log_slope(RINGS, np.maximum(one["harmonic"], 1e-12))) for one in of_fields]
        tails["slope"].append(max(slopes, key=lambda slope: abs(slope + 2)))
        tails["plateau"].append(
            max(abs(float(np.mean((one["harmonic"] / one["tail"])[inner])) - 1) for one in of_fields)
        )
        tails["sign"].append(min(float(np.min(one["signs"])) for one in of_fields))

    def in_errors(against: str) -> list[float]:
        value = {"box": "force", "closed": "corrected"}[against]
        return [
            max(
                abs(float(one[seed][value] - one[seed][against])) / float(one[seed]["error"])
                for one in results.walls.values()
            )
            for seed in seeds
        ]

    def of_line(name: str, what: str) -> list[float]:
        return [float(one[what]) for one in results.line[name]]

    return {
        "structure-factors-follow-the-theory": [
            float(
                np.mean(np.concatenate([agreeing(results.electrolyte[f][seed], expected[f]) for f in fields]))
            )
            for seed in seeds
        ],
        "density-correlations-are-suppressed-along-the-field": [
            float(bins(2.0, seed, "s_nn")[along, first_shell] / bins(2.0, seed, "s_nn")[across, first_shell])
            for seed in seeds
        ],
        "equilibrium-density-is-uncorrelated": [
            float(np.nanmax(np.abs(bins(0.0, seed, "s_nn")[:, first_shell] - 1))) for seed in seeds
        ],
        "density-and-charge-are-coupled": [
            float(np.mean([bins(f, seed, "s_nq_imag")[along] > 0 for f in fields if f])) for seed in seeds
        ],
        "tails-fall-with-a-power": tails["slope"],
        "tails-have-their-amplitude": tails["plateau"],
        "tails-change-sign-with-direction": tails["sign"],
        "force-exponent-in-two-dimensions": results.force["slopes_2d"],
        "force-exponent-in-three-dimensions": results.force["slopes_3d"],
        "simulated-force-is-that-of-its-box": in_errors("box"),
        "simulated-force-is-the-closed-form": in_errors("closed"),
        "force-relaxes-with-a-power-after-a-quench": results.quench["slopes"],
        "force-relaxes-with-its-amplitude": results.quench["late"][:, 1],
        "force-begins-with-its-first-amplitude": results.quench["early"],
        "number-fluctuations-are-suppressed": of_line("polar", "S_slope"),
        "chemotaxis-superdiffuses": of_line("polar", "z"),
        "linear-control-is-poissonian": of_line("linear", "S_slope"),
        "linear-control-diffuses": of_line("linear", "z"),
        "couplings-act-as-one": [
            float(np.mean(one["S"] / other["S"]))
            for one, other in zip(results.line["polar and repulsive"], results.line["polar"], strict=True)
        ],
        "number-fluctuations-are-suppressed-in-the-plane": [float(one["slope"]) for one in results.plane],
    }
