"""Data files of arrays, without pickles."""

import zipfile
import zlib
from pathlib import Path

import numpy as np


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file.

    Args:
        path: of a file that exists.

    Returns:
        The arrays by name.

    Raises:
        ValueError: the file is none of this kind, is damaged, or holds Python objects. The message names it
            and the remedy.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "data.npz"
        >>> np.savez(file, x=np.arange(3))
        >>> load_npz(file)["x"].tolist()
        [0, 1, 2]
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an npz file: write it with numpy.savez, or copy it again")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again") from error
    except ValueError as error:
        raise ValueError(
            f"{path} holds an array of Python objects ({error}): write numbers and text without pickles"
        ) from error
