"""One file of a replay bank: named arrays in the safetensors layout, whole or not there at all."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmdfkd.utils.checkpoint import CheckpointError

Arrays = dict[str, np.ndarray]

#: What a segment may hold; anything else is refused, in writing and in reading.
_DTYPES = {
    'U8': np.dtype('u1'),
    'F16': np.dtype('<f2'),
    'F32': np.dtype('<f4'),
    'I32': np.dtype('<i4'),
    'I64': np.dtype('<i8'),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class BankError(CheckpointError):
    """A file of a replay bank is missing, damaged or not its own; the message says which."""


def pack(arrays: Arrays, meta: Mapping[str, str]) -> tuple[list[np.ndarray], str]:
    """Lay arrays out as a safetensors file; the same arrays give the same bytes.

    The layout (https://github.com/huggingface/safetensors) is a header in JSON and the raw numbers
    after it, so the file can be mapped into memory and runs no code. Wide numbers come first, which
    keeps all of them aligned.

    Args:
        arrays (Arrays): Of the types U8, F16, F32, I32 and I64.
        meta (Mapping[str, str]): Texts for the header.

    Returns:
        tuple[list[np.ndarray], str]: The bytes in pieces, and their SHA-256.
    """
    header: dict = {'__metadata__': dict(meta)}
    pieces, at = [], 0
    for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)):
        array = np.ascontiguousarray(arrays[name])
        header[name] = dict(
            dtype=_CODES[array.dtype],
            shape=list(array.shape),
            data_offsets=[at, at + array.nbytes],
        )
        pieces.append(array.reshape(-1).view(np.uint8))
        at += array.nbytes
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    head = len(text).to_bytes(8, 'little') + text
    pieces.insert(0, np.frombuffer(head, np.uint8))
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return pieces, digest.hexdigest()


def write(path: Path, pieces: list[np.ndarray]) -> None:
    """Write a file in one go: a reader sees the whole of it or nothing.

    Args:
        path (Path): Where to; the folder is made.
        pieces (list[np.ndarray]): Its bytes, from :func:`pack`.

    Raises:
        BankError: If the system refuses, for want of space for example.
    """
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open('wb') as file:
            for piece in pieces:
                file.write(piece)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BankError(
                f'The bank could not write {path}: {error}. What it held is still whole; free '
                'some space or prune() the bank, then resume.'
            ) from error
        raise


def parse(content: np.ndarray, path: Path) -> tuple[Arrays, dict[str, str]]:
    """The arrays in the bytes of a file, as views.

    Args:
        content (np.ndarray): The file, ``uint8``; mapped or read.
        path (Path): Its name, for the error.

    Returns:
        tuple[Arrays, dict[str, str]]: What :func:`pack` was given.

    Raises:
        BankError: If it is not the layout, or declares more than it holds.
    """
    try:
        start = 8 + int.from_bytes(content[:8].tobytes(), 'little')
        if start > len(content):
            raise ValueError('its header is longer than the file')
        header = json.loads(content[8:start].tobytes())
        meta = header.pop('__metadata__', {})
        body, arrays = content[start:], {}
        for name, entry in header.items():
            dtype, shape = _DTYPES[entry['dtype']], tuple(entry['shape'])
            first, last = entry['data_offsets']
            if not 0 <= first <= last <= len(body):
                raise ValueError(f'{name} lies outside of the file')
            arrays[name] = body[first:last].view(dtype).reshape(shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BankError(f'{path} is no segment of a replay bank: {error}.') from error
    return arrays, meta
