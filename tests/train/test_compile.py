"""Ahead-of-time compilation: what is read out of a program, here and for TPUs that are not here."""

import dataclasses
import importlib.util
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxneg.nn import LLAMA_3_2_1B, TRANSFORMER_RULES, transformer
from jaxneg.train import Target, collective_bytes, compile_for, init_state, make_mesh, make_step, shard_step
from jaxneg.train.compile import CHIPS, Chip, CompileReport, matmul_flops

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install 'jaxneg[tpu]'"
)

# Every form that XLA writes: plain, asynchronous, in tuples, in loops, in wrapped computations, in fusions.
HLO = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[128])) -> (s32[], f32[128]) {
  %state = (s32[], f32[128]{0}) parameter(0)
  %x = f32[128]{0} get-tuple-element(%state), index=1
  %in-loop = f32[128]{0} all-reduce(%x), channel_id=7, replica_groups={{0,1}}, to_apply=%add
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %by = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %by)
  ROOT %out = (s32[], f32[128]{0}) tuple(%next, /*index=1*/%in-loop)
}

%condition (state: (s32[], f32[128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(9)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%open_condition (state: (s32[], f32[128])) -> pred[] {
  %flag = pred[] get-tuple-element(%state), index=0
  ROOT %not = pred[] not(%flag)
}

%wrapped (p: f32[64]) -> f32[8] {
  %p = f32[64]{0} parameter(0)
  ROOT %scatter = f32[8]{0} reduce-scatter(%p), channel_id=3, dimensions={0}, to_apply=%add
}

%all-reduce-scatter.1 (p: bf16[32,256]) -> bf16[4,256] {
  %p = bf16[32,256]{1,0} parameter(0)
  %r = bf16[32,256]{1,0:T(8,128)(2,1)} all-reduce(%p), channel_id=4, to_apply=%add
  ROOT %slice = bf16[4,256]{1,0} dynamic-slice(%r, %zero, %zero), dynamic_slice_sizes={4,256}
}

%overlapped (p: f32[8]) -> f32[64] {
  %p = f32[8]{0} parameter(0)
  ROOT %again = f32[64]{0} all-gather(%p), channel_id=9, dimensions={0}
}

ENTRY %main (x: f32[8], y: bf16[16,2]) -> f32[64] {
  %x = f32[8]{0} parameter(0)
  %y = bf16[16,2]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %gather = (f32[8]{0}, f32[64]{0}) all-gather-start(%x), channel_id=1, dimensions={0}
  %gathered = f32[64]{0} all-gather-done(%gather)
  %pair = (f32[8]{0}, bf16[16,2]{1,0}) all-reduce(%x, %y), channel_id=2, to_apply=%add
  %begin = f32[8]{0} all-reduce-start(%x), channel_id=5, to_apply=%add
  %end = f32[8]{0} all-reduce-done(%begin)
  %async = ((f32[64]{0}), f32[8]{0}, u32[]) async-start(%gathered), calls=%wrapped
  %done = f32[8]{0} async-done(%async), calls=%wrapped
  %fused = bf16[4,256]{1,0} fusion(%z), kind=kCustom, calls=%all-reduce-scatter.1
  %permute = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=6
  %permuted = f32[8]{0} collective-permute-done(%permute)
  %exchange = (s8[4]{0}, s8[4]{0}) all-to-all(%q, %r), channel_id=8
  %one = f32[64]{0} fusion(%x), kind=kCustom, calls=%overlapped
  %two = f32[64]{0} fusion(%x), kind=kCustom, calls=%overlapped
  %five = (s32[], f32[128]{0}) while(%start), condition=%condition, body=%body
  ROOT %result = f32[64]{0} add(%gathered, %one)
}
"""


def test_collective_bytes_of_a_program():
    assert collective_bytes(HLO) == {
        "all-gather": 64 * 4 + 64 * 4,
        "all-reduce": (8 * 4 + 32 * 2) + 8 * 4 + 5 * 128 * 4,
        "reduce-scatter": 64 * 4 + 32 * 256 * 2,
        "all-to-all": 8,
        "collective-permute": 8 * 4,
    }


def test_a_loop_whose_length_the_program_states():
    text = HLO.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"11"}}')
    assert collective_bytes(text)["all-reduce"] - collective_bytes(HLO)["all-reduce"] == 6 * 128 * 4


@pytest.mark.parametrize(
    ("known", "unknown"),
    [
        ("condition=%condition", "condition=%open_condition"),
        ("add(%i, %by)", "multiply(%i, %by)"),
        ("direction=LT", "direction=NE"),
    ],
)
def test_a_loop_of_unknown_length_counts_once(known, unknown):
    text = HLO.replace(known, unknown)
    assert collective_bytes(HLO)["all-reduce"] - collective_bytes(text)["all-reduce"] == 4 * 128 * 4


def test_a_program_without_collectives():
    text = jax.jit(lambda x: x + 1).lower(jnp.ones(3)).compile().as_text()
    assert set(collective_bytes(text).values()) == {0}


def test_collective_bytes_of_compiled_programs():
    mesh = make_mesh({"data": 8})

    def compiled(function, in_spec, out_spec):
        mapped = jax.shard_map(function, mesh=mesh, in_specs=in_spec, out_specs=out_spec, check_vma=False)
        return collective_bytes(jax.jit(mapped).lower(jnp.ones((64, 16))).compile().as_text())

    # Of the whole array of 64 x 16 numbers each device holds an eighth.
    whole = 64 * 16 * 4
    psum = compiled(lambda x: jax.lax.psum(x, "data"), P("data"), P())
    assert psum == {**dict.fromkeys(psum, 0), "all-reduce": whole // 8}
    gather = compiled(lambda x: jax.lax.all_gather(x, "data"), P("data"), P())
    assert gather == {**dict.fromkeys(gather, 0), "all-gather": whole}
    scatter = compiled(lambda x: jax.lax.psum_scatter(x, "data", tiled=True), P(), P("data"))
    assert sum(scatter.values()) == whole
    exchange = compiled(lambda x: jax.lax.all_to_all(x, "data", 1, 0, tiled=True), P("data"), P("data"))
    assert exchange == {**dict.fromkeys(exchange, 0), "all-to-all": whole // 8}
    shift = [(i, (i + 1) % 8) for i in range(8)]
    permute = compiled(lambda x: jax.lax.ppermute(x, "data", shift), P("data"), P("data"))
    assert permute == {**dict.fromkeys(permute, 0), "collective-permute": whole // 8}

    def loop(x):
        return jax.lax.fori_loop(0, 7, lambda _, y: jax.lax.psum(y, "data") * x, x)

    assert compiled(loop, P("data"), P("data"))["all-reduce"] == 7 * whole // 8


def test_matmul_flops_counts_loops_branches_and_devices():
    x, w = jnp.ones((4, 8)), jnp.ones((5, 8, 8))
    once = 2 * 4 * 8 * 8

    def flops(function, *arguments):
        return matmul_flops(jax.make_jaxpr(function)(*arguments))

    def scanned(w, x):
        return jax.lax.scan(lambda h, wi: (h @ wi, None), x, w)[0]

    assert flops(scanned, w, x) == 5 * once
    assert flops(jax.grad(lambda w: scanned(w, x).sum()), w) == 15 * once
    assert flops(jax.jit(lambda w: jax.checkpoint(scanned)(w, x)), w) == 5 * once
    assert flops(lambda p: jax.lax.cond(p, lambda: x @ w[0] @ w[1], lambda: x @ w[0]), True) == 2 * once
    mapped = jax.shard_map(
        lambda x: x @ w[0], mesh=make_mesh({"data": 2, "model": 4}), in_specs=P(), out_specs=P()
    )
    assert flops(mapped, x) == 8 * once
    image, kernel = jnp.ones((1, 6, 6, 3)), jnp.ones((3, 3, 3, 7))
    convolved = lambda a, b: jax.lax.conv_general_dilated(  # noqa: E731
        a, b, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert flops(convolved, image, kernel) == 2 * 6 * 6 * 7 * 3 * 3 * 3


def layers_step(params, batch, key):
    del key
    hidden, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), batch, params["layers"])
    return jnp.mean(jnp.square(hidden)), {}


def layers_target(mesh, width=256, layers=4, batch=512, **options):
    tx = optax.adam(1e-3)
    state = jax.eval_shape(
        lambda key: init_state({"layers": jnp.zeros((layers, width, width))}, tx, key), jax.random.key(0)
    )
    return Target(
        make_step(layers_step, tx), state, jax.ShapeDtypeStruct((batch, width), jnp.float32), mesh, **options
    )


def test_report_for_the_devices_that_are_here():
    report = compile_for(layers_target({"data": 8}), "local")
    # Three matrix multiplications a layer, spread over 8 devices.
    assert report.flops >= 3 * 4 * 2 * 512 * 256 * 256 / 8
    parameters = 4 * 256 * 256 * 4
    # Parameters and both Adam moments, an eighth of each here, and the batch.
    assert report.hbm >= 3 * parameters / 8 + 512 * 256 * 4 / 8
    assert report.hbm < 3 * parameters
    assert sum(report.collectives.values()) >= parameters
    assert report.bytes_accessed > 0
    assert report.fits is None
    assert report.roofline_seconds is None
    assert "mesh data 8" in str(report)


def test_report_is_a_table():
    report = CompileReport(
        topology="v5e:2x2",
        chip=Chip("v5e", 100e12, 16 * 2**30, 1e12, 1e11),
        mesh={"data": 4},
        hbm=2**30,
        flops=1e12,
        bytes_accessed=2e9,
        collectives={"all-reduce": 10**9, "all-gather": 0, "reduce-scatter": 10**9},
        fits=True,
        notes=("one thing to know",),
    )
    assert report.ceilings == pytest.approx({"compute": 0.01, "memory": 0.002, "links": 0.03})
    assert report.roofline_seconds == pytest.approx(0.03)
    table = str(report)
    for text in ("1.000 GiB of 16 GiB", "30 ms at the least", "fits  ", "yes", "one thing to know"):
        assert text in table
    assert "all-gather" not in table


def test_mesh_that_does_not_fit_the_devices():
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        compile_for(layers_target({"data": 3}), "local")


def test_missing_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs libtpu.*pip install 'jaxneg\[tpu\]'"):
        compile_for(layers_target({"data": -1}), "v5e:2x2")


@needs_libtpu
@pytest.mark.tpu_compile
@pytest.mark.parametrize("topology", ["v9z:2x2", "nonsense", "v5e:17x3"])
def test_unknown_topology(topology):
    with pytest.raises(ValueError, match=f"topology: expected 'local' or a chip .* got '{topology}'"):
        compile_for(layers_target({"data": -1}), topology)


@needs_libtpu
@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    ("topology", "devices"), [("v5e:16x16", 256), ("v4:2x2x4", 16), ("v5p:2x2x2", 8), ("v6e:4x4", 16)]
)
def test_report_for_tpus_that_are_not_here(topology, devices):
    report = compile_for(layers_target({"data": -1, "model": 2}), topology)
    assert math.prod(report.mesh.values()) == devices
    assert report.chip is not None
    assert report.chip.name == topology.split(":")[0]
    assert report.flops >= 3 * 4 * 2 * 512 * 256 * 256 / devices
    # The parameters' gradients are summed over the data axis, and the parameters gathered before use.
    assert sum(report.collectives.values()) >= 4 * 256 * 256 * 4
    assert report.fits is True
    assert report.roofline_seconds == max(report.ceilings.values()) > 0


@needs_libtpu
@pytest.mark.tpu_compile
def test_a_step_that_does_not_fit():
    report = compile_for(layers_target({"data": -1}, width=16384, layers=8, fsdp=None, batch=64), "v5e:2x2")
    assert report.fits is False
    assert report.chip is not None
    assert not report.hbm < report.chip.hbm
    assert "RESOURCE_EXHAUSTED" in report.notes[0]
    assert "fits                     no" in str(report)


# Llama's structure at a tenth of its size, for a suite that must not take long.
SMALL_LLAMA = dataclasses.replace(
    LLAMA_3_2_1B, vocab=8192, width=512, heads=8, kv_heads=8, head_width=64, hidden=2048
)


@needs_libtpu
@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    ("config", "length", "explicit"),
    [
        (SMALL_LLAMA, 256, False),
        pytest.param(LLAMA_3_2_1B, 2048, False, marks=pytest.mark.slow),
        pytest.param(LLAMA_3_2_1B, 2048, True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_transformer_on_a_pod(config, length, explicit):
    model, tx = transformer(config), optax.adamw(1e-4)

    def loss_fn(params, tokens, key):
        del key
        logits = jax.nn.log_softmax(model.apply(params, tokens[:, :-1]).astype(jnp.float32))
        return -(logits * jax.nn.one_hot(tokens[:, 1:], logits.shape[-1])).sum(-1).mean(), {}

    state = jax.eval_shape(lambda key: init_state(model.init(key), tx, key), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((256, length + 1), jnp.int32)
    mesh = {"data": 32, "model": 8}
    target = Target(make_step(loss_fn, tx), state, tokens, mesh, TRANSFORMER_RULES, explicit=explicit)
    report = compile_for(target, "v5e:16x16")

    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert report.fits is True
    # Parameters and both Adam moments in float32 on 256 chips, and the logits of 8 examples on 8 a few times.
    state_bytes, logits_bytes = 3 * 4 * parameters / 256, 4 * 8 * length * config.vocab / 8
    assert state_bytes < report.hbm < state_bytes + 4 * logits_bytes
    # Two operations a parameter and token forward, four backward, two for recomputing the blocks; attention.
    assert 6 <= report.flops * 256 / (parameters * 256 * length) <= 10
    # In each block two all-reduces of the residual stream forward and two backward, in bfloat16.
    assert report.collectives["all-reduce"] >= 4 * config.layers * (8 * length * config.width * 2)
    assert not any("unknown length" in note for note in report.notes)


@needs_libtpu
@pytest.mark.tpu_compile
@pytest.mark.slow
def test_libtpu_is_quiet_and_two_processes_may_load_it():
    script = "from jaxneg.train.compile import _topology_devices as t; print(len(t('v5e:2x2'))); input()"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    # Both hold libtpu until both have printed.
    assert [process.stdout.readline() for process in processes] == ["4\n", "4\n"]
    for process in processes:
        _, errors = process.communicate("\n", timeout=60)
        assert "TPU" not in errors


def test_chips_are_plausible():
    # In the order of the pages' own comparisons: v6e has 4.7 times the compute and twice the links of v5e.
    v5e, v6e = CHIPS["TPU v5 lite"], CHIPS["TPU v6 lite"]
    assert v6e.flops / v5e.flops == pytest.approx(4.7, abs=0.1)
    assert v6e.ici_bandwidth == 2 * v5e.ici_bandwidth


def test_trace_takes_abstract_arguments_under_explicit_axes():
    target = layers_target({"data": 8})
    mesh = make_mesh({"data": 8}, explicit=True)
    traced = shard_step(target.step, mesh, target.state, target.batch).trace(target.state, target.batch)
    assert "512@data" in str(traced.jaxpr)
