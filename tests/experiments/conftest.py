"""The toy experiment and the toy benchmark, registered beside the real ones."""

import sys
from pathlib import Path

import pytest

import experiments
import experiments.benchmarks
from experiments import systems

HERE = Path(__file__).resolve().parent
TOY = systems.System("Toy", "arXiv:0000.00000", "toys", "jaxneg.toys", ("toy", "toy_planned"))

LAUNCHER = f"""
import sys
sys.path.insert(0, {str(HERE.parent.parent)!r})
import experiments
experiments.__path__.append({str(HERE / "toy_experiments")!r})
from experiments import systems
systems.SYSTEMS += (systems.System("Toy", "arXiv:0000.00000", "toys", "jaxneg.toys", ("toy", "toy_planned")),)
from experiments.command_line import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Registers the toy and works in an empty folder, which it returns."""
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(HERE / "toy_experiments")])
    monkeypatch.setattr(
        experiments.benchmarks, "__path__", [*experiments.benchmarks.__path__, str(HERE / "toy_benchmarks")]
    )
    monkeypatch.setattr(systems, "SYSTEMS", (*systems.SYSTEMS, TOY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def toy_command() -> list[str]:
    """The command line with the toy, in a process of its own."""
    return [sys.executable, "-c", LAUNCHER]
