"""Checkpoints: written while training goes on, verified when they are read, restored onto any mesh.

orbax writes each checkpoint into a temporary folder that it renames when all is there, so that a kill at
any moment leaves a whole checkpoint or none. The arrays lie in a flat dict under their paths
(``"params/w"``), typed random keys as their words, next to a JSON record: shapes and types, the caller's
extras (position in the data, config), and a digest of every array. The digest is a position-weighted sum of
an array's bits modulo 2^32, computed on the devices before the write. It is the same on every mesh, and its
weights are odd, so that any one changed word changes it. What is read back must reproduce it: this catches
flipped bits that the file format, whose values carry no checksum, would hand over as parameters.
"""

import itertools
import json
import math
import warnings
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, UInt32

from jaxneg.train.mesh import path_name


class CheckpointError(OSError):
    """A checkpoint could not be written, or none could be read."""


class Restored(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      step: The step at which it was saved.
      state: The state, on the devices of the state that it was restored like.
      extras: The JSON values that were saved with it.
      metrics: The metrics that were saved with it.
    """

    step: int
    state: Any
    extras: dict[str, Any]
    metrics: dict[str, float]


class Checkpoints(AbstractContextManager["Checkpoints"]):
    """A folder of checkpoints, open for writing; every process of a run opens it and saves.

    Args:
      folder: Where the checkpoints are; made if it does not exist. What an interrupted write left is removed.
      keep: How many of the newest checkpoints stay.
      best: ``(metric, "min")`` or ``(metric, "max")``: the best by this metric stays too.

    Raises:
      ValueError: If ``keep`` is below 1 or the mode is not one of the two.
      CheckpointError: If the folder cannot be made.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
      ...     checkpoints.save(7, {"w": jnp.ones(3)}, extras={"epoch": 2})
      ...     checkpoints.restore({"w": jnp.zeros(3)}).extras
      {'epoch': 2}
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        keep: int = 2,
        best: tuple[str, Literal["min", "max"]] | None = None,
    ):
        if keep < 1:
            raise ValueError(f"keep: expected at least 1, got {keep}")
        if best is not None and (len(best) != 2 or best[1] not in ("min", "max")):
            raise ValueError(f"best: expected (metric, 'min') or (metric, 'max'), got {best!r}")
        self.folder = Path(folder).absolute()
        self._keep, self._best = keep, best
        self._scores: dict[int, float] = {}
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,
            preservation_policy=self,  # pyright: ignore[reportArgumentType]
            # Else, where a folder cannot be made, orbax's threads wait minutes for it, and the exit for them.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise CheckpointError(f"cannot open the folder {self.folder}: {_brief(error)}") from error
        for step in self.steps if best else []:
            try:
                self._score(step, _read_record(self.folder / str(step))["metrics"])
            except Exception:
                continue  # a damaged checkpoint is no candidate for the best

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, oldest first; one that is being written counts."""
        return sorted(self._manager.all_steps())

    @property
    def latest(self) -> Path | None:
        """The folder of the newest checkpoint."""
        return self.folder / str(self.steps[-1]) if self.steps else None

    @property
    def best(self) -> Path | None:
        """The folder of the best checkpoint by the metric of ``best``."""
        return self.folder / str(step) if (step := self._best_step(self.steps)) is not None else None

    def save(
        self,
        step: int,
        state: Any,
        *,
        extras: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Begins to write a checkpoint, after the one before is on disk.

        The state is copied first, so that it may be donated as soon as this returns.

        Args:
          step: The step, larger than that of the newest checkpoint.
          state: A tree of arrays; typed random keys among them.
          extras: JSON values to keep with it.
          metrics: Metrics to keep with it.

        Raises:
          ValueError: If the step is not new.
          TypeError: If a leaf is not an array, or the extras are not JSON.
          CheckpointError: If this or the previous checkpoint cannot be written.
        """
        if self.steps and step <= self.steps[-1]:
            raise ValueError(f"step: {self.folder} holds step {self.steps[-1]} already, got {step}")
        arrays = _written(state)
        record = {
            "step": step,
            "leaves": _signature(state),
            "digest": jax.tree.map(int, jax.device_get(_digest(arrays))),
            "extras": dict(extras or {}),
            "metrics": {name: float(value) for name, value in (metrics or {}).items()},
        }
        try:
            text = json.dumps(record)
        except TypeError as error:
            raise TypeError(f"extras: expected JSON values: {error}") from error
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            record=ocp.args.JsonSave({"record": text, "crc32": zlib.crc32(text.encode())}),
        )
        self.wait()
        self._score(step, record["metrics"])
        try:
            self._manager.save(step, args=args, force=True)
        except Exception as error:
            raise self._failed(error) from error

    def restore(self, like: Any, *, step: int | None = None) -> Restored:
        """As :func:`restore`, and newer checkpoints that are damaged are set aside as ``<step>.corrupt``."""
        self.wait()
        restored = restore(self.folder, like, step=step)
        if step is None:
            for newer in [s for s in self.steps if s > restored.step]:
                if jax.process_index() == 0:
                    names = (f"{newer}.corrupt{number or ''}" for number in itertools.count())
                    aside = next(self.folder / name for name in names if not (self.folder / name).exists())
                    (self.folder / str(newer)).rename(aside)
                self._scores.pop(newer, None)
            multihost_utils.sync_global_devices("jaxneg: damaged checkpoints are set aside")
            self._manager.reload()
        return restored

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
          CheckpointError: If it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Waits, and ends the writer's threads."""
        try:
            self._manager.close()
        except Exception as error:
            raise self._failed(error) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            if not isinstance(error, CheckpointError):
                error.add_note(str(failure))

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:  # noqa: ARG002
        """Answers orbax which checkpoints stay: the newest, and the best."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self._keep :], self._best_step(steps)}
        return [step in kept for step in steps]

    def _score(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._best is not None and self._best[0] in metrics:
            self._scores[step] = metrics[self._best[0]]

    def _best_step(self, steps: list[int]) -> int | None:
        scored = [step for step in steps if step in self._scores]
        if self._best is None or not scored:
            return None
        return (min if self._best[1] == "min" else max)(scored, key=lambda step: self._scores[step])

    def _failed(self, error: Exception) -> CheckpointError:
        whole = ocp.path.step.checkpoint_steps(self.folder) if self.folder.is_dir() else []
        last = f"the last good one is {self.folder / str(max(whole))}" if whole else "there is none yet"
        return CheckpointError(f"cannot write a checkpoint into {self.folder}: {_brief(error)}; {last}")


def restore(folder: Path | str, like: Any, *, step: int | None = None) -> Restored:
    """Reads the newest checkpoint that is whole, onto the devices of a given state.

    Args:
      folder: A folder of checkpoints.
      like: A state of the same paths, shapes and types: arrays, or ``ShapeDtypeStruct``s with shardings. The
        result lies where its arrays lie, on whatever mesh the checkpoint was written.
      step: The step of a particular checkpoint instead.

    Returns:
      What the checkpoint holds.

    Raises:
      FileNotFoundError: If there is no checkpoint, or not that of ``step``.
      ValueError: If the checkpoint is of another model. The message names the first path that differs.
      CheckpointError: If all checkpoints, or that of ``step``, are damaged. A damaged newest one brings a
        warning that names it and the older one that is used.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with Checkpoints(folder) as checkpoints:
      ...         checkpoints.save(7, {"w": jnp.ones(3)})
      ...     restore(folder, {"w": jnp.zeros(3)}).state["w"].tolist()
      [1.0, 1.0, 1.0]
    """
    folder = Path(folder).absolute()
    steps = sorted(ocp.path.step.checkpoint_steps(folder), reverse=True)
    if step is not None:
        steps = [s for s in steps if s == step]
    if not steps:
        raise FileNotFoundError(f"{folder} holds no checkpoint{'' if step is None else f' of step {step}'}")
    damage: dict[int, str] = {}
    for candidate in steps:
        checkpoint = folder / str(candidate)
        record, reason = _everywhere(lambda path=checkpoint: _read_record(path))
        if record is not None:
            _require_same(record["leaves"], _signature(like), checkpoint)
            state, reason = _everywhere(lambda path=checkpoint: _read_state(path, like))
            if state is not None and (reason := _changed(state, record["digest"])) is None:
                for bad, why in damage.items():
                    warnings.warn(
                        f"checkpoint {folder / str(bad)} is damaged, and {checkpoint} is used instead: {why}",
                        stacklevel=2,
                    )
                return Restored(candidate, state, record["extras"], record["metrics"])
        damage[candidate] = reason or "another process cannot read it"
    found = "; ".join(f"{folder / str(bad)}: {why}" for bad, why in damage.items())
    raise CheckpointError(f"no checkpoint in {folder} can be read: {found}")


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(f"state: {name!r}: expected an array, got {type(leaf).__name__}")
        if name in leaves:
            raise ValueError(f"state: two arrays have the path {name!r}")
        leaves[name] = leaf
    return leaves


def _signature(tree: Any) -> dict[str, str]:
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in _named_leaves(tree).items()}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _words(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _written(tree: Any) -> dict[str, Any]:
    """The arrays as they are written: typed keys as words, without empty ones, which orbax refuses."""
    return {path: _words(leaf) for path, leaf in _named_leaves(tree).items() if leaf.size}


@jax.jit
def _digest(arrays: dict[str, Array]) -> dict[str, UInt32[Array, ""]]:
    """For each array, the sum over elements i of bits(i) * weight(i) modulo 2^32, weights odd."""

    def digest(array: Array) -> Array:
        if jnp.iscomplexobj(array):
            return digest(array.real) + 3 * digest(array.imag)
        if array.dtype == jnp.bool_ or array.dtype.name in ("int2", "int4", "uint2", "uint4"):
            bits = array.astype(jnp.uint32)
        else:
            width = min(array.dtype.itemsize, 4)
            bits = jax.lax.bitcast_convert_type(array, f"uint{8 * width}").astype(jnp.uint32)
        weight = jnp.zeros((), jnp.uint32)
        for axis, size in enumerate(bits.shape):
            stride = math.prod(bits.shape[axis + 1 :]) % 2**32
            index = jnp.arange(size, dtype=jnp.uint32) * jnp.uint32(stride)
            weight = weight + jnp.expand_dims(index, [i for i in range(bits.ndim) if i != axis])
        return jnp.sum(bits * (weight * jnp.uint32(0x9E3779B1) * 2 + 1), dtype=jnp.uint32)

    return {path: digest(array) for path, array in arrays.items()}


def _changed(state: Any, digest: Mapping[str, int]) -> str | None:
    found = jax.device_get(_digest(_written(state)))
    return next((f"{path}: its digest differs" for path in digest if int(found[path]) != digest[path]), None)


def _read_record(checkpoint: Path) -> dict[str, Any]:
    content = ocp.JsonCheckpointHandler().restore(epath.Path(checkpoint / "record"))
    if zlib.crc32(content["record"].encode()) != content["crc32"]:
        raise ValueError("the record's checksum differs")
    return json.loads(content["record"])


def _read_state(checkpoint: Path, like: Any) -> Any:
    def target(leaf: Any) -> jax.ShapeDtypeStruct:
        words = jax.eval_shape(_words, leaf)
        sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=sharding)

    leaves = _named_leaves(like)
    targets = {path: target(leaf) for path, leaf in leaves.items()}
    written = {path: words for path, words in targets.items() if words.size}
    with closing(ocp.StandardCheckpointHandler()) as handler:
        arrays = handler.restore(epath.Path(checkpoint / "state"), args=ocp.args.StandardRestore(written))

    def restored(path: str, leaf: Any) -> Array:
        words = targets[path]
        array = arrays[path] if words.size else jnp.zeros(words.shape, words.dtype, device=words.sharding)
        if not getattr(leaf, "committed", getattr(leaf, "sharding", None) is not None):
            array = jnp.asarray(
                np.asarray(array)
            )  # uncommitted too: goes wherever a jitted function wants it
        return jax.random.wrap_key_data(array, impl=_key_impl(leaf)) if _is_key(leaf) else array

    return jax.tree.unflatten(jax.tree.structure(like), [restored(*named) for named in leaves.items()])


def _key_impl(key: Any) -> Any:
    names: list[Any] = []
    jax.eval_shape(lambda k: names.append(jax.random.key_impl(k)), key)
    return names[0]


def _everywhere(read: Any) -> tuple[Any, str | None]:
    """What ``read`` returns if it succeeds in every process, else None and why it failed in this one."""
    value, reason = None, None
    try:
        value = read()
    except Exception as error:  # orbax, tensorstore and json raise all kinds for damaged files
        reason = _brief(error)
    whole = multihost_utils.process_allgather(np.array(reason is None)).all()
    return (value if whole else None), reason


def _require_same(saved: Mapping[str, str], expected: Mapping[str, str], checkpoint: Path) -> None:
    for path in [*expected, *(path for path in saved if path not in expected)]:
        if saved.get(path) != expected.get(path):
            raise ValueError(
                f"checkpoint {checkpoint} is of another model: {path!r} is {saved.get(path, 'absent')} in "
                f"the checkpoint and {expected.get(path, 'absent')} in the state"
            )


def _brief(error: BaseException) -> str:
    """An error's first line. In tensorstore's long ones the reason comes last, before a specification."""
    line = (str(error).strip().splitlines() or [""])[0].split(" [tensorstore_spec")[0]
    return f"{type(error).__name__}: {line if len(line) < 400 else f'{line[:200]} ... {line[-200:]}'}"
