"""Two real processes with four devices each, beside one process with eight."""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.train import make_mesh, restore, shardings

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = Path(__file__).with_name("process_run.py")
STEPS = 12


def start(folder: Path, steps: int, pause: float = 0.0) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    arguments = [str(port), str(folder), str(steps), str(pause)]
    return [
        subprocess.Popen([sys.executable, str(SCRIPT), str(i), "2", *arguments], env=environment)
        for i in range(2)
    ]


def finish(processes: list[subprocess.Popen], timeout: float = 300) -> None:
    try:
        assert [process.wait(timeout=timeout) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def one(script, tmp_path_factory):
    return script["train"](tmp_path_factory.mktemp("one"), STEPS)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    finish(start(folder, STEPS))
    return folder


@pytest.mark.slow
def test_the_same_losses(one, two):
    assert [record["step"] for record in records(two)] == list(range(1, STEPS + 1))
    for ours, theirs in zip(records(two), one.history, strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
        np.testing.assert_allclose(ours["grad_norm"], theirs["grad_norm"], rtol=1e-5)


@pytest.mark.slow
def test_checkpoints_of_two_processes_are_read_by_one(script, one, two):
    state = script["first_state"]()
    onto = shardings(state, make_mesh({"data": 2, "model": 4}), fsdp="data", min_size=1)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, onto)
    for kind in (state, like):
        read = restore(two / "checkpoints", kind)
        assert read.step == STEPS
        close = jax.tree.map(
            lambda ours, theirs: np.allclose(ours, theirs, rtol=1e-4, atol=1e-6),
            read.state._replace(key=None),
            one.state._replace(key=None),
        )
        assert jax.tree.all(close)
        assert jnp.array_equal(jax.random.key_data(read.state.key), jax.random.key_data(state.key))


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_and_both_resume(script, tmp_path):
    """Both at the same step; the checkpoint of that step is then damaged, so that the one before is used."""
    processes = start(tmp_path, 2000, pause=0.05)
    metrics = tmp_path / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= 3):
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    finish(processes)
    last = records(tmp_path)[-1]["step"]
    assert restore(tmp_path / "checkpoints", script["first_state"]()).step == last < 2000
    for path in (tmp_path / "checkpoints" / str(last) / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-20])
    finish(start(tmp_path, last + 5))
    assert (tmp_path / "checkpoints" / f"{last}.corrupt").is_dir()
    assert [record["step"] for record in records(tmp_path)] == list(range(1, last + 6))
    whole = script["train"](tmp_path / "whole", last + 5)
    for ours, theirs in zip(records(tmp_path), whole.history, strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
