"""The engine: mesh and partition rules, train state and step, loop, checkpoint, ahead-of-time compile."""

from jaxneg.train.checkpoint import CheckpointError, Checkpoints, Restored, restore
from jaxneg.train.compile import CompileReport, Target, collective_bytes, compile_for
from jaxneg.train.data import global_batch, pipeline, process_shard
from jaxneg.train.loop import FitResult, NonFiniteError, fit
from jaxneg.train.mesh import batch_shardings, make_mesh, partition_specs, shardings
from jaxneg.train.step import (
    Precision,
    ShardedStep,
    SplitLoss,
    TrainState,
    init_state,
    make_step,
    shard_step,
)

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "CompileReport",
    "FitResult",
    "NonFiniteError",
    "Precision",
    "Restored",
    "ShardedStep",
    "SplitLoss",
    "Target",
    "TrainState",
    "batch_shardings",
    "collective_bytes",
    "compile_for",
    "fit",
    "global_batch",
    "init_state",
    "make_mesh",
    "make_step",
    "partition_specs",
    "pipeline",
    "process_shard",
    "restore",
    "shard_step",
    "shardings",
]
