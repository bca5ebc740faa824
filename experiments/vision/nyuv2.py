"""NYUv2 as multi-task papers use it: 13 classes, depth and surface normals of 795 + 654 indoor images.

The data set: N. Silberman et al., ECCV 2012, preprocessed by S. Liu et al., arXiv:1803.10704. The
augmentation is PAD-Net's, D. Xu et al., arXiv:1805.04409, as LibMTL has it (examples/nyu).
"""

from pathlib import Path
from typing import Literal

import numpy as np

from experiments.vision.dense import interpolation
from experiments.vision.npy_folder import NpyFolder

SHAPE = (288, 384)
CLASSES = 13
SCALES = (1.0, 1.2, 1.5)
NAMES = {"image": "image", "segmentation": "label", "depth": "depth", "normal": "normal"}


def nyuv2(root: Path, split: Literal["train", "val"], shape: tuple[int, int] = SHAPE) -> NpyFolder:
    """The images of one split, read one at a time.

    Args:
        root: the folder that holds ``train`` and ``val``, in each ``image``, ``label``, ``depth`` and
            ``normal`` with ``0.npy``, ``1.npy``, ...
        split: "train" (795 images) or "val" (654), on which the papers report.
        shape: height and width.

    Returns:
        The source. Depth is in metres.
    """
    return NpyFolder(Path(root) / split, NAMES, shape, CLASSES)


def augment(example: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Zooms into a random part of an image by 1, 1.2 or 1.5, and mirrors it or not.

    Image and normals are interpolated, labels and depth take the nearest pixel. What is seen s times as large
    is s times as near: the depth is divided by s. In a mirror the x component of a normal changes its sign.

    Args:
        example: from `nyuv2`.
        rng: decides.

    Returns:
        An example of the same shape.
    """
    height, width = example["image"].shape[:2]
    scale = float(rng.choice(SCALES))
    h, w = int(height / scale), int(width / scale)
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    part = {kind: array[top : top + h, left : left + w] for kind, array in example.items()}
    result = {
        "image": _interpolated(part["image"], height, width),
        "segmentation": _nearest(part["segmentation"], height, width),
        "depth": _nearest(part["depth"], height, width) / np.float32(scale),
        "normal": _interpolated(part["normal"], height, width),
    }
    if rng.random() < 0.5:
        result = {kind: np.ascontiguousarray(array[:, ::-1]) for kind, array in result.items()}
        result["normal"] *= np.array([-1, 1, 1], np.float32)
    return result


def _nearest(array: np.ndarray, height: int, width: int) -> np.ndarray:
    h, w = array.shape[:2]
    return array[np.arange(height) * h // height][:, np.arange(width) * w // width]


def _interpolated(array: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = interpolation(array.shape[0], height), interpolation(array.shape[1], width)
    return np.einsum("ih,jw,hwc->ijc", rows, columns, array, optimize=True)
