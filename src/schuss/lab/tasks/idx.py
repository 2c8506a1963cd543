"""Read the IDX files that MNIST is published as, plain or gzipped.

The format, from http://yann.lecun.com/exdb/mnist: a big-endian magic number 0x0000TTDD (TT: element type,
DD: number of dimensions), one 32-bit length per dimension, then the elements, the last dimension running
fastest. MNIST's are unsigned bytes.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes.

    Raises `ValueError` naming the file when its magic number is wrong, when it is cut short or goes on too
    long, and `FileNotFoundError` when it is not there.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is cut short or not gzip: {error}.") from error
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise ValueError(f"{path} is cut short: {len(content)} bytes, but its header alone has {header}.")
    magic = struct.unpack(">I", content[:4])[0]
    expected = 0x0800 | dimensions  # 08: unsigned bytes
    if magic != expected:
        raise ValueError(
            f"{path} is not an IDX file of {dimensions}-dimensional unsigned bytes: "
            f"its magic number is 0x{magic:08x}, expected 0x{expected:08x}."
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    found, stated = len(content) - header, math.prod(shape)
    if found != stated:
        wrong = "cut short" if found < stated else "too long"
        raise ValueError(f"{path} is {wrong}: its header says {stated} bytes of data, it has {found}.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def find(folder: Path, name: str) -> Path:
    """The file of that name in the folder, plain or `.gz`; some archives spell the last dash as a dot."""
    spellings = (name, name.replace("-idx", ".idx"))
    candidates = [folder / (spelling + ending) for spelling in spellings for ending in ("", ".gz")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"{folder / name} is missing (plain or .gz). MNIST's four IDX files are expected there."
    )
