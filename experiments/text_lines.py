"""Lines of text files, plain or compressed, each with where it stands."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    r"""Each line that is not blank, after where it stands.

    Args:
        path: a UTF-8 text file; ``.gz`` is decompressed.

    Yields:
        "path, line number" and the line without its end.

    Raises:
        ValueError: the file cannot be read; the message names it, the last good line and the remedy.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "names.txt"
        >>> _ = path.write_text("a\n\nb\n")
        >>> [(where.rpartition(", ")[2], line) for where, line in numbered_lines(path)]
        [('line 1', 'a'), ('line 3', 'b')]
    """
    number = 0
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as stream
        ):
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{path}, line {number}", line.rstrip("\r\n")
    except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path}, after line {number}: not readable as UTF-8 text ({error}): get the file again"
        ) from error
