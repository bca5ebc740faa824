"""Eight virtual CPU devices, a shared compilation cache, and the golden vectors."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Before jax is imported: these are read when its backend starts.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# The same examples in every run: a red run can be repeated, a green one stays green.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

GOLDENS = Path(os.environ.get("JAXNEG_GOLDENS", ROOT.parent / "shared" / "goldens"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test that takes ``golden`` once for each file that its marker's pattern finds."""
    if "golden" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("golden")
    assert marker is not None, f"{metafunc.definition.nodeid} takes `golden` but has no golden marker"
    system, pattern = marker.args
    folder = GOLDENS / system
    files = sorted(folder.glob(pattern))
    if not folder.is_dir():
        skip = pytest.mark.skip(reason=f"no golden vectors at {folder}: set JAXNEG_GOLDENS to their folder")
        metafunc.parametrize("golden", [pytest.param(None, marks=skip, id="absent")], indirect=True)
    else:
        assert files, f"no file matches {pattern} in {folder}"
        metafunc.parametrize("golden", files, ids=[file.stem for file in files], indirect=True)


@pytest.fixture(autouse=True, scope="module")
def _programs_go_with_their_module():
    """Each compiled program holds memory maps, of which Linux lets a process have 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    """The arrays of one golden file, by name."""
    with np.load(request.param, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture
def golden_folder():
    """``golden_folder(system)``: every golden file of a system, by stem, for tests that need several."""

    def load(system: str) -> dict[str, dict[str, np.ndarray]]:
        folder = GOLDENS / system
        if not folder.is_dir():
            pytest.skip(f"no golden vectors at {folder}: set JAXNEG_GOLDENS to their folder")
        files = {}
        for file in sorted(folder.glob("*.npz")):
            with np.load(file, allow_pickle=False) as arrays:
                files[file.stem] = dict(arrays)
        assert files, f"no golden vectors in {folder}"
        return files

    return load


@pytest.fixture
def x64():
    """Runs the test in float64."""
    with jax.enable_x64(True):
        yield
