"""The benchmark of whole train steps: what it refuses, what it remembers, and one round beside LibMTL."""

import sys
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import multitask_step
from jaxneg.mtl import gradnorm_loss, multitask

TINY = multitask_step.Setting(tasks=3, width=2, batch=4)


def test_absent_peers_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"measures against LibMTL .*torch.* pip install --no-deps LibMTL"):
        multitask_step.run()
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    monkeypatch.setitem(sys.modules, "LibMTL", None)
    with pytest.raises(ImportError, match=r"\(No module named 'LibMTL'\); pip install 'jaxneg\[bench\]'"):
        multitask_step.run()


def test_every_method_has_a_step_of_ours():
    params = {"encoder": {"w": jnp.zeros(4)}, "heads": {"00": jnp.zeros(2), "01": jnp.zeros(2)}}
    for method in multitask_step.METHODS:
        _, first_state = multitask_step.our_step(method, TINY._replace(tasks=2))
        assert int(first_state(params).step) == 0


def test_the_third_epoch_begins():
    tasks, losses = 3, jnp.array([1.0, 2.0, 3.0])
    older, newer = multitask_step.remembered_losses(tasks).T
    params = {"encoder": {"w": jnp.zeros(4)}, "heads": {"00": jnp.zeros(2)}}
    options = multitask_step.METHODS["dwa"].options
    _, first_state = multitask_step.our_step("dwa", TINY)
    weights, _ = multitask("dwa", n_tasks=tasks, **options).update(
        {}, first_state(params).opt_state[0], losses=losses, pullback=lambda w: w
    )
    expected = np.exp(newer / older / 2)
    np.testing.assert_allclose(weights, tasks * expected / expected.sum(), rtol=1e-5)

    _, first_state = multitask_step.our_step("gradnorm", TINY)
    state = first_state(params).opt_state[0]
    J = {"encoder": {"w": jnp.diag(jnp.array([1.0, 2.0, 3.0]))}, "heads": {"00": jnp.ones((tasks, 2))}}
    options = multitask_step.METHODS["gradnorm"].options
    link = multitask("gradnorm", n_tasks=tasks, shared=lambda path: path.startswith("encoder"), **options)
    _, moved = link.update(J, state, losses=losses)
    slope = jax.grad(gradnorm_loss)(jnp.ones(tasks), jnp.array([1.0, 2.0, 3.0]), losses, older)
    # Adam's first step goes against the derivative's sign.
    change = np.asarray(moved.method.learned.s - state.method.learned.s)
    np.testing.assert_allclose(change, -multitask_step.LEARNING_RATE * np.sign(slope), rtol=1e-2)


@pytest.mark.slow
def test_our_step_learns():
    batch = jax.tree.map(jnp.asarray, multitask_step.batch_of(TINY))
    step, first_state = multitask_step.our_step("equal", TINY)
    state, step = first_state(multitask_step.our_params(TINY)), jax.jit(step)
    state, first = step(state, batch)
    # Heads that start at zero know nothing.
    np.testing.assert_allclose(first["losses"], np.log(multitask_step.CLASSES), rtol=1e-5)
    for _ in range(5):
        state, latest = step(state, batch)
    assert np.all(latest["losses"] < first["losses"])


@pytest.mark.slow
def test_one_round_beside_the_peer(monkeypatch):
    pytest.importorskip("torch")
    try:
        multitask_step._peers()
    except ImportError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(multitask_step, "machine_peaks", lambda: {
        "matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10
    })  # fmt: skip
    chosen = {name: multitask_step.METHODS[name] for name in ("dwa", "cagrad", "graddrop")}
    monkeypatch.setattr(multitask_step, "METHODS", chosen)
    measured = multitask_step._times(TINY, 2)
    assert set(measured) == set(chosen)
    for method, row in measured.items():
        assert ("direction_apart" in row) == (multitask_step.METHODS[method].tolerance is not None)
        assert row["ours_seconds"] > row["roofline_seconds"] > 0
    # LibMTL's CAGrad takes three tasks.
    monkeypatch.setattr(multitask_step, "METHODS", {"cagrad": chosen["cagrad"]})
    assert multitask_step._times(TINY._replace(tasks=2), 2) == {}
