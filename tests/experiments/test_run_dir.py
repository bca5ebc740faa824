"""The run folder: new each time, whole files only, stages that are computed once."""

import errno
import functools
import json
import threading
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.config import config_from_json, config_to_json
from experiments.run_dir import RunDir, Table


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    names: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True)
class Settings:
    steps: int = 3
    inner: Inner = Inner()
    sizes: tuple[int, float] = (1, 2.0)
    layers: tuple[Inner, ...] = (Inner(), Inner(0.2))
    data: Path | None = None
    on: bool = True


@pytest.fixture
def run_dir(tmp_path):
    with RunDir.create("demo", Settings(), preset="smoke", runs=tmp_path) as made:
        yield made


def test_create_writes_the_config(run_dir, tmp_path):
    assert run_dir.path.parent == tmp_path / "demo"
    written = json.loads((run_dir.path / "config.json").read_text())
    assert written["experiment"] == "demo"
    assert written["preset"] == "smoke"
    assert written["config"]["inner"] == {"rate": 0.1, "names": ["a", "b"]}


def test_programs_of_a_smoke_run_compile_in_a_hurry(run_dir, tmp_path):
    hurry = functools.partial(jax.config.read, "jax_disable_most_optimizations")
    with run_dir:  # entered twice, as `run_experiment` does
        assert hurry()
    assert hurry()
    run_dir.__exit__()
    outside = hurry()
    with RunDir.create("demo", Settings(), preset="cpu", runs=tmp_path):
        assert hurry() == outside
    run_dir.__enter__()
    assert hurry()


def test_config_survives_json():
    config = Settings(steps=5, inner=Inner(1e-3, ()), sizes=(3, 4.5), data=Path("x/y"), on=False)
    assert config_from_json(Settings, json.loads(json.dumps(config_to_json(config)))) == config
    assert config_from_json(Settings, config_to_json(Settings())) == Settings()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "3"}, "config.steps: expected int, got '3'"),
        ({"steps": True}, "config.steps: expected int, got True"),
        ({"sizes": [1]}, r"config.sizes: expected tuple.*, got \[1\]"),
        ({"inner": {"rate": 1.0}}, "config.inner: field 'names' of Inner is missing"),
        ({"extra": 1}, "config: unknown field 'extra'; Settings has steps, inner"),
        ({"inner": 3}, "config.inner: expected an object with the fields of Inner, got 3"),
    ],
)
def test_a_config_of_another_shape_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        config_from_json(Settings, config_to_json(Settings()) | change)


def test_a_config_that_json_cannot_hold_is_refused(tmp_path):
    @dataclass(frozen=True)
    class Odd:
        thing: object = object()

    with pytest.raises(TypeError, match=r"a config holds numbers, text, .* got object"):
        RunDir.create("demo", Odd(), runs=tmp_path)


def test_runs_of_one_second_get_folders_of_their_own(tmp_path):
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(RunDir.create("demo", Settings(), runs=tmp_path).path))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 12


def test_an_existing_folder_is_never_written(tmp_path):
    folder = tmp_path / "mine"
    RunDir.create("demo", Settings(), path=folder)
    before = (folder / "config.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"mine exists already, and a run is never over.*--resume"):
        RunDir.create("demo", Settings(steps=9), path=folder)
    assert (folder / "config.json").read_bytes() == before


def test_an_unwritable_place_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file"):
        RunDir.create("demo", Settings(), runs=tmp_path / "file")


def test_resume_has_the_config_of_the_run(tmp_path):
    path = RunDir.create("demo", Settings(steps=7), preset="cpu", runs=tmp_path).path
    resumed = RunDir.resume(path, "demo", Settings)
    assert (resumed.config, resumed.preset, resumed.resumed) == (Settings(steps=7), "cpu", True)


def test_resume_refuses_what_is_not_its_run(tmp_path, run_dir):
    with pytest.raises(FileNotFoundError, match=r"holds no run to resume: there is no .*config.json"):
        RunDir.resume(tmp_path / "nowhere", "demo", Settings)
    with pytest.raises(ValueError, match=r"holds a run of 'demo', not of 'other'"):
        RunDir.resume(run_dir.path, "other", Settings)
    with pytest.raises(ValueError, match=r"config.json: unknown field 'steps'; Inner has rate, names"):
        RunDir.resume(run_dir.path, "demo", Inner)
    (run_dir.path / "config.json").write_text('{"experiment": "de')
    with pytest.raises(ValueError, match=r"config.json is not valid JSON .* the run folder is damaged"):
        RunDir.resume(run_dir.path, "demo", Settings)
    (run_dir.path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json is not the config.json of a run"):
        RunDir.resume(run_dir.path, "demo", Settings)


def test_a_finished_run_is_not_resumed(run_dir):
    (run_dir.path / "report.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"is finished, and a run is never overwritten: begin"):
        RunDir.resume(run_dir.path, "demo", Settings)


def test_a_stage_is_computed_once(run_dir):
    arrays = {"x": np.arange(3.0), "names": np.array(["a", "bc"]), "flag": True}
    first = run_dir.stage("one", lambda: arrays)
    again = RunDir.resume(run_dir.path, "demo", Settings).stage("one", lambda: pytest.fail("computed twice"))
    assert first.keys() == again.keys() == arrays.keys()
    for name in arrays:
        np.testing.assert_array_equal(first[name], again[name])
        assert first[name].dtype == again[name].dtype


def test_a_stage_that_fails_leaves_nothing(run_dir):
    with pytest.raises(RuntimeError, match=r"in the middle"):
        run_dir.stage("one", lambda: (_ for _ in ()).throw(RuntimeError("in the middle")))
    assert list((run_dir.path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\x00" * len(b)])
def test_a_damaged_stage_is_computed_anew_with_a_warning(run_dir, damage):
    run_dir.stage("one", lambda: {"x": np.arange(100.0)})
    file = run_dir.path / "checkpoints" / "one.npz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=r"stage 'one': .*one.npz cannot be read .* computed anew"):
        arrays = run_dir.stage("one", lambda: {"x": np.arange(100.0)})
    np.testing.assert_array_equal(arrays["x"], np.arange(100.0))
    with np.load(file, allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["x"], np.arange(100.0))


def test_a_flipped_bit_in_a_stage_is_noticed(run_dir):
    run_dir.stage("one", lambda: {"x": np.arange(100.0)})
    file = run_dir.path / "checkpoints" / "one.npz"
    content = bytearray(file.read_bytes())
    content[300] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"computed anew"):
        np.testing.assert_array_equal(
            run_dir.stage("one", lambda: {"x": np.arange(100.0)})["x"], np.arange(100.0)
        )


def test_a_full_disk_leaves_the_other_stages(run_dir, monkeypatch):
    def full(stream, **_):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    run_dir.stage("one", lambda: {"x": np.arange(3)})
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match=r"stage 'two' cannot be kept: No space left on device: .*two.npz"):
        run_dir.stage("two", lambda: {"x": np.arange(3)})
    assert [path.name for path in (run_dir.path / "checkpoints").iterdir()] == ["one.npz"]


def test_a_stage_holds_plain_arrays(run_dir):
    with pytest.raises(TypeError, match=r"stage 'one': array 'x': expected numbers, .*, got object"):
        run_dir.stage("one", lambda: {"x": np.array([{}])})
    with pytest.raises(ValueError, match=r"name: expected letters, .* got '../one'"):
        run_dir.stage("../one", dict)


def test_metrics_go_to_jsonl_and_tensorboard(run_dir):
    run_dir.log(1, loss=2.0, accuracy=np.float32(0.5))
    run_dir.log(np.int64(2), loss=np.array(1.0))
    run_dir.close()
    lines = [json.loads(line) for line in (run_dir.path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 2.0, "accuracy": 0.5}, {"step": 2, "loss": 1.0}]
    assert [
        file.name for file in (run_dir.path / "tensorboard").glob("events.*") if file.stat().st_size > 100
    ]


def test_a_half_written_line_is_dropped_when_a_run_resumes(run_dir):
    run_dir.log(1, loss=2.0)
    run_dir.close()
    file = run_dir.path / "metrics.jsonl"
    file.write_text(file.read_text() + '{"step": 2, "lo')
    with RunDir.resume(run_dir.path, "demo", Settings) as resumed:
        resumed.log(2, loss=1.0)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2]


def test_figures_are_saved_with_their_captions(run_dir):
    figure = Figure()
    figure.subplots().plot([1, 2])
    path = run_dir.figure("line", figure, "A line.")
    assert path == run_dir.path / "figures" / "line.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert RunDir.resume(run_dir.path, "demo", Settings).captions == {"line": "A line."}


def test_progress_without_a_terminal_prints_lines(run_dir, capfd, monkeypatch):
    monkeypatch.setattr("experiments.run_dir.SECONDS_BETWEEN_LINES", 0.0)
    assert list(run_dir.progress(range(3), "seeds [bold]")) == [0, 1, 2]
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("seeds [bold]: 1 of 3 in")
    assert lines[-1].startswith("seeds [bold]: 3 done in")
    assert list(run_dir.progress((i for i in range(2)), "items")) == [0, 1]
    assert "items: 1 in" in capfd.readouterr().err


def test_progress_on_a_terminal_draws_bars_inside_bars(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    run_dir = RunDir.create("demo", Settings(), runs=tmp_path)
    pairs = [(i, j) for i in run_dir.progress(range(2), "outer") for j in run_dir.progress("ab", "inner")]
    assert pairs == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    shown = capfd.readouterr().err
    assert "outer" in shown
    assert "inner" in shown
    assert "━" in shown
    for _ in run_dir.progress(range(5), "left early"):
        break
    run_dir.close()


def test_a_table_has_whole_rows():
    with pytest.raises(ValueError, match=r"table 'speeds': row 1: expected 2 cells \(method, ratio\), got 1"):
        Table("speeds", ["method", "ratio"], [["mgda", 1.0], ["nash"]])
