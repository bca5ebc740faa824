"""The paper's step at a scale that it did not have: IResNet-100 and ten million people on 256 chips.

Images and class centres are both split over all chips, as Partial FC has it: the backbone sees its own
images, each chip compares the features of all images with its own people, of whom a share is sampled in each
step. The pairs of the batch are those of all chips, computed row by row.
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import PRNGKeyArray

from jaxneg.face import UNPGConfig, UNPGState, init_unpg_state, make_unpg_train_step, padded_classes
from jaxneg.nn import iresnet
from jaxneg.train import Target

CHIPS = 256
PEAK, MOMENTUM, DECAY, CLIP = 0.1, 0.9, 5e-4, 5.0
"""Of SGD, as the UNPG authors train; the gradient of the backbone is clipped, as Partial FC's is."""


def training_target(
    depth: int, people: int, batch: int, sample_rate: float, steps: int, size: int = 112, chips: int = CHIPS
) -> Target:
    """A training step, and its abstract arguments.

    Args:
        depth: of the IResNet.
        people: classes.
        batch: images in all, a multiple of the chips.
        sample_rate: share of the people that a step compares with.
        steps: of the schedule.
        size: side of the images in pixels.
        chips: of the mesh.

    Returns:
        What `jaxneg.train.compile_for` compiles.
    """
    model = iresnet(depth, size=size, dropout=0.4, dtype=jnp.bfloat16)
    rows = padded_classes(people, chips)

    def apply(params: dict, x: jax.Array, key: PRNGKeyArray) -> jax.Array:
        return model.apply(params, x.astype(jnp.bfloat16) / 127.5 - 1, dropout_key=key)

    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0, PEAK, steps // 10),
            optax.polynomial_schedule(PEAK, 0, 2, steps - steps // 10),
        ],
        [steps // 10],
    )
    sgd = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(schedule, MOMENTUM))
    config = UNPGConfig(
        apply=apply,
        backbone_tx=optax.chain(optax.clip_by_global_norm(CLIP), sgd),
        head_tx=sgd,
        axis=("data",),
        batch_axis=("data",),
        sample_rate=sample_rate,
        num_classes=people,
        sparse_update=True,
    )

    def start(key: PRNGKeyArray) -> UNPGState:
        params = {"backbone": model.init(key), "head": 0.01 * jax.random.normal(key, (rows, 512))}
        return init_unpg_state(config, params, key)

    def step(state: UNPGState, batch: dict[str, jax.Array]) -> tuple[UNPGState, dict[str, jax.Array]]:
        # The mesh of the chips is known when the step is compiled, not before.
        return make_unpg_train_step(config, jax.sharding.get_abstract_mesh())(state, batch)  # pyright: ignore

    return Target(
        step=step,
        state=jax.eval_shape(start, jax.random.key(0)),  # pyright: ignore[reportArgumentType]
        batch={
            "x": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "labels": jax.ShapeDtypeStruct((batch,), jnp.int32),
        },
        mesh={"data": chips},
        rules=((r"^head$", P("data")),),
    )
