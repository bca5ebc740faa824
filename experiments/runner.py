"""Runs an experiment into its folder and writes what it found, report.json."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from experiments.claims import Claim, Judgement
from experiments.config import config_to_json
from experiments.machine import machine_description, package_versions
from experiments.run_dir import Outcome, RunDir, write_json
from experiments.systems import load_experiment, system_of


def run_experiment(run_dir: RunDir) -> dict[str, Any]:
    """Runs the experiment that the folder was made for.

    Args:
        run_dir: the run folder, new or resumed.

    Returns:
        What report.json holds.

    Raises:
        ValueError: the measurements are not those of the claims, or not finite.
    """
    experiment = load_experiment(run_dir.experiment)
    began = time.monotonic()
    with run_dir:
        outcome = experiment.run(run_dir.config, run_dir)
    judgements = judge(experiment.CLAIMS, outcome.measurements)
    report = _report(run_dir, outcome, judgements, time.monotonic() - began)
    write_json(run_dir.path / "report.json", report)
    return report


def judge(claims: Sequence[Claim], measurements: Mapping[str, ArrayLike]) -> list[Judgement]:
    """The verdict of every claim.

    Args:
        claims: the experiment's claims.
        measurements: claim name to one value per seed.

    Returns:
        One judgement per claim, in the order of the claims.

    Raises:
        ValueError: a claim was not measured, a measurement has no claim, or its values are wrong.
    """
    names = [claim.name for claim in claims]
    for name in measurements:
        if name not in names:
            raise ValueError(f"measurement {name!r} belongs to no claim; the claims are {', '.join(names)}")
    for name in names:
        if name not in measurements:
            raise ValueError(
                f"claim {name!r} was not measured; measured were {', '.join(measurements) or 'none'}"
            )
    return [claim.judge(measurements[claim.name]) for claim in claims]


def _report(run_dir: RunDir, outcome: Outcome, judgements: list[Judgement], seconds: float) -> dict[str, Any]:
    system = system_of(run_dir.experiment)
    return {
        "experiment": run_dir.experiment,
        "system": system.name,
        "field": system.field,
        "preset": run_dir.preset,
        "config": config_to_json(run_dir.config),
        "resumed": run_dir.resumed,
        "seconds": round(seconds, 1),
        "machine": machine_description(),
        "versions": package_versions(),
        "claims": [_judgement(judgement) for judgement in judgements],
        "tables": [asdict(table) for table in outcome.tables],
        "figures": [
            {"file": str(Path("figures") / f"{name}.png"), "caption": caption}
            for name, caption in run_dir.captions.items()
        ],
        "notes": list(outcome.notes),
    }


def _judgement(judgement: Judgement) -> dict[str, Any]:
    claim = judgement.claim
    return {
        "name": claim.name,
        "sentence": claim.sentence,
        "source": claim.source,
        "paper": claim.paper,
        "measure": claim.measure,
        "criterion": str(claim.criterion),
        "statistic": claim.statistic,
        "values": list(judgement.values),
        "estimate": judgement.estimate,
        "low": judgement.low if math.isfinite(judgement.low) else None,
        "high": judgement.high if math.isfinite(judgement.high) else None,
        "confidence": judgement.confidence,
        "verdict": judgement.verdict,
    }
