"""The folder of one run: its config, metrics, finished stages, figures and report.

::

    runs/<experiment>/<time>/
      config.json       the experiment's name, the preset and the config
      metrics.jsonl     one line per `log`
      tensorboard/      the same as TensorBoard events
      checkpoints/      one npz per finished stage
      figures/          one png per figure, and captions.json
      report.json       what the run found; absent while it is unfinished

A run folder is never written twice: a new run makes a new folder, and only `RunDir.resume` opens an old
one, with the config that it was begun with.
"""

import json
import os
import re
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments.config import config_from_json, config_to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from tensorboardX import SummaryWriter

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 10.0
"""How often progress is printed where there is no terminal to draw a bar in."""


@dataclass
class Table:
    """A table of a run's results, as the terminal and the report show it."""

    title: str
    columns: list[str]
    rows: list[list[str | float | int]]

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: row {index}: expected {len(self.columns)} cells "
                    f"({', '.join(self.columns)}), got {len(row)}"
                )


@dataclass
class Outcome:
    """What an experiment's ``run`` returns."""

    measurements: dict[str, ArrayLike]
    """Claim name to one value per seed."""
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences that a reader of the results must know."""


class RunDir(AbstractContextManager["RunDir"]):
    """The folder of one run. Made by `RunDir.create` or `RunDir.resume`."""

    path: Path
    """The folder."""
    experiment: str
    """The experiment's name."""
    preset: str
    """The preset that the config began from."""
    config: Any
    """The experiment's config."""
    captions: dict[str, str]
    """Figure name to caption, in the order of drawing."""
    resumed: bool
    """Whether the run was begun by an earlier process."""

    def __init__(
        self, path: Path, experiment: str, preset: str, config: Any, *, resumed: bool = False
    ) -> None:
        self.path, self.experiment, self.preset, self.config = path, experiment, preset, config
        self.resumed = resumed
        self.captions = {}
        self._console = Console(stderr=True)
        self._bars: Progress | None = None
        self._events: SummaryWriter | None = None
        self._in_a_hurry: list[bool] = []  # what held outside, of each time that the run is entered
        for folder in ("checkpoints", "figures"):
            (path / folder).mkdir(exist_ok=True)

    @classmethod
    def create(
        cls,
        experiment: str,
        config: Any,
        *,
        preset: str = "",
        runs: Path | str = "runs",
        path: Path | None = None,
    ) -> Self:
        """A new run folder, ``runs/<experiment>/<time>`` unless ``path`` says otherwise.

        Args:
            experiment: the experiment's name.
            config: its config, a dataclass.
            preset: the preset that the config began from.
            runs: the folder of all runs.
            path: exactly this folder instead.

        Returns:
            The run folder, holding config.json.

        Raises:
            FileExistsError: ``path`` exists; a run is never overwritten.
        """
        if path is None:
            path = _new_folder(Path(runs) / experiment)
        else:
            try:
                path.mkdir(parents=True)
            except FileExistsError as error:
                raise FileExistsError(
                    f"run folder {path} exists already, and a run is never overwritten: choose another "
                    f"folder, or continue that run with --resume {path}"
                ) from error
        content = {"experiment": experiment, "preset": preset, "config": config_to_json(config)}
        write_json(path / "config.json", content)
        return cls(path, experiment, preset, config)

    @classmethod
    def resume(cls, path: Path | str, experiment: str, config_kind: type) -> Self:
        """An old run folder, to continue a run that died.

        Args:
            path: the folder.
            experiment: the experiment's name.
            config_kind: its config dataclass.

        Returns:
            The run folder, with the config that the run was begun with.

        Raises:
            FileNotFoundError: there is no run in the folder.
            FileExistsError: the run is finished.
            ValueError: the run is of another experiment, or its config has other fields.
        """
        path = Path(path)
        file = path / "config.json"
        if not file.is_file():
            raise FileNotFoundError(f"{path} holds no run to resume: there is no {file}")
        if (path / "report.json").exists():
            raise FileExistsError(
                f"the run in {path} is finished, and a run is never overwritten: begin a new one"
            )
        content = read_json(file)
        began = content.get("experiment") if isinstance(content, dict) else None
        if began is None or "config" not in content:
            raise ValueError(f"{file} is not the config.json of a run")
        if began != experiment:
            raise ValueError(
                f"{path} holds a run of {began!r}, not of {experiment!r}: resume it under its own name"
            )
        config = config_from_json(config_kind, content["config"], str(file))
        run_dir = cls(path, experiment, content.get("preset", ""), config, resumed=True)
        captions = path / "figures" / "captions.json"
        if captions.is_file():
            run_dir.captions = read_json(captions)
        return run_dir

    def figure(self, name: str, figure: "Figure", caption: str) -> Path:
        """Saves a matplotlib figure as ``figures/<name>.png`` and closes it.

        Args:
            name: the file's name without suffix.
            figure: the figure.
            caption: what it shows; the report prints it and reads it out to those who cannot see it.

        Returns:
            The file's path.
        """
        import matplotlib.pyplot as plt

        path = self.path / "figures" / f"{_file_name(name)}.png"
        figure.savefig(path, dpi=150, bbox_inches="tight")
        plt.close(figure)
        self.captions[name] = caption
        write_json(path.parent / "captions.json", self.captions)
        return path

    def log(self, step: int, **metrics: float) -> None:
        """Appends a line to metrics.jsonl and to the TensorBoard events.

        A resumed run logs the unfinished stage's steps again: the last line of a step counts.

        Args:
            step: the step that the metrics belong to.
            **metrics: numbers by name.
        """
        if self._events is None:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(self.path / "tensorboard"))
            _drop_partial_line(self.path / "metrics.jsonl")
        numbers = {name: float(value) for name, value in metrics.items()}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": int(step), **numbers}) + "\n")
        for name, value in numbers.items():
            self._events.add_scalar(name, value, int(step))

    def stage(self, name: str, compute: Callable[[], Mapping[str, ArrayLike]]) -> dict[str, np.ndarray]:
        """The result of a part of the run; a resumed run reads it instead of computing it again.

        It is kept in ``checkpoints/<name>.npz``, which appears whole or not at all. A file that
        cannot be read is computed anew, with a warning.

        Args:
            name: the stage's name, unique in the run.
            compute: makes the stage's arrays.

        Returns:
            The arrays by name.

        Raises:
            TypeError: an array that an npz file cannot hold without a pickle.
            OSError: the file cannot be written; the other stages are untouched.
        """
        file = self.path / "checkpoints" / f"{_file_name(name)}.npz"
        if file.is_file():
            try:
                with np.load(file, allow_pickle=False) as stored:
                    return dict(stored)
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                warnings.warn(
                    f"stage {name!r}: {file} cannot be read ({error}): it is computed anew", stacklevel=2
                )
        arrays = {key: np.asarray(value) for key, value in compute().items()}
        for key, array in arrays.items():
            if array.dtype.kind not in "biufcSU":
                raise TypeError(
                    f"stage {name!r}: array {key!r}: expected numbers, booleans or text, got {array.dtype}"
                )
        partial = file.with_name(f".{file.name}.partial")
        try:
            with partial.open("wb") as stream:
                np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType]
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)
        except OSError as error:
            raise OSError(
                error.errno, f"stage {name!r} cannot be kept: {error.strerror}", str(file)
            ) from error
        finally:
            partial.unlink(missing_ok=True)
        return arrays

    def progress(self, items: Iterable[T], description: str) -> Iterator[T]:
        """Iterates with a progress bar on standard error; where that is no terminal, with a few lines.

        Args:
            items: what to iterate over.
            description: what is being done.

        Yields:
            The items.
        """
        total = len(items) if hasattr(items, "__len__") else None  # pyright: ignore[reportArgumentType]
        shown = self._bar(items, description, total) if self._console.is_terminal else None
        yield from shown if shown is not None else self._lines(items, description, total)

    def close(self) -> None:
        """Ends the progress bars and flushes the TensorBoard events."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        if self._events is not None:
            self._events.close()
            self._events = None

    def __enter__(self) -> Self:
        """A smoke run's programs run for a moment only: jax compiles them without optimisations meanwhile."""
        if self.preset == "smoke":
            import jax

            self._in_a_hurry.append(jax.config.read("jax_disable_most_optimizations"))
            jax.config.update("jax_disable_most_optimizations", True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.preset == "smoke":
            import jax

            jax.config.update("jax_disable_most_optimizations", self._in_a_hurry.pop())
        self.close()

    def _bar(self, items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        bars = self._bars
        task = bars.add_task(description, total=total)
        try:
            for item in items:
                yield item
                bars.advance(task)
        finally:
            bars.remove_task(task)
            if not bars.tasks:
                bars.stop()
                self._bars = None

    def _lines(self, items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
        began = printed = time.monotonic()
        count = 0
        for item in items:
            yield item
            count += 1
            now = time.monotonic()
            if now - printed >= SECONDS_BETWEEN_LINES and count != total:
                printed = now
                of_total = "" if total is None else f" of {total}"
                self._line(f"{description}: {count}{of_total} in {now - began:.0f} s")
        self._line(f"{description}: {count} done in {time.monotonic() - began:.1f} s")

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def read_json(path: Path) -> Any:
    """What a JSON file of a run holds.

    Args:
        path: the file.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): the run folder is damaged") from error


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all.

    Args:
        path: the file.
        content: what it holds.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _new_folder(parent: Path) -> Path:
    """Makes a folder named after this second; mkdir is atomic, so that two runs never share one."""
    parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in range(1, 1000):
        path = parent / (now if number == 1 else f"{now}_{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{parent} holds a thousand runs of {now} already")


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"name: expected letters, digits, '-', '_' and '.', got {name!r}")
    return name


def _drop_partial_line(path: Path) -> None:
    """Cuts off the half line that a killed run may have left."""
    if path.is_file() and not path.read_bytes().endswith(b"\n"):
        whole = path.read_bytes().rpartition(b"\n")
        path.write_bytes(whole[0] + whole[1])
