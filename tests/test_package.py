"""The package as a whole: importing it is cheap, touches no device, and its rooms are reached by name."""

import subprocess
import sys

import pytest

import jaxneg

# Every room, after jax: what `import jaxneg` and its first uses cost beyond jax itself.
IMPORT = """
import time
import jax
began = time.perf_counter()
import jaxneg
seconds = time.perf_counter() - began
for room in {rooms}:
    getattr(jaxneg, room)
from jax._src import xla_bridge
assert not xla_bridge._backends, "importing started a jax backend"
print(seconds)
"""


def test_import_takes_under_a_second_beyond_jax_and_touches_no_device():
    rooms = [room for room in dir(jaxneg) if not room.startswith("_")]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT.format(rooms=rooms)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.0


def test_every_room_is_reached_by_name():
    for room in jaxneg.__all__:
        assert getattr(jaxneg, room).__name__ == f"jaxneg.{room}"


def test_unknown_room_says_which_rooms_there_are():
    with pytest.raises(AttributeError, match="'kitchen'; its rooms are contrastive, coulomb, diffusion"):
        _ = jaxneg.kitchen
