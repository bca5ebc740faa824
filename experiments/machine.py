"""What a result was measured on: the processor, the memory, the devices and the versions."""

import os
import platform
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "jaxneg",
    "jax",
    "jaxlib",
    "libtpu",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "optimistix",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "bm25s",
    "torch",
    "torchjd",
    "cvxpy",
)
"""The packages whose versions can change a result."""


def machine_description() -> dict[str, str]:
    """The machine in words, without names or addresses.

    Returns:
        The processor, its cores, memory, devices, threads, the system, and the date.
    """
    described = {
        "processor": _processor(),
        "cores": str(_cores()),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    if "jax" in sys.modules:
        import jax

        described["devices"] = (
            f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})"
        )
    if "torch" in sys.modules:
        described["torch threads"] = str(sys.modules["torch"].get_num_threads())
    for variable in ("XLA_FLAGS", "OMP_NUM_THREADS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION"):
        if os.environ.get(variable):
            described[variable] = os.environ[variable].strip()
    return described


def package_versions() -> dict[str, str]:
    """The installed versions of the packages that can change a result."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return "unknown"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
