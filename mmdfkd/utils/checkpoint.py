"""The one reader for every checkpoint that comes from outside, and the writer of plain ones.

No file is trusted: nothing in it is run, and nothing is allocated that it is too small to hold.
"""

import ast
import hashlib
import io
import json
import mmap
import os
import re
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor, serialization

from ._unpickler import (
    STAND_INS,
    CheckpointError,
    CorruptCheckpointError,
    HistoryState,
    UnsafeCheckpointError,
    read_pickle,
    rebuild,
    scan,
)

__all__ = [
    'CheckpointError',
    'CorruptCheckpointError',
    'HistoryState',
    'UnsafeCheckpointError',
    'read_checkpoint',
    'register_local_loader',
    'restore_history',
    'save_tensors',
    'sha256',
    'unwrap_state_dict',
    'verify_sha256',
]

# The first pickle of a torch file of before 1.6: protocol, then its magic number.
_LEGACY_MAGIC = b'\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'
# Of a published file, as OpenMMLab, torchvision and facebook name them.
_OWN_DIGEST = re.compile(r'-[0-9a-f]{8,64}$')


def read_checkpoint(
    path: str | os.PathLike, *, map_location: Any = 'cpu', max_bytes: int | None = None
) -> dict:
    """Read a checkpoint without running anything in it.

    Reads torch files of both formats, ``.pkl`` files of detectron2 (arrays become tensors) and
    ``.safetensors``. A URL is downloaded to torch's cache first, once. mmengine's history buffers
    come back as :class:`HistoryState`, see :func:`restore_history`. A config text that is more than
    data is left out with a warning.

    Args:
        path (str | os.PathLike): A file, an ``http(s)`` address, or what mmengine's loaders know
            (``torchvision://``).
        map_location (Any): As in :func:`torch.load`. Defaults to 'cpu'.
        max_bytes (int, optional): Refuse larger files.

    Returns:
        dict: The content of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeCheckpointError: If the file asks for a Python object that is not on the allow-list.
        CorruptCheckpointError: If it is truncated, declares more than it holds, is larger than
            ``max_bytes``, or is no checkpoint.
    """
    if str(path).startswith(('http://', 'https://')):
        path = _download(str(path))
    elif '://' in str(path):
        register_local_loader()
        return mmengine_checkpoint.CheckpointLoader.load_checkpoint(str(path), map_location)
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f'There is no checkpoint {path} (looked from {Path.cwd()}). Check the path in the '
            'config or on the command line, or download the file first.'
        )
    size = path.stat().st_size
    if max_bytes is not None and size > max_bytes:
        raise CorruptCheckpointError(
            f'{path} has {size:,} bytes, more than the {max_bytes:,} allowed.'
        )
    try:
        content = _read(path, size, map_location)
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(
            f'{path} asks for {error}, which no checkpoint needs; nothing in it was run. If you '
            'trust its origin, load it where it was made and save its state_dict alone.'
        ) from None
    except (ImportError, CorruptCheckpointError):
        raise
    except Exception as error:
        # A damaged file can fail in any way; the user needs the one fact.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptCheckpointError(
            f'{path} is damaged or no checkpoint: {reason}. Copy or download it again.'
        ) from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CorruptCheckpointError(f'{path} holds a {kind}, not a dict of weights.')
    _drop_code(content, path)
    return content


def _read(path: Path, size: int, map_location: Any) -> Any:
    with path.open('rb') as file:
        head = file.read(16)
    if path.suffix == '.safetensors':
        return _read_safetensors(path, map_location)
    if head.startswith(b'PK\x03\x04'):
        _check_zip(path, size)
    elif head[2:].startswith(_LEGACY_MAGIC):
        _check_legacy(path, size)
    elif head.startswith(b'\x80') or path.suffix == '.pkl':
        return rebuild(read_pickle(path.read_bytes()), lambda leaf: _as_tensor(leaf, map_location))
    else:
        raise CorruptCheckpointError(
            f'{path} is no torch, pickle or safetensors file: it starts with {head!r}.'
        )
    # Only our allow-list: what other code of this process trusts is no reason to.
    others = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    try:
        serialization.add_safe_globals([(value, name) for name, value in STAND_INS.items()])
        content = torch.load(path, map_location=map_location, weights_only=True)
        return rebuild(content, lambda leaf: leaf)
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(others)


def _check_zip(path: Path, size: int) -> None:
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: info.file_size for info in archive.infolist()}
        # torch finds records regardless of case, and of two with one name it may take the other.
        if len({name.lower() for name in records}) != len(archive.infolist()):
            raise CorruptCheckpointError(f'{path} holds two records of one name.')
        declared = sum(records.values())
        if declared > size:
            raise CorruptCheckpointError(
                f'{path} declares {declared:,} bytes of content but has {size:,}.'
            )
        root = next(iter(records)).split('/')[0]
        storages, _ = scan(io.BytesIO(archive.read(f'{root}/data.pkl')))
    for key, nbytes in storages.items():
        held = records.get(f'{root}/data/{key}', 0)
        if nbytes > held:
            raise CorruptCheckpointError(
                f'{path} declares {nbytes:,} bytes for storage {key} but holds {held:,}.'
            )


def _check_legacy(path: Path, size: int) -> None:
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        # Magic number, protocol, platform, the content, the storage keys; then the raw storages.
        storages, _ = scan(view, count=5)
        declared, held = sum(storages.values()), size - view.tell()
    if declared > held:
        raise CorruptCheckpointError(
            f'{path} declares {declared:,} bytes of tensors but holds {held:,}: it is truncated.'
        )


def _read_safetensors(path: Path, map_location: Any) -> dict:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ImportError(
            f'{path} needs the safetensors library: pip install safetensors'
        ) from None
    # The library checks its header against the file before it allocates.
    return load_file(str(path), device='cpu' if map_location is None else str(map_location))


def _as_tensor(leaf: Any, map_location: Any = None) -> Any:
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in 'biufc':
        leaf = torch.from_numpy(leaf)
        return leaf.to(map_location) if isinstance(map_location, str | torch.device) else leaf
    return leaf


def _drop_code(content: dict, path: Path) -> None:
    """Remove config texts that are more than data: a resume or an inferencer would run them."""
    meta, hub = content.get('meta'), content.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, dict) else None
    for holder in (meta, info):
        for key in ('cfg', 'config'):
            if isinstance(holder, dict) and key in holder and not _is_data(holder[key]):
                del holder[key]
                warnings.warn(
                    f"{path}: its config text '{key}' is more than data and was left out.",
                    stacklevel=3,
                )


def _is_data(text: Any) -> bool:
    if not isinstance(text, str):
        return True
    # mmengine replaces {{...}} and reads _base_ before it runs the text.
    if '{{' in text or '_base_' in text:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    data = (ast.Module, ast.Assign, ast.Expr, ast.Name, ast.expr_context, ast.keyword)
    data += (ast.Constant, ast.Dict, ast.List, ast.Tuple, ast.Set, ast.UnaryOp, ast.unaryop)
    makers = {'dict', 'list', 'tuple', 'set', 'float'}
    return all(
        isinstance(node, data)
        or (isinstance(node, ast.Call) and getattr(node.func, 'id', None) in makers)
        for node in nodes
    )


def restore_history(content: Any) -> Any:
    """Turn every :class:`HistoryState` into a real ``HistoryBuffer``, as a resumed run needs it.

    Args:
        content (Any): What :func:`read_checkpoint` returned, or a part of it.

    Returns:
        Any: A copy with real buffers; tensors are shared with the original.
    """

    def real(leaf: Any) -> Any:
        if not isinstance(leaf, HistoryState):
            return leaf
        state = vars(leaf)
        return HistoryBuffer(
            np.asarray(state.get('_log_history', ())),
            np.asarray(state.get('_count_history', ())),
            int(state.get('max_length', 1000000)),
        )

    return rebuild(content, real)


def register_local_loader() -> None:
    """Make mmengine read every checkpoint with :func:`read_checkpoint`.

    ``resume``, ``load_from``, ``Pretrained`` and the inferencers go through mmengine's loader of
    local files; the loaders of ``open-mmlab://``, ``torchvision://``, buckets and the like call the
    other names replaced here.
    """
    loader = mmengine_checkpoint.CheckpointLoader
    loader.register_scheme('', load_from_local, force=True)
    loader.register_scheme(('http://', 'https://'), load_from_local, force=True)
    mmengine_checkpoint.load_from_local = mmengine_checkpoint.load_from_http = load_from_local
    if hasattr(mmengine_checkpoint, '_safe_torch_load'):
        mmengine_checkpoint._safe_torch_load = _load_any


def load_from_local(filename: str, map_location: Any = None, **unused: Any) -> dict:
    """:func:`read_checkpoint` with mmengine's signature and history buffers restored.

    Args:
        filename (str): File or ``http(s)`` address.
        map_location (Any): As in :func:`torch.load`.
        **unused: What mmengine's loader of addresses takes besides.

    Returns:
        dict: The content of the file.
    """
    return restore_history(read_checkpoint(filename, map_location=map_location))


def _load_any(file: Any, map_location: Any = None, weights_only: bool | None = None) -> dict:
    if not hasattr(file, 'read'):
        return load_from_local(file, map_location)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'buffer.pth'
        path.write_bytes(file.read())
        return load_from_local(path, map_location)


def _download(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(url).path).name
    if not _OWN_DIGEST.search(path.stem):
        # Many addresses end in the same name (model.safetensors): the whole of it tells them apart.
        digest = hashlib.sha256(url.encode()).hexdigest()[:8]
        path = path.with_name(f'{path.stem}-{digest}{path.suffix}')
    path.parent.mkdir(parents=True, exist_ok=True)
    rank, _ = get_dist_info()
    # Rank 0 first; where the cache is not shared, the others fetch their own afterwards.
    for turn in (rank == 0, rank != 0):
        if turn and not path.is_file():
            torch.hub.download_url_to_file(url, str(path), progress=rank == 0)
        barrier()
    return path


def unwrap_state_dict(checkpoint: Mapping) -> dict[str, Tensor]:
    """The weights in a checkpoint: its ``state_dict``, its ``model``, or itself.

    Args:
        checkpoint (Mapping): What :func:`read_checkpoint` returned.

    Returns:
        dict[str, Tensor]: Plain keys; a prefix ``module.`` that all of them carry is stripped.

    Raises:
        CheckpointError: If it holds no mapping of tensors.
    """
    weights: Any = checkpoint
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), Mapping):
            weights = checkpoint[key]
            break
    found = OrderedDict((k, _as_tensor(v)) for k, v in weights.items())
    others = [str(k) for k, v in found.items() if not (type(k) is str and isinstance(v, Tensor))]
    if not found or others:
        raise CheckpointError(
            "No weights in this checkpoint: neither under 'state_dict' nor 'model', and its own "
            f'entries are not tensors ({", ".join(others[:6]) or "it is empty"}).'
        )
    metadata = getattr(weights, '_metadata', None)
    if all(k.startswith('module.') for k in found):
        return OrderedDict((k[7:], v) for k, v in found.items())
    if metadata is not None:
        # The versions of modules, by which they convert older weights.
        found._metadata = metadata
    return found


def save_tensors(
    state_dict: Mapping[str, Tensor], path: str | os.PathLike, meta: dict | None = None
) -> None:
    """Write ``{meta, state_dict}`` so that ``torch.load(weights_only=True)`` reads it as it is.

    The file appears whole or not at all.

    Args:
        state_dict (Mapping[str, Tensor]): Tensors on any device; saved from the CPU, without what
            they view into.
        path (str | os.PathLike): Where to; the folder is made.
        meta (dict, optional): What JSON can hold.

    Raises:
        TypeError: If a value is not a tensor, or meta is more than JSON can hold.
    """
    wrong = [k for k, v in state_dict.items() if not isinstance(v, Tensor)]
    if wrong:
        raise TypeError(f'Only tensors go into {path}; these are not: {", ".join(wrong[:6])}.')
    try:
        plain = json.loads(json.dumps(meta or {}))
    except (TypeError, ValueError) as error:
        raise TypeError(f'The meta of {path} must be plain data as in JSON: {error}') from None
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state_dict.items()}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    try:
        with os.fdopen(handle, 'wb') as file:
            torch.save({'meta': plain, 'state_dict': tensors}, file)
        # mkstemp makes files for the owner alone; a checkpoint is an ordinary file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Args:
        path (str | os.PathLike): The file.

    Returns:
        str: 64 digits.
    """
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify_sha256(path: str | os.PathLike, expected: str) -> None:
    """Check a file against its checksum.

    Args:
        path (str | os.PathLike): The file.
        expected (str): SHA-256 in hexadecimal, or its first eight or more digits.

    Raises:
        CorruptCheckpointError: If it differs.
        ValueError: If ``expected`` is shorter than eight digits.
    """
    if len(expected) < 8:
        raise ValueError(f'A checksum needs at least 8 digits, not {expected!r}.')
    found = sha256(path)
    if not found.startswith(expected.lower()):
        raise CorruptCheckpointError(
            f'{path} has SHA-256 {found}, not {expected}. Copy or download it again.'
        )
