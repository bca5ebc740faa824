"""The 18 published systems, where each lives, and which of their experiments exist.

`python -m experiments list` and the report print this table; README holds the same one.
"""

import difflib
import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Literal


@dataclass(frozen=True)
class System:
    """A published system."""

    name: str
    """What it is called."""
    paper: str
    """Its first paper."""
    field: str
    """The field that it belongs to."""
    module: str
    """The room of the library that holds it."""
    experiments: tuple[str, ...]
    """The modules of this package that reproduce it."""

    @property
    def available(self) -> tuple[str, ...]:
        """Those of its experiments that exist."""
        return tuple(name for name in self.experiments if importlib.util.find_spec(f"experiments.{name}"))

    @property
    def status(self) -> Literal["available", "planned"]:
        """Whether there is anything to run."""
        return "available" if self.available else "planned"


SYSTEMS: tuple[System, ...] = (
    System(
        "Multi-task reweighting, Rep-MTL",
        "arXiv:2507.21049",
        "multi-task",
        "jaxneg.mtl",
        ("mtl_reweighting", "rep_mtl"),
    ),
    System("NPO", "arXiv:2404.05868", "unlearning", "jaxneg.unlearning", ("npo", "tofu")),
    System("ECI", "arXiv:2603.20990", "retrieval", "jaxneg.retrieval", ("eci",)),
    System("CET", "arXiv:2209.05072", "retrieval", "jaxneg.retrieval", ("cet",)),
    System("LEMON", "arXiv:2203.04703", "knowledge graphs", "jaxneg.kg", ("lemon",)),
    System("ANT", "arXiv:2306.00354", "diffusion", "jaxneg.diffusion", ("ant",)),
    System("Diffusion-NPO, Self-NPO", "arXiv:2505.11777", "diffusion", "jaxneg.diffusion", ("self_npo",)),
    System("Perp-Neg", "arXiv:2304.04968", "diffusion", "jaxneg.diffusion", ("perp_neg",)),
    System("NegToMe", "arXiv:2412.01339", "diffusion", "jaxneg.diffusion", ("neg_tome",)),
    System("SNOOPI", "arXiv:2412.02687", "diffusion", "jaxneg.diffusion", ("snoopi",)),
    System("AMCL", "arXiv:2310.05615", "contrastive", "jaxneg.contrastive", ("amcl",)),
    System("UNPG", "arXiv:2203.11593", "face", "jaxneg.face", ("unpg",)),
    System("Negative bias", "arXiv:2511.10881", "language", "jaxneg.language", ("neg_bias",)),
    System("QCRD", "arXiv:2405.13014", "language", "jaxneg.language", ("qcrd",)),
    System("FedKA", "arXiv:2203.11635", "federated", "jaxneg.federated", ("fedka",)),
    System("W2PGNN", "arXiv:2303.16458", "graphs", "jaxneg.graphs", ("w2pgnn",)),
    System(
        "Anonymisation and fairness",
        "arXiv:2505.07985",
        "fairness",
        "jaxneg.fairness",
        ("anonymity_fairness",),
    ),
    System("Coulomb field theories", "arXiv:2207.00467", "coulomb", "jaxneg.coulomb", ("coulomb",)),
)


def available_experiments() -> list[str]:
    """The experiments that can be run, in the order of the table."""
    return [name for system in SYSTEMS for name in system.available]


def system_of(experiment: str) -> System:
    """The system that an experiment reproduces.

    Args:
        experiment: the experiment's name.

    Raises:
        ValueError: no system has such an experiment.
    """
    for system in SYSTEMS:
        if experiment in system.experiments:
            return system
    names = [name for system in SYSTEMS for name in system.experiments]
    near = difflib.get_close_matches(experiment, names, 1)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(
        f"there is no experiment {experiment!r}{guess}; available: {', '.join(available_experiments())}"
    )


def load_experiment(name: str) -> ModuleType:
    """Imports an experiment.

    Args:
        name: the experiment's name.

    Returns:
        A module with ``Config``, ``PRESETS``, ``CLAIMS``, ``run`` and ``compile_target``.

    Raises:
        ValueError: it is unknown or only planned.
    """
    if name not in system_of(name).available:
        raise ValueError(
            f"experiment {name!r} is planned, not there yet; available: {', '.join(available_experiments())}"
        )
    return importlib.import_module(f"experiments.{name}")
