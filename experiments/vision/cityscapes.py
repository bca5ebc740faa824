"""Cityscapes as multi-task papers use it: classes and inverse depth of 2975 + 500 street images.

The data set: M. Cordts et al., arXiv:1604.01685, preprocessed by S. Liu et al., arXiv:1803.10704, in
LibMTL's folders (examples/cityscapes), which hold 7 classes, or in MTAN's, which hold 7 and 19.
"""

from pathlib import Path
from typing import Literal

from experiments.vision.npy_folder import NpyFolder

SHAPE = (128, 256)


def cityscapes(
    root: Path,
    split: Literal["train", "val"],
    classes: Literal[7, 19] = 7,
    shape: tuple[int, int] = SHAPE,
) -> NpyFolder:
    """The images of one split, read one at a time.

    Args:
        root: the folder that holds ``train`` and ``val``, in each ``image``, ``depth``, and ``label_7`` and
            ``label_19`` (MTAN's download) or ``label`` (LibMTL's, with these classes).
        split: "train" (2975 images) or "val" (500), on which the papers report.
        classes: how many the labels have.
        shape: height and width.

    Returns:
        The source. Depth is inverse depth: larger is nearer.
    """
    folder = Path(root) / split
    label = f"label_{classes}"
    names = {
        "image": "image",
        "segmentation": label if (folder / label).is_dir() else "label",
        "depth": "depth",
    }
    return NpyFolder(folder, names, shape, classes)
