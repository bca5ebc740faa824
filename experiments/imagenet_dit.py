"""The DiTs that learn ImageNet's latents at the papers' scale, and how a pod holds them."""

from typing import Literal

from jaxneg.nn.dit import DIT_B_2, DIT_L_2, DIT_S_2, DIT_XL_2, DiTConfig

Size = Literal["S", "B", "L", "XL"]
MODELS: dict[Size, DiTConfig] = {"S": DIT_S_2, "B": DIT_B_2, "L": DIT_L_2, "XL": DIT_XL_2}
MODEL_AXIS: dict[Size, int] = {"S": 2, "B": 1, "L": 1, "XL": 2}
"""Chips of a pod over which a layer is split: 256 divides the widths of B and L, and 128 all of them."""
FOLDER = "imagenet_latents"
"""What is looked for in the folder of the data, as `experiments.images.LatentArrays` reads it."""
