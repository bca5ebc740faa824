"""The command line: what it prints, what it refuses and how, and runs that die and go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import experiments.run_dir
from experiments import systems
from experiments.command_line import main


def only_run(folder: Path = Path("runs/toy")) -> Path:
    (path,) = folder.iterdir()
    return path


def test_list_is_the_table_of_the_code(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert len(systems.SYSTEMS) == 18
    words = text.split()
    for system in systems.SYSTEMS:
        assert all(word in words for word in system.name.split()), system.name
        assert {system.module, *system.experiments} <= set(words)
    assert words.count("available") == sum(system.status == "available" for system in systems.SYSTEMS)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_every_system_has_a_specification():
    names = [name for system in systems.SYSTEMS for name in system.experiments]
    assert len(set(names)) == len(names)
    assert {system.field for system in systems.SYSTEMS} >= {"multi-task", "unlearning", "retrieval"}


def test_light_commands_do_not_import_jax():
    script = (
        "import sys; from experiments.command_line import main\n"
        "for command in (['list'], ['--help'], ['run', '--help'], ['run', 'nothing']):\n"
        "    main(command)\n"
        "heavy = {'jax', 'scipy', 'pandas', 'matplotlib', 'tensorboardX', 'jinja2', 'torch'}\n"
        "sys.exit(f'imported {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_missing_extra_is_named():
    script = (
        "import runpy, sys; sys.modules['tyro'] = None; runpy.run_module('experiments', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "python -m experiments needs tyro: pip install -e '.[experiments]'\n"


def test_run_from_end_to_end(toy, capfd):
    assert main(["run", "toy", "--preset", "smoke", "--draws.scale", "0.1", "--shifts", "2", "3", "4"]) == 0
    shown = capfd.readouterr()
    folder = only_run()
    report = json.loads((folder / "report.json").read_text())
    assert report["config"]["draws"] == {"count": 10, "scale": 0.1}
    assert report["preset"] == "smoke"
    assert [claim["verdict"] for claim in report["claims"]] == ["holds", "undecided", "undecided"]
    assert all(len(claim["values"]) == 3 for claim in report["claims"])
    assert [row[0] for row in report["tables"][0]["rows"]] == [2.0, 3.0, 4.0]
    assert report["machine"]["processor"]
    assert report["versions"]["numpy"]
    assert {"config.json", "metrics.jsonl", "tensorboard", "checkpoints", "figures", "report.json"} == {
        item.name for item in folder.iterdir()
    }
    assert (folder / report["figures"][0]["file"]).is_file()

    lines = shown.out.splitlines()
    assert f"figure      {folder / 'figures' / 'means.png'}" in lines
    assert lines[-1] == f"run folder  {folder}"
    head = next(line for line in lines if line.split() == ["claim", "paper", "ours", "verdict"])
    table = lines[lines.index(head) :]
    assert all(len(line) <= 80 for line in table[:-2])
    assert any("3 seeds" in line for line in table)
    assert any("to hold: at least 50" in line for line in table)
    assert any(line.rstrip().endswith("holds") for line in table)
    assert "Shifted means" in shown.out
    assert "Note: The toy's draws are generated" in shown.out
    assert "seeds: 3 done in" in shown.err


def test_claims_that_do_not_hold_are_no_error(toy, capfd):
    assert main(["run", "toy", "--seeds", "8"]) == 0
    verdicts = [claim["verdict"] for claim in json.loads((only_run() / "report.json").read_text())["claims"]]
    assert verdicts[:2] == ["holds", "does not hold"]
    assert "does not" in capfd.readouterr().out


def test_each_run_has_a_folder_of_its_own(toy, capfd):
    assert main(["run", "toy", "--preset", "smoke"]) == main(["run", "toy", "--preset", "smoke"]) == 0
    assert len(list(Path("runs/toy").iterdir())) == 2


def test_run_into_a_folder_that_holds_a_run(toy, capfd):
    assert main(["run", "toy", "--preset", "smoke", "--folder", "mine"]) == 0
    before = {path: path.read_bytes() for path in Path("mine").rglob("*") if path.is_file()}
    assert main(["run", "toy", "--preset", "smoke", "--folder", "mine"]) == 2
    assert "run folder mine exists already, and a run is never overwritten" in capfd.readouterr().err
    assert before == {path: path.read_bytes() for path in Path("mine").rglob("*") if path.is_file()}


def test_help_of_an_experiment(toy, capsys):
    assert main(["run", "toy", "--preset", "paper", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "A toy: the mean of normal draws." in text
    assert "--preset {smoke,cpu,paper}" in text
    assert "Draws for each seed. (default: 10000)" in text
    assert "How long each seed sleeps, in seconds." in text


def test_help(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("list", "run NAME", "report", "compile NAME", "bench [NAME]", "--resume"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80
    assert main([]) == 2
    for command in ("list", "report", "bench", "run", "compile"):
        assert main([command, "--help"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["walk"], "there is no command 'walk'; commands: list, run, report, compile, bench"),
        (["run"], "the experiment's name comes first: python -m experiments run NAME"),
        (["run", "--preset", "cpu"], "the experiment's name comes first"),
        (["run", "tyo"], "there is no experiment 'tyo' (did you mean 'toy'?); available: "),
        (["compile", "tyo"], "there is no experiment 'tyo'"),
        (["run", "toy_planned"], "experiment 'toy_planned' is planned, not there yet; available: "),
        (["run", "toy", "--preset", "huge"], "toy has no preset 'huge'; presets: smoke, cpu, paper"),
        (["compile", "toy", "--preset", "huge"], "toy has no preset 'huge'; presets: smoke, cpu, paper"),
        (["run", "toy", "--preset"], "expected one argument"),
        (["run", "toy", "--sedes", "3"], "Perhaps you meant: --seeds INT Independent repetitions."),
        (["run", "toy", "--seeds", "three"], "invalid literal for int"),
        (["run", "toy", "--family", "cauchy"], "Expected one of ('normal', 'uniform')"),
        (["run", "toy", "--seeds", "0"], "seeds: expected at least 1, got 0"),
        (["run", "all", "--preset", "huge"], "Expected one of ('smoke', 'cpu', 'paper')"),
        (["run", "all", "--seeds", "3"], "Unrecognized options: --seeds"),
        (["run", "toy", "--resume", "nowhere"], "nowhere holds no run to resume"),
        (["list", "--all"], "Unrecognized options: --all"),
        (["bench", "nothing"], "there is no benchmark 'nothing'; benchmarks: "),
        (["run", "toy", "--runs", "taken"], "taken"),
    ],
)
def test_mistakes_say_what_is_allowed(toy, capfd, arguments, message):
    Path("taken").write_text("a file, no folder")
    assert main(arguments) == 2
    shown = capfd.readouterr()
    assert message in " ".join(shown.err.replace("│", " ").split())
    assert "Traceback" not in shown.err
    assert not Path("runs").exists()


def test_an_experiment_that_fails_can_be_resumed(toy, capfd):
    assert main(["run", "toy", "--fail-at", "2"]) == 1
    error = capfd.readouterr().err
    folder = only_run()
    assert "RuntimeError: seed 2 fails as it was told to" in error
    assert (
        f"toy failed; when the cause is gone, to go on: python -m experiments run toy --resume {folder}"
        in error
    )
    assert not (folder / "report.json").exists()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["seed-0.npz", "seed-1.npz"]


def test_resume_keeps_the_config(toy, capfd):
    assert main(["run", "toy", "--fail-at", "2", "--seeds", "5", "--folder", "mine"]) == 1
    assert main(["run", "toy", "--resume", "mine", "--seeds", "6"]) == 2
    assert "mine was begun with seeds = 5, not 6: a resumed run keeps its config" in capfd.readouterr().err
    assert main(["run", "toy", "--resume", "mine", "--preset", "smoke"]) == 2
    assert "mine was begun with --preset cpu" in capfd.readouterr().err
    assert main(["run", "toy", "--resume", "mine", "--seeds", "5"]) == 1  # the cause is not gone


def test_resume_of_a_run_of_another_experiment(toy, capfd):
    assert main(["run", "toy", "--preset", "smoke", "--folder", "mine"]) == 0
    assert main(["run", "toy", "--resume", "mine"]) == 2
    assert "the run in mine is finished" in capfd.readouterr().err
    config = json.loads(Path("mine/config.json").read_text())
    Path("mine/report.json").unlink()
    Path("mine/config.json").write_text(json.dumps(config | {"experiment": "npo"}))
    assert main(["run", "toy", "--resume", "mine"]) == 2
    assert "mine holds a run of 'npo', not of 'toy'" in capfd.readouterr().err


def test_interrupted(toy, capfd, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments.run_dir.RunDir, "stage", stop)
    assert main(["run", "toy"]) == 130
    assert (
        f"interrupted; to go on: python -m experiments run toy --resume {only_run()}"
        in capfd.readouterr().err
    )


@pytest.mark.parametrize(
    ("measurements", "message"),
    [
        ({"mean-is-small": [1.0]}, "claim 'mean-is-large' was not measured; measured were mean-is-small"),
        ({"other": [1.0]}, "measurement 'other' belongs to no claim; the claims are mean-is-small, mean-is"),
    ],
)
def test_measurements_are_those_of_the_claims(toy, capfd, monkeypatch, measurements, message):
    experiment = systems.load_experiment("toy")
    monkeypatch.setattr(experiment, "run", lambda *_: experiments.run_dir.Outcome(measurements))
    assert main(["run", "toy", "--preset", "smoke"]) == 1
    assert message in capfd.readouterr().err


def test_run_all_goes_on_after_a_failure(toy, capfd, monkeypatch):
    monkeypatch.setattr(systems, "SYSTEMS", systems.SYSTEMS[-1:] * 2)
    experiment, ran = systems.load_experiment("toy"), []
    real = experiment.run

    def run(config, run_dir):
        ran.append(run_dir.path)
        if len(ran) == 1:
            raise RuntimeError("the first one fails")
        return real(config, run_dir)

    monkeypatch.setattr(experiment, "run", run)
    assert main(["run", "all", "--preset", "smoke"]) == 1
    assert [(path / "report.json").exists() for path in ran] == [False, True]


@pytest.mark.slow
def test_killed_runs_go_on_to_the_same_result(tmp_path, toy_command):
    """SIGKILL between and inside stages, three times over; the result is that of a run left alone."""
    environment = os.environ | {"COLUMNS": "80"}
    arguments = [*toy_command, "run", "toy", "--seeds", "9", "--seconds", "0.1"]

    def finish(*more: str) -> None:
        subprocess.run([*arguments, *more], cwd=tmp_path, env=environment, check=True, capture_output=True)

    folder = tmp_path / "killed"
    finish("--folder", "whole")
    more = ["--folder", "killed"]
    for stages in (2, 4, 6):
        process = subprocess.Popen(
            [*arguments, *more], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        until = time.monotonic() + 60
        while len(list(folder.glob("checkpoints/*.npz"))) < stages and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(0.04)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (folder / "report.json").exists()
        more = ["--resume", "killed"]
    finished_before = {path.name: path.stat().st_mtime_ns for path in folder.glob("checkpoints/*.npz")}
    assert 6 <= len(finished_before) < 9
    finish("--resume", "killed")
    for name, changed in finished_before.items():
        assert (folder / "checkpoints" / name).stat().st_mtime_ns == changed
    whole, killed = (
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "killed")
    )
    assert killed["resumed"]
    for part in ("claims", "tables", "figures", "notes", "config"):
        assert killed[part] == whole[part]
    assert list(folder.rglob(".*")) == []


@pytest.mark.parametrize(("fits", "status"), [(True, 0), (None, 0), (False, 1)])
def test_compile_prints_the_report_and_says_whether_it_fits(toy, capsys, monkeypatch, fits, status):
    class Report:
        def __init__(self, target, topology):
            self.fits, self.text = fits, f"{target.seeds} seeds on {topology}"

        def __str__(self):
            return self.text

    monkeypatch.setattr(
        "jaxneg.train.compile_for", lambda target, topology: Report(target, topology), raising=False
    )
    assert main(["compile", "toy", "--topology", "v5e:4x4"]) == status
    assert "32 seeds on v5e:4x4" in capsys.readouterr().out


def test_compile_that_fails(toy, capfd, monkeypatch):
    def refuse(target, topology):
        raise ValueError(f"topology: expected a TPU topology, got {topology!r}")

    monkeypatch.setattr("jaxneg.train.compile_for", refuse, raising=False)
    assert main(["compile", "toy", "--topology", "abacus"]) == 1
    assert "topology: expected a TPU topology, got 'abacus'" in capfd.readouterr().err
