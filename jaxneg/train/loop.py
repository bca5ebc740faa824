"""The training loop: steps, metrics, evaluation, checkpoints, and what to do when something goes wrong.

The metrics of a step are fetched after the next step is dispatched: the device never waits for the host.
A run's folder holds::

    config.json      the caller's config
    metrics.jsonl    one line per logged step; nothing that depends on the clock
    checkpoints/     one folder per checkpoint, see `jaxneg.train.checkpoint`
    tensorboard/     the metrics as TensorBoard events, with the throughput

A checkpoint knows the position in the data and the length of metrics.jsonl, so that a run killed at any
moment and resumed ends with the parameters, optimizer state and metrics of a run that was never killed, bit
for bit.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxneg.train.checkpoint import CheckpointError, Checkpoints
from jaxneg.train.data import global_batch
from jaxneg.train.mesh import path_name
from jaxneg.train.step import Batch, Metrics, TrainState

OWN_FILES = ("checkpoints", "config.json", "metrics.jsonl", "tensorboard")
"""What a run folder may hold, besides hidden files."""

Record = dict[str, Any]


class NonFiniteError(FloatingPointError):
    """A metric or the state is NaN or infinite.

    Attributes:
      metric: Name of the metric, or path of the state's array.
      index: Which element of the metric, the task for ``losses`` and ``grad_norm``; None for a scalar.
      step: The step.
      checkpoint: Folder of the last good checkpoint; None if there is none.
    """

    def __init__(self, metric: str, index: tuple[int, ...] | None, step: int, checkpoint: Path | None):
        self.metric, self.index, self.step, self.checkpoint = metric, index, step, checkpoint
        task = index is not None and metric in ("losses", "grad_norm")
        where = "" if index is None else f" of task {index[0]}" if task else str(list(index))
        good = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no good checkpoint"
        super().__init__(f"{metric}{where} is not finite at step {step}; {good}")


class FitResult(NamedTuple):
    """What :func:`fit` returns.

    Attributes:
      state: The state after the last step.
      history: The lines of metrics.jsonl from the run's beginning: dicts with ``step`` and the metrics.
      checkpoint: Folder of the newest checkpoint; None without a run folder.
    """

    state: TrainState
    history: list[Record]
    checkpoint: Path | None


def fit(
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    state: TrainState,
    data: Iterable[Batch],
    *,
    steps: int,
    run_dir: Path | str | None = None,
    config: Mapping[str, Any] | None = None,
    resume: bool = False,
    batch_sharding: Any = None,
    log_every: int = 10,
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None,
    evaluate_every: int | None = None,
    checkpoint_every: int | None = None,
    keep: int = 2,
    best: tuple[str, Literal["min", "max"]] | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> FitResult:
    """Trains until ``state.step`` is ``steps``.

    ``state, metrics = step(state, batch)``, over and over.

    On SIGTERM a run with a folder finishes its step, saves, and raises ``SystemExit(0)``: the process exits
    with code 0, and the same call with ``resume=True`` continues. With ``jax.distributed`` all processes
    agree through JAX's preemption service on the step at which they stop. Every process must call ``fit``;
    the first one writes the metrics, all of them the checkpoints.

    Args:
      step: A compiled step: ``jax.jit(make_step(...))`` or ``shard_step(...)``.
      state: The state to begin with, placed on its devices; a step that donates it makes it unusable.
      data: Batches: a grain data set (:func:`pipeline`) or its iterator, or without ``run_dir`` any iterable.
      steps: The step to stop at, counted from the run's beginning.
      run_dir: The run's folder: missing or empty, or with ``resume`` the folder of this run. None keeps
        nothing.
      config: JSON values that describe the run, kept in config.json and in every checkpoint.
      resume: Whether to continue from the newest checkpoint in ``run_dir``, from ``state`` if there is none.
      batch_sharding: As in :func:`global_batch`; by default ``step.batch_shardings`` if the step has it.
      log_every: Steps between two lines of metrics.jsonl; the last step has one too.
      evaluate: ``(state) -> metrics``, logged as ``eval/<name>``; called after the last step too.
      evaluate_every: Steps between two evaluations.
      checkpoint_every: Steps between two checkpoints; the last step has one too.
      keep: Number of the newest checkpoints that stay.
      best: ``("eval/accuracy", "max")``: the checkpoint that is best by this metric stays too.
      tensorboard: Whether to write TensorBoard events (needs tensorboardX).
      progress: Whether to show a progress bar with loss and throughput on standard error.

    Returns:
      The state, the metrics, and where the newest checkpoint is.

    Raises:
      NonFiniteError: If a metric of a step or of ``evaluate``, or the state at a checkpoint, is NaN or
        infinite. Nothing of that step is saved.
      FileExistsError: If ``run_dir`` holds anything and ``resume`` is not set, or what is not a run's.
      ValueError: If an option does not fit, the run in ``run_dir`` has another config, its checkpoint is of
        another model, or the data ends early.
      TypeError: If a run with a folder gets data that has no position to save.
      CheckpointError: If a checkpoint cannot be written, or none read.
      SystemExit: With code 0, after SIGTERM.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np, optax
      >>> from jaxneg.train import fit, init_state, make_step, pipeline
      >>> step = make_step(lambda w, b, key: (jnp.mean((b["x"] @ w) ** 2), {}), tx := optax.sgd(0.1))
      >>> state = init_state(jnp.ones(3), tx, jax.random.key(0))
      >>> data = pipeline({"x": np.eye(3, dtype=np.float32)}, 3)
      >>> int(fit(jax.jit(step), state, data, steps=5, progress=False).state.step)
      5
    """
    _require_counts(steps=steps, log_every=log_every)
    _require_counts(evaluate_every=evaluate_every, checkpoint_every=checkpoint_every)
    if evaluate_every is not None and evaluate is None:
        raise ValueError("evaluate_every: expected with evaluate, which is None")
    in_folder = {
        "resume": resume,
        "checkpoint_every": checkpoint_every,
        "best": best,
        "tensorboard": tensorboard,
    }
    if run_dir is None and (given := [name for name, value in in_folder.items() if value]):
        raise ValueError(f"{given[0]}: expected with run_dir, which is None")
    iterator = _iterator(data, positioned=run_dir is not None)
    batch_sharding = batch_sharding or getattr(step, "batch_shardings", None)
    folder, checkpoints, logged = None, None, 0

    with ExitStack() as stack:
        if run_dir is not None:
            folder = _open_run(Path(run_dir).absolute(), config, resume)
            checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", keep=keep, best=best))
            if checkpoints.steps:
                _, state, extras, _ = checkpoints.restore(state)
                iterator.set_state(extras["data"])  # pyright: ignore[reportAttributeAccessIssue]
                logged = extras["metrics_bytes"]
        first = int(state.step) + 1
        log = stack.enter_context(_Log(folder, logged, first, tensorboard))
        terminations = stack.enter_context(_Terminations(active=run_dir is not None))
        bar = stack.enter_context(_Bar(progress and jax.process_index() == 0, first - 1, steps))

        def require_finite(values: Mapping[str, np.ndarray], number: int) -> None:
            bad = [name for name, value in values.items() if not np.isfinite(value).all()]
            if not bad:
                return
            name = next((name for name in ("losses", "loss") if name in bad), bad[0])  # all else follows it
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(values[name]))[0])
            if checkpoints:
                checkpoints.wait()
            raise NonFiniteError(name, index or None, number, checkpoints.latest if checkpoints else None)

        def settle(number: int, metrics: Metrics, evaluates: bool = False) -> dict[str, np.ndarray]:
            """Fetches the metrics of a step, checks them, logs them, and shows them."""
            values = {name: np.asarray(value) for name, value in metrics.items()}
            require_finite(values, number)
            if evaluates and evaluate is not None:
                values |= {f"eval/{name}": np.asarray(value) for name, value in evaluate(state).items()}
                require_finite(values, number)
            if best and best[0] not in values and (evaluates or not best[0].startswith("eval/")):
                raise ValueError(f"best: no metric {best[0]!r} at step {number}, only {sorted(values)}")
            if number % log_every == 0 or number == steps or evaluates:
                log.write(number, values)
            bar.update(number, values, batch)
            return values

        pending = None
        for number in range(first, steps + 1):
            try:
                batch = next(iterator)
            except StopIteration:
                raise ValueError(f"data: ended before step {number}; steps is {steps}") from None
            if batch_sharding is not None:
                batch = global_batch(batch, batch_sharding)
            state, metrics = step(state, batch)
            if pending:
                settle(*pending)
            pending = number, metrics

            stops = terminations.reached(number)
            evaluates = evaluate is not None and _due(number, steps, evaluate_every)
            saves = checkpoints is not None and (stops or _due(number, steps, checkpoint_every))
            if not (evaluates or saves or number == steps):
                continue
            values = settle(number, metrics, evaluates)
            pending = None
            if checkpoints is not None and saves:
                if bad := [path for path, flag in jax.device_get(_non_finite(state)).items() if flag]:
                    checkpoints.wait()
                    raise NonFiniteError(bad[0], None, number, checkpoints.latest)
                position = iterator.get_state()  # pyright: ignore[reportAttributeAccessIssue]
                extras = {"data": position, "config": config, "metrics_bytes": log.sync()}
                scalars = {name: float(value) for name, value in values.items() if value.ndim == 0}
                checkpoints.save(number, state, extras=extras, metrics=scalars)
            if stops and checkpoints is not None:
                checkpoints.wait()
                raise SystemExit(0)
        if checkpoints is not None:
            checkpoints.wait()
        return FitResult(state, log.history, checkpoints.latest if checkpoints else None)


class _Log(AbstractContextManager["_Log"]):
    """The records of a run: in memory, and written to its folder by the first process."""

    def __init__(self, folder: Path | None, size: int, first: int, tensorboard: bool):
        self.history: list[Record] = []
        self._file, self._events = None, None
        self._last = first - 1, time.perf_counter()
        if folder is None:
            return
        path = folder / "metrics.jsonl"
        if size:
            kept = path.read_bytes()[:size] if path.is_file() else b""
            if len(kept) < size:
                raise ValueError(f"{path} lacks lines that the checkpoint knows of: the run is damaged")
            self.history = [json.loads(line) for line in kept.splitlines()]
        multihost_utils.sync_global_devices("jaxneg: metrics are read")
        if jax.process_index() == 0:
            self._file = path.open("ab")
            self._file.truncate(size)
            self._file.seek(size)
            self._events = _events(folder / "tensorboard", first) if tensorboard else None

    def write(self, number: int, values: Mapping[str, np.ndarray]) -> None:
        record = {"step": number} | {name: _plain(value) for name, value in values.items()}
        self.history.append(record)
        if self._file is not None:
            try:
                self._file.write(json.dumps(record).encode() + b"\n")
                self._file.flush()
            except OSError as error:
                reason = f"cannot write metrics: {error.strerror}"
                raise OSError(error.errno, reason, self._file.name) from error
        if self._events is not None:
            for name, value in values.items():
                for index, element in np.ndenumerate(value.astype(np.float64)):
                    self._events.add_scalar("/".join([name, *map(str, index)]), element, number)
            (before, then), self._last = self._last, (number, time.perf_counter())
            self._events.add_scalar("steps_per_second", (number - before) / (self._last[1] - then), number)

    def sync(self) -> int:
        """Puts what is written on disk; returns how many bytes that is."""
        if self._file is None:
            return 0
        os.fsync(self._file.fileno())
        return self._file.tell()

    def __exit__(self, *exception: object) -> None:
        if self._events is not None:
            self._events.close()
        if self._file is not None:
            with suppress(OSError):  # every line is flushed when it is written: what is left could not be
                self._file.close()


class _Terminations(AbstractContextManager["_Terminations"]):
    """Whether SIGTERM has come: to our handler, or to the preemption service of ``jax.distributed``."""

    def __init__(self, active: bool):
        distributed = jax.distributed.is_initialized()
        main = threading.current_thread() is threading.main_thread()
        self._serviced = active and distributed and jax.config.jax_enable_preemption_service  # pyright: ignore[reportAttributeAccessIssue]
        self._handles = active and not distributed and main
        self._came = False

    def __enter__(self) -> "_Terminations":
        if self._handles:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._handles:
            signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)

    def _note(self, number: int, frame: object) -> None:  # noqa: ARG002
        self._came = True

    def reached(self, step: int) -> bool:
        return multihost_utils.reached_preemption_sync_point(step) if self._serviced else self._came


class _Bar(AbstractContextManager["_Bar"]):
    """A progress bar in a terminal; elsewhere a line now and then."""

    def __init__(self, shown: bool, done: int, steps: int):
        self._console = Console(stderr=True, quiet=not shown)
        self._drawn = self._console.is_terminal or self._console.is_jupyter
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=self._console, disable=not (shown and self._drawn))
        self._task = self._bar.add_task("", total=steps, completed=done)
        self._interval = 0.25 if self._drawn else 30.0
        self._steps, self._last = steps, (done, time.perf_counter())

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def update(self, number: int, values: Mapping[str, np.ndarray], batch: Batch) -> None:
        seconds = time.perf_counter() - self._last[1]
        if seconds < self._interval and number < self._steps:
            return
        rate = (number - self._last[0]) / max(seconds, 1e-9)
        self._last = number, time.perf_counter()
        rows = next((len(leaf) for leaf in jax.tree.leaves(batch) if np.ndim(leaf)), 1)
        loss = np.ravel(values.get("loss", values.get("losses", ())))
        shown = f"loss {' '.join(f'{x:.4g}' for x in loss[:4])}{' ...' if loss.size > 4 else ''}"
        text = f"{shown}, {rate:.4g} steps/s, {rate * rows:.4g} examples/s"
        if self._drawn:
            self._bar.update(self._task, completed=number, description=text)
        else:
            self._console.print(f"step {number} of {self._steps}: {text}", highlight=False, soft_wrap=True)


def _open_run(folder: Path, config: Mapping[str, Any] | None, resume: bool) -> Path:
    """Makes the run's folder, or checks that it is this run's."""
    try:
        text = json.dumps(config, indent=2) + "\n"
    except TypeError as error:
        raise TypeError(f"config: expected JSON values: {error}") from error
    stored = folder / "config.json"
    found = sorted(path.name for path in folder.glob("[!.]*"))
    if foreign := [name for name in found if name not in OWN_FILES]:
        raise FileExistsError(f"run_dir {folder} holds {foreign[0]!r}, no part of a run: choose another")
    if found and not resume:
        raise FileExistsError(f"run_dir {folder} holds a run already: choose another, or set resume=True")
    if stored.is_file():
        _require_same_config(json.loads(stored.read_text()), json.loads(text), folder)
    multihost_utils.sync_global_devices("jaxneg: the run folder is checked")
    if jax.process_index() == 0 and not stored.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / ".config.json"
            partial.write_text(text)
            partial.rename(stored)
        except OSError as error:
            raise CheckpointError(f"cannot write into run_dir {folder}: {error}") from error
    return folder


def _require_same_config(stored: Any, given: Any, folder: Path) -> None:
    if stored == given:
        return
    old, new = (c if isinstance(c, dict) else {"config": c} for c in (stored, given))
    name = next(name for name in [*new, *old] if new.get(name, name) != old.get(name, name))
    now, was = (repr(c[name]) if name in c else "absent" for c in (new, old))
    raise ValueError(f"config: {name!r} is {now}, but {was} in the run at {folder}")


def _iterator(data: Any, positioned: bool) -> Iterator[Batch]:
    if isinstance(data, grain.MapDataset):
        data = data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    iterator = iter(data)
    if positioned and not (hasattr(iterator, "get_state") and hasattr(iterator, "set_state")):
        raise TypeError(
            "data: a run with run_dir saves its position: expected a grain data set or an iterator with "
            f"get_state and set_state, got {type(data).__name__}"
        )
    return iterator


def _require_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count}")


def _due(number: int, steps: int, every: int | None) -> bool:
    return number == steps or (every is not None and number % every == 0)


@jax.jit
def _non_finite(state: TrainState) -> dict[str, Array]:
    """For each array whether it holds a NaN or, if a parameter, an infinity: other state may by design."""

    def bad(path: tuple[Any, ...], leaf: Array) -> Array:
        wrong = ~jnp.isfinite(leaf) if path_name(path).startswith("params") else jnp.isnan(leaf)
        return jnp.any(wrong)

    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {path_name(p): bad(p, x) for p, x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)}


def _plain(value: np.ndarray) -> Any:
    """A JSON number or list of numbers; a float32 keeps its value exactly."""
    return (value.astype(np.float64) if jnp.issubdtype(value.dtype, jnp.floating) else value).tolist()


def _events(folder: Path, first: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard: needs tensorboardX: pip install 'jaxneg[experiments]'") from error
    return SummaryWriter(str(folder), purge_step=first)
