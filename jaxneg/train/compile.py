"""Ahead-of-time compilation of a step for chips that are not there.

XLA's TPU compiler runs without a TPU: ``jax.experimental.topologies`` with the ``libtpu`` wheel gives the
devices of a topology, for which a step is lowered and compiled as it would be on them. The report says what
the step needs from each chip, and a bound on its time by the roofline model (Williams et al. 2009,
doi:10.1145/1498765.1498785) with a third ceiling for the chip's links.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import PartitionSpec as P

from jaxneg.train.mesh import MIN_SIZE, Rules, make_mesh
from jaxneg.train.step import BATCH_SPEC, TrainState, shard_step

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Chip(NamedTuple):
    """What a chip can do.

    Attributes:
      name: Name in topologies.
      flops: Peak of bfloat16 matrix multiplication, 1/s.
      hbm: Memory, bytes.
      hbm_bandwidth: Bytes/s between chip and memory.
      ici_bandwidth: Bytes/s that all links of the chip carry in one direction.
    """

    name: str
    flops: float
    hbm: float
    hbm_bandwidth: float
    ici_bandwidth: float


# Google Cloud's "System architecture" pages (cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e), which give the
# links as 1600, 4800 and 3200 Gbit/s a chip; v4 has 6 links of 50 GB/s (Jouppi 2023, arXiv:2304.01433).
CHIPS = {
    "TPU v4": Chip("v4", 275e12, 32 * 2**30, 1200e9, 300e9),
    "TPU v5 lite": Chip("v5e", 197e12, 16 * 2**30, 819e9, 200e9),
    "TPU v5": Chip("v5p", 459e12, 95 * 2**30, 2765e9, 600e9),
    "TPU v6 lite": Chip("v6e", 918e12, 32 * 2**30, 1600e9, 400e9),
}
"""Chips by JAX's ``device_kind``."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A step and the shapes and shardings to compile it with: the arguments of :func:`shard_step`.

    Attributes:
      step: What :func:`make_step` made.
      state: The state's ``ShapeDtypeStruct``s, as ``jax.eval_shape`` gives them.
      batch: The batch's ``ShapeDtypeStruct``s.
      mesh: Mesh axes by name, one of which may be -1.
      rules: Partition rules of the parameters.
      fsdp: Mesh axis for the parameters that no rule decides.
      batch_spec: Partition of the batch's leading axes.
      min_size: Number of elements below which ``fsdp`` leaves an array replicated.
      explicit: Whether the mesh axes are explicit.
    """

    step: Callable
    state: TrainState
    batch: Any
    mesh: Mapping[str, int]
    rules: Rules = ()
    fsdp: str | None = "data"
    batch_spec: P = BATCH_SPEC
    min_size: int = MIN_SIZE
    explicit: bool = False


@dataclasses.dataclass(frozen=True)
class CompileReport:
    """What one step needs from each chip. ``str(report)`` is a table.

    Attributes:
      topology: The topology compiled for.
      chip: The chip's constants, or ``None`` for a device that is not in ``CHIPS``.
      mesh: Sizes of the mesh axes.
      flops: Floating-point operations: XLA's count, which counts the body of a loop once, and no less than an
        even share of the matrix multiplications of the whole program.
      hbm: Bytes of arguments, outputs that are not donated arguments, and temporaries.
      bytes_accessed: Bytes between chip and memory. XLA counts the body of a loop once.
      collectives: Bytes by kind of collective, see :func:`collective_bytes`.
      fits: Whether the compiler found room in the chip's memory; ``None`` without a known chip.
      notes: What to know about the figures.
    """

    topology: str
    chip: Chip | None
    mesh: dict[str, int]
    flops: float
    hbm: float = math.nan
    bytes_accessed: float = math.nan
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    fits: bool | None = None
    notes: tuple[str, ...] = ()

    @property
    def ceilings(self) -> dict[str, float]:
        """Seconds that each resource takes alone. A ring moves an all-reduce's bytes twice."""
        if self.chip is None:
            return {}
        crossing = sum(self.collectives.values()) + self.collectives.get("all-reduce", 0)
        seconds = {
            "compute": self.flops / self.chip.flops,
            "memory": self.bytes_accessed / self.chip.hbm_bandwidth,
            "links": crossing / self.chip.ici_bandwidth,
        }
        return {name: value for name, value in seconds.items() if value > 0}  # neither zero nor unknown

    @property
    def roofline_seconds(self) -> float | None:
        """A lower bound on the step's time: the slowest resource, all overlapping perfectly."""
        return max(self.ceilings.values(), default=None)

    def __str__(self) -> str:
        mesh = " x ".join(f"{name} {size}" for name, size in self.mesh.items())
        capacity = f" of {self.chip.hbm / 2**30:.4g} GiB" if self.chip else ""
        rows = [
            ("topology", f"{self.topology}, mesh {mesh}"),
            ("HBM per chip", f"{self.hbm / 2**30:.3f} GiB{capacity}"),
            ("FLOPs per chip", f"{self.flops:.4g}"),
            ("bytes per chip", f"{self.bytes_accessed:.4g}"),
            *((f"{kind} bytes", f"{size:.4g}") for kind, size in self.collectives.items() if size),
            *((f"{name} time", f"{seconds * 1e3:.4g} ms") for name, seconds in self.ceilings.items()),
        ]
        if self.roofline_seconds is not None:
            rows.append(("roofline time", f"{self.roofline_seconds * 1e3:.4g} ms at the least"))
        rows.append(("fits", {True: "yes", False: "no", None: "unknown"}[self.fits]))
        rows += [("note", note) for note in self.notes]
        return "\n".join(f"{name:<24} {value}" for name, value in rows)


def compile_for(target: Target, topology: str = "v5e:16x16") -> CompileReport:
    """Compiles a step ahead of time and reports what it needs from each chip.

    ``time >= max(FLOPs / peak, bytes / HBM bandwidth, collective bytes / ICI bandwidth)``

    Args:
      target: The step, its shapes and its shardings.
      topology: Chip and shape, as ``"v5e:16x16"``; ``"local"`` compiles for the devices that are present.

    Returns:
      The report. A step that does not fit has ``fits = False``.

    Raises:
      ModuleNotFoundError: If libtpu is not installed.
      ValueError: If the topology does not exist, or the mesh or a sharding does not fit it.

    Source:
      Williams et al. 2009, doi:10.1145/1498765.1498785, Section 2.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxneg.train import Target, compile_for, init_state, make_step
      >>> step = make_step(lambda w, x, key: (jnp.mean((x @ w) ** 2), {}), tx := optax.sgd(0.1))
      >>> state = jax.eval_shape(lambda key: init_state(jnp.ones(3), tx, key), jax.random.key(0))
      >>> batch = jax.ShapeDtypeStruct((8, 3), jnp.float32)
      >>> compile_for(Target(step, state, batch, {"data": -1}), "local").flops > 0
      True
    """
    devices = jax.devices() if topology == "local" else _topology_devices(topology)
    mesh = make_mesh(target.mesh, devices=devices, explicit=target.explicit)
    sharded = shard_step(
        target.step,
        mesh,
        target.state,
        target.batch,
        rules=target.rules,
        fsdp=target.fsdp,
        batch_spec=target.batch_spec,
        min_size=target.min_size,
    )
    traced = sharded.trace(target.state, target.batch)
    chip = CHIPS.get(devices[0].device_kind)
    report = CompileReport(topology, chip, dict(mesh.shape), flops=matmul_flops(traced.jaxpr) / mesh.size)
    try:
        with jax.set_mesh(mesh), _uncached():
            compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed = re.search(r"\(([\d.]+)G\) exceeds", str(error))
        hbm = float(needed[1]) * 2**30 if needed else math.nan
        return dataclasses.replace(report, hbm=hbm, fits=False, notes=(str(error).splitlines()[0],))

    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    notes = []
    try:
        text = compiled.as_text() or ""
    except jax.errors.JaxRuntimeError as error:  # some programs XLA compiles and cannot print
        text = ""
        notes.append(f"collectives unknown, XLA does not print the program: {str(error).splitlines()[0]}")
    hbm = memory.argument_size_in_bytes + memory.output_size_in_bytes
    hbm += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    collectives, unknown_loops = _collectives(text)
    if " while(" in text:
        notes.append("memory time is a lower bound: XLA counts the bytes of a loop's body once")
    if unknown_loops:
        notes.append(f"collectives in {unknown_loops} loops of unknown length are counted once")
    return dataclasses.replace(
        report,
        hbm=hbm,
        flops=max(cost.get("flops", 0.0), report.flops),
        bytes_accessed=cost.get("bytes accessed", math.nan),
        collectives=_by_kind(collectives),
        fits=hbm <= chip.hbm if chip else None,
        notes=tuple(notes),
    )


def collective_bytes(hlo_text: str) -> dict[str, int]:
    r"""Bytes that a compiled program's collectives carry, for each device, by kind.

    An operation counts with the larger of its operands and its results: an all-gather with what it gathers, a
    reduce-scatter with what it reduces. In a loop it counts as often as the loop runs, if that can be read.

    Args:
      hlo_text: Optimized HLO, as ``compiled.as_text()`` gives it.

    Returns:
      Bytes by kind: all-reduce, all-gather, reduce-scatter, all-to-all, collective-permute.

    Example:
      >>> from jaxneg.train import collective_bytes
      >>> text = "ENTRY %main () -> f32[4] {\n  %r = f32[4]{0} all-reduce(%x), to_apply=%add\n}"
      >>> collective_bytes(text)["all-reduce"]
      16
    """
    return _by_kind(_collectives(hlo_text)[0])


class Collective(NamedTuple):
    """A collective operation of a program: its kind, the bytes it carries once, and how often it runs."""

    kind: str
    size: int
    times: int


def _by_kind(collectives: list[Collective]) -> dict[str, int]:
    return {kind: sum(c.size * c.times for c in collectives if c.kind == kind) for kind in KINDS}


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)\)?|\S+) ([\w\-]+)\((.*)$")
_CALLS = re.compile(
    r"(?:calls|to_apply|body|called_computations|\w+_computations?)=\{?((?:%?[\w.\-]+(?:, )?)+)"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+)(\d*)\w*\[([\d,]*)\]")  # bf16[2,3], f8e4m3fn[4], token[]
_KIND = re.compile(rf"^({'|'.join(KINDS)})(-start)?$")


def _collectives(hlo_text: str) -> tuple[list[Collective], int]:
    """The collectives that a program runs, and the number of its loops whose length is unknown."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo_text.splitlines():
        if header := _COMPUTATION.match(line):
            name = header[2]
            entry = name if header[1] else entry
            computations[name] = []
        elif name:
            computations[name].append(line)

    found: list[Collective] = []
    channels: set[tuple[str, str]] = set()
    unknown_loops = 0

    def visit(name: str, times: int) -> None:
        nonlocal unknown_loops
        sizes: dict[str, int] = {}
        for line in computations.get(name, ()):
            if not (instruction := _INSTRUCTION.match(line)):
                continue
            result, shape, op, rest = instruction.groups()
            kind = _KIND.match(op)
            # The tuple of an asynchronous start also holds scalars that identify the transfer.
            sizes[result] = _bytes(re.sub(r"\b[us]32\[\]", "", shape) if op.endswith("-start") else shape)
            if kind:
                operands = sum(sizes.get(x, 0) for x in re.findall(r"%([\w.\-]+)", rest.split(")")[0]))
                size = max(operands, sizes[result] - operands if kind[2] else sizes[result])
                # A TPU program repeats an asynchronous collective in the fusions that it overlaps with.
                channel = re.search(r"channel_id=(\d+)", rest)
                if channel is None or (kind[1], channel[1]) not in channels:
                    # A TPU program writes a reduce-scatter as a fusion of this name around an all-reduce.
                    scatters = name.startswith("all-reduce-scatter")
                    found.append(Collective("reduce-scatter" if scatters else kind[1], size, times))
                if channel:
                    channels.add((kind[1], channel[1]))
            if op == "while":
                length = _loop_length(rest, computations)
                unknown_loops += length is None
                visit(re.search(r"body=%?([\w.\-]+)", rest)[1], times * (length or 1))  # pyright: ignore
            elif not op.endswith(("-done", "-update")):
                for called in _CALLS.findall(rest):
                    for callee in re.findall(r"[\w.\-]+", called):
                        visit(callee, times)

    visit(entry, 1)
    return found, unknown_loops


def _loop_length(attributes: str, computations: dict[str, list[str]]) -> int | None:
    """How often a loop runs that states it, or that counts from 0 by a constant up to a constant."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', attributes):
        return int(known[1])
    condition, body = (
        "\n".join(computations.get(re.search(rf"{part}=%?([\w.\-]+)", attributes)[1], ()))  # pyright: ignore
        for part in ("condition", "body")
    )

    def constant(text: str, name: str) -> int | None:
        found = re.search(rf"%{re.escape(name)} = [us]32\[\]\S* constant\((\d+)\)", text)
        return int(found[1]) if found else None

    compared = re.search(r"ROOT .* compare\(%([\w.\-]+), %([\w.\-]+)\), direction=LT", condition)
    limit = constant(condition, compared[2]) if compared else None
    if compared is None or limit is None:
        return None
    index = re.search(rf"%{re.escape(compared[1])} = .*index=(\d+)", condition)
    results = re.search(r"ROOT .* tuple\((.*?)\)", body)
    if index is None or results is None:
        return None
    counter = re.findall(r"%([\w.\-]+)", results[1])[int(index[1])]
    added = re.search(rf"%{re.escape(counter)} = \S+ add\(%[\w.\-]+, %([\w.\-]+)\)", body)
    step = constant(body, added[1]) if added else None
    return -(-limit // step) if step else None


def _bytes(shape: str) -> int:
    total = 0
    for kind, bits, dims in _ARRAY.findall(shape):
        width = 8 if kind == "pred" else int(bits or 0)
        total += math.prod(int(d) for d in dims.split(",") if d) * width // 8
    return total


def matmul_flops(jaxpr: Any) -> int:
    """Floating-point operations of a program's matrix products and convolutions, loops counted in full.

    Args:
      jaxpr: The program, before it is partitioned. Of a ``while`` loop one turn counts, of a ``cond`` the
        dearest branch.

    Returns:
      Twice the number of multiplications.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.train.compile import matmul_flops
      >>> matmul_flops(jax.make_jaxpr(jnp.dot)(jnp.ones((2, 3)), jnp.ones((3, 4))))
      48
    """
    total = 0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            kernel, out_features = eqn.invars[1].aval.shape, params["dimension_numbers"].rhs_spec[0]
            total += 2 * math.prod(kernel) // kernel[out_features] * math.prod(eqn.outvars[0].aval.shape)
        else:
            leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr))
            inner = [matmul_flops(leaf) for leaf in leaves if isinstance(leaf, Jaxpr | ClosedJaxpr)]
            times = {"scan": params.get("length"), "shard_map": getattr(params.get("mesh"), "size", 1)}
            total += (max(inner) if name == "cond" else sum(inner)) * times.get(name, 1)
    return total


def _topology_devices(topology: str) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            f"Compiling for {topology!r} needs libtpu, the TPU compiler: pip install 'jaxneg[tpu]'"
        )
    with _quiet_libtpu():
        try:
            # By default each of the two cores of a v4 chip is a device.
            options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
            return list(topologies.get_topology_desc(topology, "tpu", **options).devices)
        except jax.errors.JaxRuntimeError as error:
            known = ", ".join(chip.name for chip in CHIPS.values())
            raise ValueError(
                f"topology: expected 'local' or a chip ({known}) and a shape that its hosts divide, as "
                f"'v5e:16x16'; got {topology!r}. libtpu says: {error}"
            ) from error


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Writes nothing to the compilation cache: a program for absent devices cannot be read back from it."""
    option = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, option)
    jax.config.update(option, math.inf)
    try:
        yield
    finally:
        jax.config.update(option, before)


@contextlib.contextmanager
def _quiet_libtpu() -> Iterator[None]:
    """Tells libtpu, where there is no TPU, not to search for one, and that other processes may load it."""
    wanted = {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-256",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
    }
    added = {} if jax.default_backend() == "tpu" else {k: v for k, v in wanted.items() if k not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
