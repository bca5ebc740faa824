"""The newest run of each experiment as one HTML page that needs nothing beside itself."""

import base64
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from experiments import systems
from experiments.run_dir import read_json
from experiments.terminal import format_estimate, format_number


@dataclass(frozen=True)
class Run:
    """A finished run, as the page shows it."""

    path: Path
    """Its folder."""
    found: dict[str, Any]
    """What its report.json holds."""

    @property
    def finished(self) -> datetime:
        """When it ended."""
        return datetime.fromisoformat(self.found["machine"]["date"])

    @property
    def seeds(self) -> list[int]:
        """How many seeds its claims were measured with, each number once."""
        return sorted({len(claim["values"]) for claim in self.found["claims"]})

    @property
    def settings(self) -> list[tuple[str, str]]:
        """The config's fields by dotted name, as the command line spells them."""
        return _flat(self.found["config"])

    def picture(self, figure: dict[str, str]) -> str:
        """A figure's file as text that a page can hold."""
        return base64.b64encode((self.path / figure["file"]).read_bytes()).decode("ascii")


@dataclass(frozen=True)
class Experiment:
    """An experiment of a system, with its newest run if there is one."""

    name: str
    available: bool
    run: Run | None


def write_report(runs: Path = Path("runs"), output: Path = Path("report.html")) -> Path:
    """Gathers the newest finished run of each experiment into one HTML page.

    Args:
        runs: The folder of all runs.
        output: The page to write.

    Returns:
        The page's path.

    Raises:
        NotADirectoryError: There is no folder of runs.
        ValueError: A run's report.json is damaged.
    """
    if not runs.is_dir():
        raise NotADirectoryError(
            f"there is no folder of runs at {runs}: run an experiment first, or say --runs FOLDER"
        )
    rows = [(system, _experiments(system, runs)) for system in systems.SYSTEMS]
    # What there is to read comes first; the table's order is kept within each group.
    rows.sort(key=lambda row: (not any(experiment.run for experiment in row[1]), row[0].status))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": format_number, "estimate": format_estimate}
    page = environment.get_template("report.html.jinja").render(
        systems=rows,
        written=datetime.now().astimezone(),
        verdicts={
            verdict: sum(
                claim["verdict"] == verdict
                for _, experiments in rows
                for experiment in experiments
                if experiment.run
                for claim in experiment.run.found["claims"]
            )
            for verdict in ("holds", "does not hold", "undecided")
        },
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    return output


def newest_run(name: str, runs: Path) -> Run | None:
    """The finished run of an experiment that ended last.

    Args:
        name: the experiment's name.
        runs: the folder of all runs.

    Returns:
        The run, or None where none is finished.

    Raises:
        ValueError: a report.json is damaged.
    """
    files = sorted((runs / name).glob("*/report.json"))
    finished = [Run(file.parent, read_json(file)) for file in files]
    return max(finished, key=lambda run: run.finished, default=None)


def _experiments(system: systems.System, runs: Path) -> list[Experiment]:
    available = system.available
    return [Experiment(name, name in available, newest_run(name, runs)) for name in system.experiments]


def _flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in config.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            rows.append((prefix + name, " ".join(map(str, value))))
        else:
            rows.append((prefix + name, str(value)))
    return rows
