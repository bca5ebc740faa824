"""The command line: ``python -m experiments list | run | report | compile | bench``.

The options of an experiment come from its config dataclass, with the preset's values as defaults. Heavy
modules (jax, the experiments themselves) are imported only by the commands that need them.

Exit status: 0 when the command did what it says, whatever the verdicts are; 1 when an experiment failed or a
program does not fit; 2 for a mistake on the command line; 130 when interrupted.
"""

import argparse
import dataclasses
import inspect
import shlex
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.text import Text

from experiments.run_dir import RunDir
from experiments.systems import available_experiments, load_experiment
from experiments.terminal import print_report, print_systems, print_table

PROGRAM = "python -m experiments"

HELP = """\
usage: python -m experiments COMMAND ...

Reproduces the papers: each experiment measures what its paper claims and gives
a verdict on every claim.

  list                       the 18 systems and their experiments
  run NAME                   run an experiment; run all: every one
      [--preset cpu]           smoke (seconds), cpu (minutes), paper (its scale)
      [--FIELD VALUE]          any field of its config: see run NAME --help
      [--resume FOLDER]        continue a run that died
  report                     the newest run of each experiment as an HTML page
      [--runs runs] [--output report.html]
  compile NAME               compile ahead of time for TPUs that are not there
      [--topology v5e:16x16] [--preset paper]
  bench [NAME]               time us beside the peers

COMMAND --help shows the options of a command.

experiments:
{experiments}
"""


class UsageError(Exception):
    """A mistake on the command line; the text says what is allowed."""


def main(arguments: Sequence[str]) -> int:
    """Runs a command.

    Args:
        arguments: what follows ``python -m experiments``.

    Returns:
        The exit status.
    """
    commands = {"list": _list, "run": _run, "report": _report, "compile": _compile, "bench": _bench}
    if not arguments or arguments[0] in ("-h", "--help"):
        names = textwrap.fill(
            ", ".join(available_experiments()), 80, initial_indent="  ", subsequent_indent="  "
        )
        print(HELP.format(experiments=names), end="")
        return 0 if arguments else 2
    command, rest = arguments[0], list(arguments[1:])
    try:
        if command not in commands:
            raise UsageError(f"there is no command {command!r}; commands: {', '.join(commands)}")
        return commands[command](rest)
    except UsageError as error:
        _say_error(str(error))
        return 2
    except SystemExit as stop:  # tyro has printed its help or its complaint
        return stop.code if isinstance(stop.code, int) else 2


def _list(rest: list[str]) -> int:
    def show() -> None:
        """Prints the 18 systems, where each lives, and which experiments exist."""
        print_systems(Console())

    tyro.cli(show, args=rest, prog=f"{PROGRAM} list")
    return 0


def _run(rest: list[str]) -> int:
    if rest[:1] == ["all"]:
        return _run_all(rest[1:])
    name, experiment, rest = _experiment("run", rest)
    old = _value_of("--resume", rest)
    if old is None:
        preset = _preset(name, experiment, rest, "cpu")
        options = _options("run", name, experiment, preset, experiment.PRESETS[preset], rest)
        try:
            run_dir = RunDir.create(
                name, options.config, preset=preset, runs=options.runs, path=options.folder
            )
        except OSError as error:
            raise UsageError(str(error)) from error
        return _run_one(run_dir)
    try:
        run_dir = RunDir.resume(old, name, experiment.Config)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    if _value_of("--preset", rest) not in (None, run_dir.preset):
        raise UsageError(f"{old} was begun with --preset {run_dir.preset}: leave --preset out when resuming")
    options = _options("run", name, experiment, run_dir.preset, run_dir.config, rest)
    for field in dataclasses.fields(run_dir.config):
        began, given = getattr(run_dir.config, field.name), getattr(options.config, field.name)
        if began != given:
            raise UsageError(
                f"{old} was begun with {field.name} = {began!r}, not {given!r}: a resumed run keeps its "
                "config; leave the config's options out, or begin a new run"
            )
    return _run_one(run_dir)


def _run_all(rest: list[str]) -> int:
    def options(
        preset: Literal["smoke", "cpu", "paper"] = "cpu", runs: Path = Path("runs")
    ) -> dict[str, Any]:
        """Runs every available experiment, one after the other.

        Args:
            preset: Which preset of each experiment.
            runs: The folder of all runs.
        """
        return {"preset": preset, "runs": runs}

    chosen = tyro.cli(options, args=rest, prog=f"{PROGRAM} run all")
    status = 0
    for name in available_experiments():
        config = load_experiment(name).PRESETS[chosen["preset"]]
        status = max(status, _run_one(RunDir.create(name, config, **chosen)))
        if status == 130:
            break
    return status


def _run_one(run_dir: RunDir) -> int:
    from experiments.runner import run_experiment

    console = Console()
    _print_line(console, f"{run_dir.experiment}, preset {run_dir.preset}, into {run_dir.path}")
    again = f"{PROGRAM} run {run_dir.experiment} --resume {shlex.quote(str(run_dir.path))}"
    try:
        report = run_experiment(run_dir)
    except KeyboardInterrupt:
        _say_error(f"interrupted; to go on: {again}")
        return 130
    except Exception:
        traceback.print_exc()
        _say_error(f"{run_dir.experiment} failed; when the cause is gone, to go on: {again}")
        return 1
    print_report(console, report)
    figures = [figure["file"] for figure in report["figures"]]
    if figures:
        more = f"  (and {len(figures) - 1} more beside it)" if len(figures) > 1 else ""
        _print_line(console, f"figure      {run_dir.path / figures[0]}{more}")
    _print_line(console, f"run folder  {run_dir.path}")
    return 0


def _report(rest: list[str]) -> int:
    from experiments.report import write_report

    try:
        path = tyro.cli(write_report, args=rest, prog=f"{PROGRAM} report")
    except (OSError, ValueError) as error:
        _say_error(str(error))
        return 1
    _print_line(Console(), f"report  {path}")
    return 0


def _compile(rest: list[str]) -> int:
    name, experiment, rest = _experiment("compile", rest)
    preset = _preset(name, experiment, rest, "paper")
    options = _options("compile", name, experiment, preset, experiment.PRESETS[preset], rest)
    from jaxneg.train import compile_for

    try:
        compiled = compile_for(experiment.compile_target(options.config), topology=options.topology)
    except (ValueError, RuntimeError, ModuleNotFoundError) as error:
        _say_error(f"{name}, preset {preset}, does not compile for {options.topology}: {error}")
        return 1
    console = Console()
    _print_line(console, f"{name}, preset {preset}, for {options.topology}")
    _print_line(console, str(compiled))
    return 1 if compiled.fits is False else 0


def _bench(rest: list[str]) -> int:
    from experiments.bench import RESULTS, benchmark_names, result_tables, run_benchmark

    def options(
        name: Annotated[str | None, tyro.conf.Positional] = None,
        repeats: int | None = None,
        results: Path = RESULTS,
    ) -> dict[str, Any]:
        """Times us beside the peers, writes the figures to a file and prints them.

        Args:
            name: A benchmark; every one where it is left out.
            repeats: Pairs of samples; each benchmark's own number where it is left out.
            results: The folder that NAME.json is written to.
        """
        return {"name": name, "repeats": repeats, "results": results}

    chosen = tyro.cli(options, args=rest, prog=f"{PROGRAM} bench")
    name, known = chosen.pop("name"), benchmark_names()
    if name is not None and name not in known:
        raise UsageError(f"there is no benchmark {name!r}; benchmarks: {', '.join(known)}")
    console = Console()
    for benchmark in known if name is None else [name]:
        try:
            measured = run_benchmark(benchmark, **chosen)
        except ModuleNotFoundError as error:
            _say_error(f"benchmark {benchmark!r} needs {error.name}: pip install '.[bench]'")
            return 1
        for table in result_tables(benchmark, measured):
            print_table(console, table)
        _print_line(console, f"results  {chosen['results'] / f'{benchmark}.json'}")
    return 0


def _experiment(command: str, rest: list[str]) -> tuple[str, ModuleType, list[str]]:
    """The experiment that the first argument names, and the other arguments."""
    known = ", ".join(available_experiments())
    if rest[:1] in (["-h"], ["--help"]):
        print(f"usage: {PROGRAM} {command} NAME [--help] [OPTIONS]\n\nNAME: {known}")
        raise SystemExit(0)
    if not rest or rest[0].startswith("-"):
        raise UsageError(
            f"{command}: the experiment's name comes first: {PROGRAM} {command} NAME; NAME: {known}"
        )
    try:
        return rest[0], load_experiment(rest[0]), rest[1:]
    except ValueError as error:
        raise UsageError(str(error)) from error


def _preset(name: str, experiment: ModuleType, rest: list[str], default: str) -> str:
    preset = _value_of("--preset", rest) or default
    if preset not in experiment.PRESETS:
        raise UsageError(f"{name} has no preset {preset!r}; presets: {', '.join(experiment.PRESETS)}")
    return preset


def _value_of(option: str, rest: list[str]) -> str | None:
    """The value of an option that must be known before the others can be read."""
    parser = argparse.ArgumentParser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    parser.add_argument(option, dest="value")
    return parser.parse_known_args(rest)[0].value


def _options(
    command: str, name: str, experiment: ModuleType, preset: str, config: Any, rest: list[str]
) -> Any:
    """Reads the options of ``run`` and ``compile``; the config's fields have its values as defaults."""

    def option(kind: Any, default: Any, text: str, metavar: str | None = None) -> tuple[Any, Any]:
        return Annotated[kind, tyro.conf.arg(help=text, metavar=metavar)], dataclasses.field(default=default)

    presets = tuple(experiment.PRESETS)
    fields = {"preset": option(Literal[presets], preset, "The config to begin from; the options change it.")}
    if command == "run":
        fields |= {
            "resume": option(
                Path | None, None, "Continue the run in this folder, with its config.", "FOLDER"
            ),
            "runs": option(Path, Path("runs"), "The folder of all runs.", "FOLDER"),
            "folder": option(Path | None, None, "The run's own folder; by default runs/NAME/TIME.", "FOLDER"),
        }
    else:
        text = "The chips to compile for, or local: the devices that are present."
        fields |= {"topology": option(str, "v5e:16x16", text, "CHIP:ROWSxCOLUMNS")}
    fields["config"] = (
        Annotated[experiment.Config, tyro.conf.arg(name="")],
        dataclasses.field(default=config),
    )
    kind = dataclasses.make_dataclass(
        "Options", [(key, *value) for key, value in fields.items()], frozen=True
    )
    try:
        return tyro.cli(
            kind,
            args=rest,
            prog=f"{PROGRAM} {command} {name}",
            description=inspect.getdoc(experiment),
        )
    except (ValueError, TypeError) as error:  # the config's own checks
        raise UsageError(str(error)) from error


def _print_line(console: Console, text: str) -> None:
    """Prints without breaking lines: a path must be there to be copied."""
    console.print(Text(text), soft_wrap=True)


def _say_error(text: str) -> None:
    Console(stderr=True).print(
        Text("error: ", style="bold red").append(text, style="default"), soft_wrap=True
    )
