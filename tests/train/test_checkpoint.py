"""Checkpoints: round trip, other meshes, other models, what stays, and what is damaged."""

import functools
import json
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

from jaxneg.train import CheckpointError, Checkpoints, init_state, make_mesh, restore, shardings
from jaxneg.train.checkpoint import _digest

# orbax leaves its other reads of a damaged checkpoint to the garbage collector, which complains.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3), optax.ema(0.9))


def first_state(seed: int = 0):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "layers": [{"w": jax.random.normal(keys[0], (16, 8)), "b": jnp.ones(8, jnp.bfloat16)}],
        "head": jax.random.normal(keys[1], (8, 24)),
    }
    return init_state(params, TX, keys[2])


def words(leaf):
    array = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return str(leaf.dtype), np.asarray(array).tobytes()


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    assert jax.tree.map(words, tree) == jax.tree.map(words, other)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of the steps 1 and 2, of states 1 and 2."""
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, first_state(step), extras={"data": {"next": step}}, metrics={"loss": step})
    return tmp_path / "checkpoints"


def test_round_trip_of_named_tuples_keys_and_types(folder):
    restored = restore(folder, first_state())
    assert_same(restored.state, first_state(2))
    assert (restored.step, restored.extras, restored.metrics) == (2, {"data": {"next": 2}}, {"loss": 2.0})
    assert not restored.state.params["head"].committed
    assert_same(jax.random.normal(restored.state.key), jax.random.normal(first_state(2).key))
    assert_same(restore(folder, first_state(), step=1).state, first_state(1))


def test_every_kind_of_array(tmp_path, x64):
    state = {
        "bool": jnp.array([True, False]),
        "int8": jnp.arange(-3, 3, dtype=jnp.int8),
        "uint32": jnp.array([2**32 - 1], jnp.uint32),
        "float8": jnp.linspace(-1, 1, 5).astype(jnp.float8_e4m3fn),
        "float16": jnp.linspace(-1, 1, 5).astype(jnp.float16),
        "float64": jnp.array([[1 / 3, -0.0, jnp.inf]]),
        "complex": jnp.array([1 + 2j, 3j], jnp.complex64),
        "empty": jnp.zeros((0, 3)),
        "keys": jax.random.split(jax.random.key(0, impl="rbg"), (2, 2)),
        "numpy": np.arange(3.0),
        "none": None,
    }
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(0, state)
        assert_same(checkpoints.restore(state).state, state)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "model": 4}])
def test_restores_onto_another_mesh(tmp_path, axes, explicit):
    state = first_state(3)
    rules = [("head", P("data", "model"))]
    mesh = make_mesh({"data": 4, "model": 2}, explicit=not explicit)
    placed = jax.device_put(state, shardings(state, mesh, rules, fsdp="data", min_size=1))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(5, placed)
    other = shardings(state, make_mesh(axes, explicit=explicit), fsdp="data", min_size=1)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, other)
    restored = restore(tmp_path / "checkpoints", like).state
    assert_same(restored, state)
    assert jax.tree.map(lambda x: x.sharding, restored._replace(key=None)) == other._replace(key=None)
    assert restored.key.sharding.is_equivalent_to(other.key, 0)
    assert_same(restore(tmp_path / "checkpoints", state).state, state)


def test_a_state_without_shardings_goes_to_the_first_device(folder):
    like = jax.eval_shape(first_state)
    restored = restore(folder, like).state
    assert_same(restored, first_state(2))
    assert restored.params["head"].devices() == {jax.devices()[0]}


def test_the_state_may_be_donated_after_save(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def add(tree):
        return jax.tree.map(lambda x: x + 1, tree)

    state = {"a": jnp.zeros(2_000_000), "b": jnp.zeros(3)}
    with Checkpoints(tmp_path / "checkpoints", keep=9) as checkpoints:
        for step in range(1, 4):
            state = add(state)
            checkpoints.save(step, state)
            state = add(add(state))
        checkpoints.wait()
        for step in range(1, 4):
            read = checkpoints.restore(state, step=step).state
            np.testing.assert_array_equal(read["a"], 3 * step - 2)


def other_model(change):
    state = first_state()
    head, layers = state.params["head"], state.params["layers"]
    return {
        "missing": state._replace(params={"layers": layers}),
        "extra": state._replace(params=state.params | {"tail": head}),
        "shape": state._replace(params={"head": head[:, :5], "layers": layers}),
        "dtype": state._replace(params={"head": head.astype(jnp.bfloat16), "layers": layers}),
        "optimizer": state._replace(opt_state=optax.sgd(0.1, momentum=0.9).init(state.params)),
        "key": state._replace(key=jax.random.key(0, impl="rbg")),
    }[change]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"'params/head' is float32\[8, 24\] in the checkpoint and absent in the state"),
        ("extra", r"'params/tail' is absent in the checkpoint and float32\[8, 24\] in the state"),
        ("shape", r"'params/head' is float32\[8, 24\] in the checkpoint and float32\[8, 5\] in the state"),
        ("dtype", r"'params/head' is float32\[8, 24\] in the checkpoint and bfloat16\[8, 24\] in the state"),
        ("optimizer", r"'opt_state/0/trace/head' is absent in the checkpoint and float32\[8, 24\] in the"),
        ("key", r"'key' is key<fry>\[\] in the checkpoint and key<rbg>\[\] in the state"),
    ],
)
def test_a_checkpoint_of_another_model(folder, change, message):
    with pytest.raises(ValueError, match=r"checkpoints/2 is of another model: " + message):
        restore(folder, other_model(change))
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_keeps_the_newest_and_the_best(tmp_path):
    losses = {1: 5.0, 2: 1.0, 3: 4.0, 4: None, 5: 3.0, 6: 2.0}
    state = {"w": jnp.ones(3)}
    with Checkpoints(tmp_path, keep=2, best=("loss", "min")) as checkpoints:
        assert checkpoints.latest is checkpoints.best is None
        for step, loss in losses.items():
            checkpoints.save(step, state, metrics={} if loss is None else {"loss": loss})
        assert checkpoints.steps == [2, 5, 6]
        assert (checkpoints.latest, checkpoints.best) == (tmp_path / "6", tmp_path / "2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5", "6"]
    with Checkpoints(tmp_path, keep=1, best=("loss", "max")) as checkpoints:
        assert checkpoints.best == tmp_path / "5"
        checkpoints.save(7, state, metrics={"loss": 0.5})
        assert checkpoints.steps == [5, 7]
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(8, state)
        assert checkpoints.steps == [8]
        assert checkpoints.best is None


def test_what_an_interrupted_write_left_is_no_checkpoint_and_is_removed(folder):
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp")
    assert restore(folder, first_state()).step == 2
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(4, first_state())
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4"]


def arrays(step: Path) -> list[Path]:
    """The files that hold the arrays' values."""
    return [path for path in step.rglob("d/*") if path.is_file()]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "arrays flipped": lambda step: [flip(path) for path in arrays(step)],
    "arrays truncated": lambda step: [truncate(path) for path in arrays(step)],
    "arrays deleted": lambda step: [path.unlink() for path in arrays(step)],
    "array names truncated": lambda step: truncate(step / "state" / "_METADATA"),
    "array index truncated": lambda step: truncate(step / "state" / "manifest.ocdbt"),
    "state deleted": lambda step: shutil.rmtree(step / "state"),
    "record flipped": lambda step: flip(step / "record" / "metadata"),
    "record truncated": lambda step: truncate(step / "record" / "metadata"),
    "record deleted": lambda step: (step / "record" / "metadata").unlink(),
    "all deleted": lambda step: [shutil.rmtree(path) for path in step.iterdir() if path.is_dir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_newest_checkpoint(folder, damage):
    DAMAGE[damage](folder / "2")
    with pytest.warns(UserWarning, match=rf"{folder}/2 is damaged, and {folder}/1 is used instead: \S"):
        restored = restore(folder, first_state())
    assert_same(restored.state, first_state(1))
    assert (restored.step, restored.extras) == (1, {"data": {"next": 1}})
    assert (folder / "2").is_dir(), "reading changes nothing"

    with pytest.raises(CheckpointError, match=f"no checkpoint in {folder} can be read: {folder}/2: "):
        restore(folder, first_state(), step=2)
    with Checkpoints(folder, best=("loss", "min")) as checkpoints:
        with pytest.warns(UserWarning, match="is damaged"):
            checkpoints.restore(first_state())
        assert checkpoints.steps == [1]
        assert (folder / "2.corrupt").is_dir(), "a writer sets it aside, to write that step again"
        checkpoints.save(2, first_state(2), metrics={"loss": 0.0})
        assert_same(checkpoints.restore(first_state()).state, first_state(2))


def test_any_damaged_file_means_the_right_state_or_the_one_before(folder, tmp_path):
    files = sorted(path.relative_to(folder) for path in (folder / "2").rglob("*") if path.is_file())
    fallbacks = 0
    for number, file in enumerate(files):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(folder, copy)
        (flip if number % 2 else truncate)(copy / file) if (copy / file).stat().st_size else None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            restored = restore(copy, first_state())
        assert_same(restored.state, first_state(restored.step))
        assert restored.extras == {"data": {"next": restored.step}}
        assert len([w for w in caught if "is damaged" in str(w.message)]) == 2 - restored.step
        fallbacks += restored.step == 1
        with Checkpoints(copy, best=("loss", "min")) as checkpoints:
            assert checkpoints.steps == [1, 2]
    assert fallbacks >= 3


def test_the_digest_sees_what_the_file_format_does_not(tmp_path):
    """Random bits do not compress: the format stores them as they are, and reads others as gladly."""
    state = {"bits": jax.random.bits(jax.random.key(0), (50_000,))}
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state)
    flip(max(arrays(tmp_path / "2"), key=lambda path: path.stat().st_size))
    with pytest.warns(UserWarning, match="is used instead: bits: its digest differs"):
        assert restore(tmp_path, state).step == 1


def test_digest_is_the_same_on_every_mesh_and_changes_with_any_element():
    array = jax.random.normal(jax.random.key(0), (8, 6)).astype(jnp.bfloat16)
    mesh = make_mesh({"data": 4, "model": 2}, explicit=True)
    on_mesh = jax.device_put(array, jax.NamedSharding(mesh, P("data", "model")))
    digest = int(_digest({"a": array})["a"])
    assert int(_digest({"a": on_mesh})["a"]) == digest
    changed = [array.at[i, j].multiply(-1) for i in range(8) for j in range(6)]
    swapped = [array.T.reshape(8, 6), array[::-1], jnp.roll(array, 1, 1)]
    assert all(int(_digest({"a": other})["a"]) != digest for other in changed + swapped)


def test_all_checkpoints_damaged(folder):
    for step in ("1", "2"):
        DAMAGE["record truncated"](folder / step)
    with pytest.raises(CheckpointError, match=rf"no checkpoint in {folder} can be read: .*/2: .*/1: "):
        restore(folder, first_state())


def test_a_checkpoint_that_another_process_cannot_read(folder, monkeypatch):
    answers = iter([[True, True], [True, False], [True, True], [True, True]])
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda ours: np.array(next(answers)))
    with pytest.warns(UserWarning, match=r"/1 is used instead: another process cannot read it"):
        assert restore(folder, first_state()).step == 1


def test_damaged_twice(folder):
    for _ in range(2):
        with Checkpoints(folder) as checkpoints:
            if not (folder / "2").exists():
                checkpoints.save(2, first_state(2))
                checkpoints.wait()
            flip(folder / "2" / "record" / "metadata")
            with pytest.warns(UserWarning, match="is damaged"):
                checkpoints.restore(first_state())
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2.corrupt", "2.corrupt1"]


def test_bad_arguments(folder, tmp_path):
    with pytest.raises(ValueError, match="keep: expected at least 1, got 0"):
        Checkpoints(folder, keep=0)
    with pytest.raises(ValueError, match=r"best: expected \(metric, 'min'\) or \(metric, 'max'\), got"):
        Checkpoints(folder, best=("loss", "least"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        restore(tmp_path / "nothing", first_state())
    with pytest.raises(FileNotFoundError, match="holds no checkpoint of step 7"):
        restore(folder, first_state(), step=7)
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(ValueError, match=f"step: {folder} holds step 2 already, got 2"):
            checkpoints.save(2, first_state())
        with pytest.raises(TypeError, match="state: 'lr': expected an array, got float"):
            checkpoints.save(3, {"lr": 0.1})
        with pytest.raises(ValueError, match="state: two arrays have the path 'a/b'"):
            checkpoints.save(3, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})
        with pytest.raises(TypeError, match="extras: expected JSON values"):
            checkpoints.save(3, first_state(), extras={"data": object()})
    assert restore(folder, first_state()).step == 2
    assert json.loads((folder / "2" / "record" / "metadata").read_text())["crc32"] > 0


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=f"cannot open the folder {tmp_path}/file/checkpoints: "):
        Checkpoints(tmp_path / "file" / "checkpoints")
