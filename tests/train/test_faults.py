"""Kill, terminate, corrupt, fill the disk, feed NaN."""

import json
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.train import (
    CheckpointError,
    NonFiniteError,
    fit,
    init_state,
    make_step,
    pipeline,
    restore,
)

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = Path(__file__).with_name("training_run.py")
STEPS = 120


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


def start(cache: Path, folder: Path, steps: int = STEPS, pause: float = 0.0) -> subprocess.Popen:
    """The training script, after its imports."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, str(SCRIPT), str(folder), str(steps), str(pause)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture(scope="module")
def unbroken(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never killed."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert start(cache, folder).wait(timeout=300) == 0
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == STEPS
    return folder


def newest(folder: Path) -> Path:
    return max((p for p in (folder / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def assert_same_end(folder: Path, unbroken: Path) -> None:
    """Parameters, optimizer state, position and metrics, bit for bit."""
    assert (folder / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    _, like = runpy.run_path(str(SCRIPT))["setting"](STEPS)
    ours, theirs = (restore(path / "checkpoints", like) for path in (folder, unbroken))
    assert ours.step == theirs.step == int(ours.state.step) == STEPS
    assert ours.extras == theirs.extras
    assert ours.metrics == theirs.metrics
    assert_same_bits(ours.state, theirs.state)


def assert_same_bits(tree, other) -> None:
    def words(leaf):
        array = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        return np.asarray(array).tobytes()

    assert jax.tree.map(words, tree) == jax.tree.map(words, other)


def is_writing(folder: Path) -> bool:
    checkpoints = folder / "checkpoints"
    return checkpoints.is_dir() and any("tmp" in name for name in os.listdir(checkpoints))


@pytest.mark.slow
def test_a_run_killed_in_a_checkpoint_write_and_at_a_random_moment(cache, unbroken, tmp_path):
    process = start(cache, tmp_path)
    while not is_writing(tmp_path):
        assert process.poll() is None, "the run ended before a write was seen"
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process = start(cache, tmp_path)
    time.sleep(random.uniform(0.0, 0.8))
    process.kill()
    process.wait()
    assert start(cache, tmp_path).wait(timeout=300) == 0
    assert_same_end(tmp_path, unbroken)


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_ends_like_one_never_killed(cache, unbroken, tmp_path):
    """Several runs, one after the other, until twenty kills are done; each run is resumed to its end."""
    kills = writes = runs = 0
    while kills < 20:
        folder = tmp_path / f"run{runs}"
        runs += 1
        process = start(cache, folder)
        while kills < 20:
            try:
                process.wait(timeout=random.uniform(0.0, 1.5))
                break
            except subprocess.TimeoutExpired:
                process.kill()
                kills += process.wait() == -signal.SIGKILL
                writes += is_writing(folder)
            process = start(cache, folder)
        assert process.wait(timeout=300) == 0
        assert_same_end(folder, unbroken)
    assert writes >= 1, "no kill fell into a write"


@pytest.mark.slow
def test_sigterm_saves_within_its_grace_time_and_exits_with_0(cache, unbroken, tmp_path):
    folder = tmp_path / "run"
    process = start(cache, folder, pause=0.02)
    metrics = folder / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= 8):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert newest(folder).name == str(last)
    assert 8 <= last < STEPS
    assert start(cache, folder).wait(timeout=300) == 0
    assert_same_end(folder, unbroken)


X = np.random.default_rng(0).normal(size=(60, 256)).astype(np.float32)
TX = optax.adam(1e-2)


def loss_fn(params, batch, key):
    return jnp.mean((jnp.tanh(batch["x"] @ params["w"]) - 1) ** 2), {"mean": jnp.mean(params["w"])}


STEP = jax.jit(make_step(loss_fn, TX))


def first_state():
    """About 0.8 MB with both moments."""
    return init_state({"w": jax.random.normal(jax.random.key(1), (256, 256))}, TX, jax.random.key(0))


def train(folder: Path, *, step=STEP, data=None, state=None, steps=12, **options):
    data = pipeline({"x": X}, 12) if data is None else data
    options = {"checkpoint_every": 3, "log_every": 1, "progress": False} | options
    return fit(step, first_state() if state is None else state, data, steps=steps, run_dir=folder, **options)


def test_resume_after_the_newest_checkpoint_was_damaged(tmp_path):
    whole = train(tmp_path / "whole")
    train(tmp_path / "run", steps=8)
    arrays = [path for path in (tmp_path / "run" / "checkpoints" / "8").rglob("d/*") if path.is_file()]
    for path in arrays:
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"checkpoints/8 is damaged, and .*checkpoints/6 is used instead"):
        resumed = train(tmp_path / "run", resume=True)
    assert_same_bits(resumed.state, whole.state)
    assert resumed.history == whole.history
    assert (tmp_path / "run" / "checkpoints" / "8.corrupt").is_dir()


def after_checkpoint_6(folder: Path, spoil):
    """An evaluation that spoils the disk at step 7, when the checkpoint of step 6 is whole."""

    def evaluate(state):
        if int(state.step) == 7:
            while not (folder / "checkpoints" / "6").is_dir():
                time.sleep(0.01)
            spoil()
        return {}

    return {"evaluate": evaluate, "evaluate_every": 7}


def assert_stopped_by_a_full_disk(folder: Path, reason: str, fill, free) -> None:
    """The error names the last good checkpoint; all are untouched; the run goes on when there is room."""
    with pytest.raises(
        CheckpointError, match=rf"cannot write a checkpoint into .*{reason}.*good one is .*/6"
    ):
        train(folder, **after_checkpoint_6(folder, fill))
    free()
    for step in (3, 6):
        assert restore(folder / "checkpoints", first_state(), step=step).step == step
    resumed = train(folder, resume=True)
    assert_same_bits(resumed.state, train(folder.with_name("whole")).state)


def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("only root can mount a small disk")
    filler = disk / "filler"

    def fill():
        with suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    try:
        assert_stopped_by_a_full_disk(disk / "run", "No space left on device", fill, filler.unlink)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def file_size():
    """Sets the size in bytes above which a write fails, for any user on any disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size or limits[0], limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_file_that_cannot_grow(tmp_path, file_size):
    assert_stopped_by_a_full_disk(
        tmp_path / "run", "File too large", lambda: file_size(50_000), lambda: file_size(None)
    )


def test_metrics_that_cannot_be_written(tmp_path, file_size):
    file_size(200)
    with pytest.raises(OSError, match=r"cannot write metrics: File too large: .*metrics.jsonl"):
        train(tmp_path / "run", checkpoint_every=None)
    file_size(None)
    assert train(tmp_path / "run", resume=True).history == train(tmp_path / "whole").history


def test_a_checkpoint_folder_that_became_unwritable(tmp_path):
    """A file takes the folder's place, which stops root too."""
    folder = tmp_path / "run"
    checkpoints = folder / "checkpoints"
    threads = set(threading.enumerate())

    def replace():
        checkpoints.rename(tmp_path / "aside")
        checkpoints.write_text("")

    with pytest.raises(CheckpointError, match=f"cannot write a checkpoint into {checkpoints}: "):
        train(folder, **after_checkpoint_6(folder, replace))
    time.sleep(0.5)
    left = [thread.name for thread in set(threading.enumerate()) - threads if not thread.daemon]
    assert [name for name in left if not name.startswith("metadata_store")] == [], "they would delay the exit"
    checkpoints.unlink()
    (tmp_path / "aside").rename(checkpoints)
    assert restore(checkpoints, first_state()).step == 6


def assert_stopped(folder: Path, message: str, metric: str, index: tuple | None, **options) -> None:
    with pytest.raises(NonFiniteError, match=message) as caught:
        train(folder, **options)
    error = caught.value
    checkpoint = folder / "checkpoints" / "6"
    assert (error.metric, error.index, error.step, error.checkpoint) == (metric, index, 8, checkpoint)
    assert str(error).endswith(f"the last good checkpoint is {checkpoint}")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["3", "6"]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 7


def at_step_8(value: float):
    """Batches with a scale that is 1, except in the batch of step 8."""
    data = pipeline({"x": X}, 12)
    scale = {7: np.float32(value)}
    return grain.MapDataset.range(2**40).map(lambda i: data[i] | {"scale": scale.get(i, np.float32(1))})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_the_loss(tmp_path, value):
    def scaled(params, batch, key):
        loss, aux = loss_fn(params, batch, key)
        return loss * batch["scale"], aux

    step = jax.jit(make_step(scaled, TX))
    assert_stopped(
        tmp_path, "^loss is not finite at step 8; ", "loss", None, step=step, data=at_step_8(value)
    )


def test_nan_in_an_auxiliary_metric(tmp_path):
    def with_aux(params, batch, key):
        loss, _ = loss_fn(params, batch, key)
        return loss, {"table": jnp.ones((2, 3)).at[1, 2].mul(batch["scale"])}

    step = jax.jit(make_step(with_aux, TX))
    message = r"^table\[1, 2\] is not finite at step 8; "
    assert_stopped(tmp_path, message, "table", (1, 2), step=step, data=at_step_8(np.nan))


@jax.custom_vjp
def spoil(x, scale):
    """x; its gradient is multiplied by the scale, where there is any."""
    return x


spoil.defvjp(lambda x, scale: (x, scale), lambda scale, g: (jnp.where(g == 0, 0, g * scale), None))


def test_nan_in_the_gradient_of_one_task(tmp_path):
    tx = optax.chain(optax.stateless(lambda jac, _: jax.tree.map(lambda j: j.mean(0), jac)), TX)

    def tasks(params, batch, key):
        loss, _ = loss_fn(params, batch, key)
        return jnp.stack([loss, spoil(loss, batch["scale"]), loss]), {}

    message = "^grad_norm of task 1 is not finite at step 8; "
    state = first_state()._replace(opt_state=tx.init(first_state().params))
    options = {"step": jax.jit(make_step(tasks, tx)), "data": at_step_8(np.nan), "state": state}
    assert_stopped(tmp_path, message, "grad_norm", (1,), **options)


def test_nan_in_the_data(tmp_path):
    data = pipeline({"x": X}, 12)

    def poisoned(number):
        batch = data[number]
        if number == 7:
            batch["x"][3, 5] = np.nan
        return batch

    data_with_nan = grain.MapDataset.range(2**40).map(poisoned)
    assert_stopped(tmp_path, "^loss is not finite at step 8; ", "loss", None, data=data_with_nan)


def test_nan_in_an_evaluation(tmp_path):
    options = {"evaluate": lambda state: {"auc": np.array([0.5, np.nan])}, "evaluate_every": 8}
    assert_stopped(tmp_path, r"^eval/auc\[1\] is not finite at step 8; ", "eval/auc", (1,), **options)


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    """Infinite parameters that no metric shows; a NaN in the optimizer's state, where infinity may be."""

    def quiet(change):
        def step(state, batch):
            return change(state._replace(step=state.step + 1)), {"loss": jnp.float32(1)}

        return step

    bad = {"params/w": lambda s: s._replace(params={"w": jnp.full((256, 256), jnp.inf)})}
    bad["opt_state/0/count"] = lambda s: s._replace(
        opt_state=(s.opt_state[0]._replace(count=jnp.nan * s.step),)
    )
    for number, (path, change) in enumerate(bad.items()):
        folder = tmp_path / str(number)
        with pytest.raises(
            NonFiniteError, match=f"^{path} is not finite at step 3; there is no good checkpoint"
        ):
            train(folder, step=quiet(change))
        assert list((folder / "checkpoints").iterdir()) == []
    best = {"best": jnp.array(jnp.inf), "rest": first_state().opt_state}
    train(tmp_path / "allowed", step=quiet(lambda s: s), state=first_state()._replace(opt_state=best))


def test_non_finite_without_a_folder():
    data = [{"x": X[:12]}, {"x": X[:12] * np.nan}]
    with pytest.raises(NonFiniteError, match=r"^loss is not finite at step 2; there is no good checkpoint$"):
        fit(STEP, first_state(), data, steps=2, progress=False)
