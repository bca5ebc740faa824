"""A folder of numbered npy files, as MTAN published NYUv2 and Cityscapes: one example at a time.

``root/train/image/0.npy`` and so on, a folder for each kind of array: S. Liu, E. Johns & A. Davison,
arXiv:1803.10704, and the loaders of LibMTL (examples/nyu and examples/cityscapes).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

CHANNELS = {"image": 3, "segmentation": None, "depth": 1, "normal": 3}
"""Kind of array to the length of its last axis; a label has no such axis."""


class NpyFolder:
    """Examples in files, read when they are asked for: a random-access source.

    ``source[i]`` is a dict of arrays: "image" ``[H, W, 3]`` in [0, 1], "segmentation" ``[H, W]`` with -1
    where there is no label, "depth" ``[H, W]`` with 0 where it is unknown, and "normal" ``[H, W, 3]``, unit
    vectors or 0 where unknown; float32, labels int32.

    Args:
        folder: of one split, such as ``nyuv2/train``.
        names: kind of array to the name of its folder, such as ``{"image": "image"}``.
        shape: ``(H, W)``.
        classes: number of classes of the labels.

    Raises:
        FileNotFoundError: a folder or a file is missing. The message names it, and the remedy.
        ValueError: when an example is read, a file that does not hold what it should. Likewise.
    """

    def __init__(self, folder: Path, names: Mapping[str, str], shape: tuple[int, int], classes: int) -> None:
        self.folders = {kind: folder / name for kind, name in names.items()}
        self.shape, self.classes = shape, classes
        for kind, path in self.folders.items():
            if not path.is_dir():
                raise FileNotFoundError(
                    f"there is no folder {path} of {kind} files: point to the folder that holds train/ and "
                    "val/ of the data as MTAN preprocessed them (links in LibMTL's examples)"
                )
        numbers = {path.stem for path in self.folders["image"].glob("*.npy")}
        if not numbers:
            raise FileNotFoundError(f"{self.folders['image']} holds no npy file: unpack the download again")
        self.length = len(numbers)
        for path in self.folders.values():
            there = {file.stem for file in path.glob("*.npy")}
            for number in range(self.length):
                if str(number) not in there:
                    raise FileNotFoundError(
                        f"{path / f'{number}.npy'} is missing: {self.folders['image']} holds {self.length} "
                        f"files, expected 0.npy to {self.length - 1}.npy in each folder; unpack the download "
                        "again"
                    )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {kind: self._read(kind, path / f"{index}.npy") for kind, path in self.folders.items()}

    def _read(self, kind: str, path: Path) -> np.ndarray:
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(
                f"{path} is no npy file of numbers ({error}): unpack the download again"
            ) from error
        channels = CHANNELS[kind]
        shape = self.shape if channels is None else (*self.shape, channels)
        if array.shape != shape:
            raise ValueError(
                f"{path}: expected shape {shape}, got {array.shape}: take the version of the data with "
                f"{self.shape[0]} x {self.shape[1]} pixels"
            )
        if channels is None:
            return self._labels(path, array)
        if array.dtype.kind != "f":
            raise ValueError(
                f"{path}: expected floating-point numbers, got {array.dtype}: save them as float32"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{path} holds NaN or infinity: write 0 where {kind} is unknown")
        if kind == "image" and (array.min() < -0.01 or array.max() > 1.01):
            raise ValueError(
                f"{path}: expected colours in [0, 1], got {array.min():g} to {array.max():g}: divide by 255"
            )
        array = array.astype(np.float32)
        return array[..., 0] if channels == 1 else array

    def _labels(self, path: Path, array: np.ndarray) -> np.ndarray:
        if array.dtype.kind not in "iuf":
            raise ValueError(f"{path}: expected class numbers, got {array.dtype}: save them as int32")
        wrong = (array != np.floor(array)) | (array < -1) | (array >= self.classes)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(
                f"{path}: row {row}, column {column} holds the label {array[row, column]:g}: expected whole "
                f"numbers from 0 to {self.classes - 1}, or -1 where there is no label"
            )
        return array.astype(np.int32)
