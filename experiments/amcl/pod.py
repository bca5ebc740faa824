"""AMCL's step at the paper's largest scale: ResNet-50 on ImageNet, 4096 images on 256 chips."""

import jax
import jax.numpy as jnp

from experiments.amcl.training import StepConfig, init_amcl_state, make_amcl_train_step
from jaxneg.train import Target

MESH = {"data": -1}
STORED = 256
"""Side of the images in the batch, of which views of `StepConfig.size` are cut."""


def pod_step(batch: int) -> StepConfig:
    """SimCLR with AMCL on ImageNet, the networks in bfloat16.

    Args:
        batch: images.

    Returns:
        The config of the step.
    """
    return StepConfig(
        encoder="resnet50",
        hidden=2048,
        size=224,
        letters="abcde",
        dtype="bfloat16",
        optimizer="sgd",
        learning_rate=0.3 * batch / 256,
        steps=100 * 1_281_167 // batch,
        batch=batch,
    )


def pod_target(step: StepConfig) -> Target:
    """The step, and its abstract arguments: uint8 images, of which it makes both views on the device.

    Args:
        step: what it does.

    Returns:
        What `jaxneg.train.compile_for` compiles; the batch lies over all chips, parameters on each.
    """
    stored = STORED if step.encoder == "resnet50" else step.size
    return Target(
        step=make_amcl_train_step(step),
        state=jax.eval_shape(lambda key: init_amcl_state(step, key), jax.random.key(0)),  # pyright: ignore[reportArgumentType]
        batch={"images": jax.ShapeDtypeStruct((step.batch, stored, stored, 3), jnp.uint8)},
        mesh=MESH,
        fsdp=None,
    )
