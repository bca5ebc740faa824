"""The loop: cadences, records, resuming, run folders, progress, and bad arguments."""

import json
import os
import re
import signal
import sys
import threading
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxneg.train import CheckpointError, fit, init_state, make_mesh, make_step, pipeline, restore, shard_step

X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
ARRAYS = {"x": X, "y": X @ np.arange(6, dtype=np.float32)}
TX = optax.adam(0.1)


def loss_fn(params, batch, key):
    x = batch["x"] * jax.random.bernoulli(key, 0.9, batch["x"].shape)
    error = x @ params["w"] - batch["y"]
    return jnp.mean(error**2), {"error": jnp.mean(error), "count": jnp.int32(error.size)}


STEP = jax.jit(make_step(loss_fn, TX))


def first_state():
    return init_state({"w": jnp.zeros(6)}, TX, jax.random.key(0))


def batches():
    return pipeline(ARRAYS, 16, seed=1)


def train(steps=20, **options):
    options = {"log_every": 1, "progress": False} | options
    return fit(
        options.pop("step", STEP), first_state(), options.pop("data", batches()), steps=steps, **options
    )


def bits(state) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state._replace(key=None))]


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def checkpoints(run_dir: Path) -> list[int]:
    return sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir())


def test_fit_is_the_bare_loop():
    state, losses = first_state(), []
    data = batches()
    for number in range(20):
        state, metrics = STEP(state, data[number])
        losses.append(float(metrics["loss"]))
    result = train()
    assert bits(result.state) == bits(state)
    assert [record["loss"] for record in result.history] == losses
    assert [record["step"] for record in result.history] == list(range(1, 21))
    assert set(result.history[0]) == {"step", "loss", "grad_norm", "update_norm", "error", "count"}
    assert losses[-1] < losses[0]
    assert result.checkpoint is None


def test_any_iterable_without_a_folder():
    data = batches()
    result = train(steps=5, data=[data[i] for i in range(5)])
    assert bits(result.state) == bits(train(steps=5).state)
    assert train(steps=5, data=iter(data.to_iter_dataset())).history == result.history


def test_cadences(tmp_path):
    evaluated = []

    def evaluate(state):
        evaluated.append(int(state.step))
        return {"norm": jnp.linalg.norm(state.params["w"]), "both": np.array([1.0, 2.0])}

    result = train(
        23, run_dir=tmp_path, log_every=10, evaluate=evaluate, evaluate_every=8, checkpoint_every=6, keep=3
    )
    assert evaluated == [8, 16, 23]
    assert [record["step"] for record in result.history] == [8, 10, 16, 20, 23]
    assert [record["step"] for record in result.history if "eval/norm" in record] == [8, 16, 23]
    assert result.history[0]["eval/both"] == [1.0, 2.0]
    assert lines(tmp_path) == result.history
    assert checkpoints(tmp_path) == [12, 18, 23]
    assert result.checkpoint == tmp_path / "checkpoints" / "23"


def test_metrics_are_fetched_after_the_next_step_is_dispatched():
    events = []

    class Loss:
        def __init__(self, number):
            self.number = number

        def __array__(self, dtype=None, copy=None):
            events.append(f"fetch {self.number}")
            return np.zeros(())

    def step(state, batch):
        number = int(state.step) + 1
        events.append(f"step {number}")
        return state._replace(step=state.step + 1), {"loss": Loss(number)}

    train(4, step=step, evaluate=lambda state: events.append("evaluate") or {}, evaluate_every=3)
    steps = ["step 1", "step 2", "fetch 1", "step 3", "fetch 2", "fetch 3", "evaluate"]
    assert events == [*steps, "step 4", "fetch 4", "evaluate"]


@pytest.mark.parametrize("stop", [7, 10, 19])
def test_resume_is_exact(tmp_path, stop):
    options = {"checkpoint_every": 5, "evaluate": lambda s: {"w": s.params["w"][0]}, "evaluate_every": 4}
    whole = train(run_dir=tmp_path / "whole", **options)

    class PowerCut(Exception):
        pass

    def step(state, batch):
        if int(state.step) == stop:
            raise PowerCut
        return STEP(state, batch)

    broken = tmp_path / "broken"
    with pytest.raises(PowerCut):
        train(step=step, run_dir=broken, **options)
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')
    resumed = train(run_dir=broken, resume=True, **options)
    assert bits(resumed.state) == bits(whole.state)
    assert resumed.history == whole.history
    assert (broken / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()

    again = train(run_dir=broken, resume=True, **options)
    assert bits(again.state) == bits(whole.state)
    assert again.history == whole.history
    longer = train(30, run_dir=broken, resume=True, **options)
    assert bits(longer.state) == bits(train(30).state)


def test_resume_before_the_first_checkpoint_begins_anew(tmp_path):
    with pytest.raises(ValueError, match="data: ended before step 4; steps is 20"):
        train(data=pipeline(ARRAYS, 12, seed=1, epochs=1), run_dir=tmp_path)
    assert len(lines(tmp_path)) == 2
    resumed = train(run_dir=tmp_path, resume=True)
    assert resumed.history == lines(tmp_path) == train().history


@pytest.mark.parametrize("explicit", [False, True])
def test_a_sharded_step_resumes_on_another_mesh(tmp_path, explicit):
    def sharded(axes):
        mesh = make_mesh(axes, explicit=explicit)
        options = {"rules": [("w", P("model"))], "batch_spec": P("data")}
        return shard_step(make_step(loss_fn, TX), mesh, first_state(), batches()[0], **options)

    def run(axes, steps, **options):
        step = sharded(axes)
        state = step.place_state(first_state())
        return fit(step, state, batches(), steps=steps, log_every=1, progress=False, **options)

    run({"data": 4, "model": 2}, 6, run_dir=tmp_path)
    result = run({"data": 2, "model": 2} | {"rest": 2}, 12, run_dir=tmp_path, resume=True)
    assert result.state.params["w"].sharding.spec == P("model")
    unsharded = train(12)
    for ours, theirs in zip(result.history, unsharded.history, strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    np.testing.assert_allclose(result.state.params["w"], unsharded.state.params["w"], rtol=1e-5)


def test_the_best_checkpoint_stays(tmp_path):
    def evaluate(state):
        return {"score": -abs(int(state.step) - 9)}

    options = {"run_dir": tmp_path, "evaluate": evaluate, "evaluate_every": 3, "checkpoint_every": 3}
    train(best=("eval/score", "max"), keep=1, **options)
    assert checkpoints(tmp_path) == [9, 20]
    assert restore(tmp_path / "checkpoints", first_state(), step=9).metrics["eval/score"] == 0
    assert int(restore(tmp_path / "checkpoints", first_state(), step=9).state.step) == 9


def test_vector_and_low_precision_metrics(tmp_path):
    def step(state, batch):
        state, metrics = STEP(state, batch)
        return state, metrics | {
            "half": jnp.bfloat16(1.5),
            "pair": jnp.array([0.1, 0.2]),
            "flag": jnp.array(True),
        }

    record = train(1, step=jax.jit(step), run_dir=tmp_path, best=("loss", "min")).history[0]
    assert (record["half"], record["flag"], record["count"]) == (1.5, True, 16)
    assert record["pair"] == [float(np.float32(0.1)), float(np.float32(0.2))]
    assert lines(tmp_path) == [record]


def test_tensorboard(tmp_path):
    train(6, run_dir=tmp_path, tensorboard=True, log_every=2, evaluate=lambda state: {"pair": np.ones(2)})
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    for tag in (b"loss", b"grad_norm", b"eval/pair/1", b"steps_per_second"):
        assert tag in content
    assert "steps_per_second" not in (tmp_path / "metrics.jsonl").read_text()


def test_tensorboard_without_tensorboardx(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    train(1, run_dir=tmp_path / "without")
    with pytest.raises(ImportError, match=r"tensorboard: needs tensorboardX: pip install 'jaxneg\[exp"):
        train(1, run_dir=tmp_path / "with", tensorboard=True)


def test_progress_shows_loss_and_throughput(capsys, monkeypatch):
    train(3, progress=True)
    shown = capsys.readouterr().err
    assert re.fullmatch(r"step 3 of 3: loss [\d.]+, \S+ steps/s, \S+ examples/s\n", shown)
    train(3, progress=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    train(3, progress=True)
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "3/3" in drawn
    assert re.search(r"loss [\d.]+, \S+ steps/s, \S+ examples/s", drawn)


def test_progress_of_task_losses(capsys):
    def step(state, batch):
        return state._replace(step=state.step + 1), {"losses": jnp.arange(6.0)}

    train(1, step=step, progress=True)
    assert "loss 0 1 2 3 ..., " in capsys.readouterr().err


@pytest.fixture
def finished(tmp_path) -> Path:
    train(3, run_dir=tmp_path / "run", config={"lr": 0.1, "width": 6})
    return tmp_path / "run"


def snapshot(folder: Path) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_folder_is_never_overwritten(finished):
    before = snapshot(finished)
    with pytest.raises(FileExistsError, match=f"run_dir {finished} holds a run already.*resume=True"):
        train(5, run_dir=finished, config={"lr": 0.1, "width": 6})
    (finished / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=f"run_dir {finished} holds 'notes.txt', no part of a run"):
            train(5, run_dir=finished, config={"lr": 0.1, "width": 6}, resume=resume)
    (finished / "notes.txt").unlink()
    (finished / ".hidden").touch()
    train(3, run_dir=finished, config={"lr": 0.1, "width": 6}, resume=True)
    (finished / ".hidden").unlink()
    assert snapshot(finished) == before


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lr": 0.2, "width": 6}, "config: 'lr' is 0.2, but 0.1 in the run at"),
        ({"lr": 0.1}, "config: 'width' is absent, but 6 in the run at"),
        ({"lr": 0.1, "width": 6, "depth": 2}, "config: 'depth' is 2, but absent in the run at"),
        (None, "config: 'config' is None, but absent in the run at"),
    ],
)
def test_resume_of_a_run_with_another_config(finished, config, message):
    before = snapshot(finished)
    with pytest.raises(ValueError, match=message):
        train(5, run_dir=finished, config=config, resume=True)
    assert snapshot(finished) == before


def test_resume_of_another_model(finished):
    state = init_state({"w": jnp.zeros(7)}, TX, jax.random.key(0))
    before = snapshot(finished)
    message = r"checkpoints/3 is of another model: 'params/w' is float32\[6\] in .* and float32\[7\] in"
    with pytest.raises(ValueError, match=message):
        fit(STEP, state, batches(), steps=5, run_dir=finished, config={"lr": 0.1, "width": 6}, resume=True)
    assert snapshot(finished) == before


def test_resume_without_the_metrics_that_the_checkpoint_knows_of(finished):
    (finished / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"metrics.jsonl lacks lines that the checkpoint knows of"):
        train(5, run_dir=finished, config={"lr": 0.1, "width": 6}, resume=True)


def test_a_folder_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for run_dir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(CheckpointError, match=f"cannot write into run_dir {run_dir}: "):
            train(run_dir=run_dir)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps: expected at least 1, got 0"),
        ({"log_every": 0}, ValueError, "log_every: expected at least 1, got 0"),
        ({"evaluate_every": 0}, ValueError, "evaluate_every: expected at least 1, got 0"),
        ({"evaluate_every": 2}, ValueError, "evaluate_every: expected with evaluate"),
        ({"checkpoint_every": -1}, ValueError, "checkpoint_every: expected at least 1, got -1"),
        ({"checkpoint_every": 2}, ValueError, "checkpoint_every: expected with run_dir"),
        ({"resume": True}, ValueError, "resume: expected with run_dir"),
        ({"best": ("loss", "min")}, ValueError, "best: expected with run_dir"),
        ({"tensorboard": True}, ValueError, "tensorboard: expected with run_dir"),
        ({"run_dir": "run", "keep": 0}, ValueError, "keep: expected at least 1, got 0"),
        ({"run_dir": "run", "best": ("loss", "low")}, ValueError, r"best: expected \(metric, 'min'\)"),
        ({"run_dir": "run", "best": ("lost", "min")}, ValueError, "best: no metric 'lost' at step 1, only"),
        (
            {"run_dir": "run", "best": ("eval/a", "min"), "evaluate": lambda state: {"b": 1.0}},
            ValueError,
            "best: no metric 'eval/a' at step 20, only",
        ),
        ({"run_dir": "run", "config": {"a": object()}}, TypeError, "config: expected JSON values"),
        (
            {"run_dir": "run", "data": [{}]},
            TypeError,
            "data: a run with run_dir saves its position.*got list",
        ),
        ({"data": []}, ValueError, "data: ended before step 1; steps is 20"),
    ],
)
def test_bad_arguments(options, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        train(**options)


def terminating(at: int):
    """Batches; drawing one of them sends SIGTERM to this process."""

    def draw(number):
        if number == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return batches()[number]

    return grain.MapDataset.range(2**40).map(draw)


def test_sigterm_finishes_the_step_saves_and_exits_with_0(tmp_path):
    received = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as exit_:
            train(run_dir=tmp_path, data=terminating(at=7))
        assert exit_.value.code == 0
        assert signal.getsignal(signal.SIGTERM) is handler
        assert received == []
        assert checkpoints(tmp_path) == [8]
        assert len(lines(tmp_path)) == 8
        resumed = train(run_dir=tmp_path, resume=True)
        assert signal.getsignal(signal.SIGTERM) is handler
        whole = train()
        assert bits(resumed.state) == bits(whole.state)
        assert resumed.history == whole.history

        train(10, data=terminating(at=7))
        assert received == [signal.SIGTERM], "without a folder the signal has its ordinary effect"
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_fit_outside_the_main_thread(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(run_dir=tmp_path)))
    thread.start()
    thread.join()
    assert results[0].history == train().history
