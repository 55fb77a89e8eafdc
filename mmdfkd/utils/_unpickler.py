"""Reading pickles without running them: an allow-list, inert stand-ins and a dry scan.

A pickle is a program that may call whatever global it names. Here it may name only what ordinary
checkpoints carry, and all of that except plain containers and torch's own tensor builders is
replaced by a stand-in that stores what it is given and calls nothing.
"""

import io
import pickle
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import PurePosixPath
from struct import unpack
from typing import Any

import numpy as np
import torch


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message says why and how to mend it."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint asks for a Python object that a checkpoint has no use for."""


class CorruptCheckpointError(CheckpointError):
    """A checkpoint is truncated, declares more than it holds, or is none at all."""


class StandIn:
    """Base of what takes the place of a pickled object; only these take a pickled state."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, Mapping):
            raise pickle.UnpicklingError('a state that is not a mapping')
        self.__dict__.update(state)


class HistoryState(StandIn):
    """The arrays of a ``mmengine.logging.HistoryBuffer``: its attributes, without its code."""


class _Namespace(StandIn):
    """``argparse.Namespace``; ends as a dict."""

    def __init__(self, **kwargs) -> None:
        self.__dict__.update(kwargs)


class _Scheduler(StandIn):
    """A scheduler class, named only as the owner of a method."""


class Placeholder(StandIn):
    """Where a function was; dropped from the dict that holds it."""


class _NdArray(StandIn):
    """The class ``numpy.ndarray``, as an argument of ``_reconstruct``."""


class _DType(StandIn):
    """``numpy.dtype`` of numbers, booleans and strings; never of objects."""

    def __init__(self, spec: Any, *flags: Any) -> None:
        spec = spec.decode('latin1') if isinstance(spec, bytes) else spec
        if not isinstance(spec, str) or not re.fullmatch(r'[<>|=]?[biufcSU]\d{1,9}', spec):
            raise pickle.UnpicklingError(
                f'a numpy array of {spec!r}, not of plain numbers or strings'
            )
        self.dtype = np.dtype(spec)

    def __setstate__(self, state: tuple) -> None:
        order = state[1].decode('latin1') if isinstance(state[1], bytes) else state[1]
        if order in ('<', '>'):
            self.dtype = self.dtype.newbyteorder(order)


class _Array(StandIn):
    """``numpy.ndarray``: allocated only when the bytes are there."""

    def __init__(self, *ignored: Any) -> None:
        self.array = np.empty(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _array(dtype, shape, data, 'F' if fortran else 'C')


def _array(dtype: _DType, shape: tuple, data: bytes | str, order: str) -> np.ndarray:
    data = data.encode('latin1') if isinstance(data, str) else data
    if prod(shape) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f'a numpy array of shape {shape} with {len(data)} bytes')
    # A copy in native byte order: torch takes no other, and the file's bytes may go.
    array = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)
    return array.astype(dtype.dtype.newbyteorder('='))


def _from_buffer(data: bytes, dtype: _DType, shape: tuple, order: str = 'C') -> _Array:
    held = _Array()
    held.array = _array(dtype, shape, data, order)
    return held


def _scalar(dtype: _DType, data: bytes | str = b'') -> Any:
    return _array(dtype, (), data, 'C')[()]


def _getattr(owner: Any, name: str) -> Placeholder:
    if owner not in (HistoryState, _Scheduler):
        raise UnsafeCheckpointError(f"'getattr' of {name!r}")
    return Placeholder()


def _encode(text: str, encoding: str = 'latin1') -> bytes:
    return text.encode('latin1')


def _dict(items: Any = ()) -> dict:
    # A defaultdict is called with its factory, a ConfigDict with its items.
    return dict(items) if isinstance(items, dict) else {}


def _path(*parts: str) -> str:
    return str(PurePosixPath(*parts))


STAND_INS: dict[str, Any] = {
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryState,
    'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler': _Scheduler,
    'mmengine.config.config.ConfigDict': _dict,
    'builtins.getattr': _getattr,
    'builtins.dict': _dict,
    'builtins.list': _dict,
    'builtins.int': _dict,
    'collections.defaultdict': _dict,
    'argparse.Namespace': _Namespace,
    **{f'pathlib.{name}': _path for name in ('PosixPath', 'WindowsPath')},
    **{f'pathlib._local.{name}': _path for name in ('PosixPath', 'WindowsPath')},
    'numpy.ndarray': _NdArray,
    'numpy.dtype': _DType,
    **{f'numpy.{core}.multiarray._reconstruct': _Array for core in ('core', '_core')},
    **{f'numpy.{core}.multiarray.scalar': _scalar for core in ('core', '_core')},
    **{f'numpy.{core}.numeric._frombuffer': _from_buffer for core in ('core', '_core')},
}
"""What takes the place of each global that ordinary checkpoints name."""

_CONTAINERS: dict[str, Any] = {
    'collections.OrderedDict': OrderedDict,
    'collections.Counter': Counter,
    'builtins.set': set,
    'builtins.complex': complex,
    '_codecs.encode': _encode,
}
_STORAGE_BYTES = {
    **dict.fromkeys(('Untyped', 'Byte', 'Char', 'Bool', 'QUInt8', 'QInt8'), 1),
    **dict.fromkeys(('Half', 'BFloat16', 'Short'), 2),
    **dict.fromkeys(('Float', 'Int', 'QInt32'), 4),
    **dict.fromkeys(('Double', 'Long', 'ComplexFloat'), 8),
    'ComplexDouble': 16,
}
_TORCH = {
    'torch.Size',
    'torch.Tensor',
    'torch.device',
    'torch.nn.parameter.Parameter',
    'torch.serialization._get_layout',
    'torch._utils._rebuild_tensor',
    'torch._utils._rebuild_tensor_v2',
    'torch._utils._rebuild_tensor_v3',
    'torch._utils._rebuild_parameter',
}


class RestrictedUnpickler(pickle._Unpickler):
    """Python's own unpickler in Python, limited to the globals that ``resolve`` returns.

    The one in C grows its memo to any index a file names and sets attributes of classes; this one
    does not.

    Args:
        file: A binary file whose ``read`` never returns more than it holds (BytesIO, mmap).
        resolve (Callable[[str], Any]): From a global's full name to what stands for it; raises if
            refused.
    """

    def __init__(self, file: Any, resolve: Callable[[str], Any]) -> None:
        super().__init__(file, encoding='latin1')
        self.resolve = resolve

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a global, under its Python 3 name."""
        if self.proto < 3:
            here = IMPORT_MAPPING.get(module, module), name
            module, name = NAME_MAPPING.get((module, name), here)
        return self.resolve(f'{module}.{name}')

    def load_build(self) -> None:
        """Set a pickled state, on stand-ins and ordered dicts only."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], StandIn):
            self.stack[-1].__setstate__(state)
        elif type(self.stack[-1]) is not OrderedDict:
            raise pickle.UnpicklingError(f'a state for a {type(self.stack[-1]).__name__}')

    def load_bytearray8(self) -> None:
        """Read a bytearray; the original allocates the declared length first."""
        self.append(bytearray(self.read(unpack('<Q', self.read(8))[0])))

    dispatch = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


def refuse(name: str) -> None:
    """Raise :class:`UnsafeCheckpointError` for a global.

    Args:
        name (str): Its full name.
    """
    raise UnsafeCheckpointError(f"the Python object '{name}'")


def read_pickle(data: bytes) -> Any:
    """Read a pickle of containers, numbers, strings and numpy arrays.

    Args:
        data (bytes): The whole pickle.

    Returns:
        Any: Its content; stand-ins are still in it, see :func:`rebuild`.
    """
    known = {**STAND_INS, **_CONTAINERS}
    file = io.BytesIO(data)
    return RestrictedUnpickler(file, lambda n: known[n] if n in known else refuse(n)).load()


class _Inert(StandIn):
    """Takes every call and every item and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> '_Inert':
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Take an item."""

    extend = add = append


def scan(file: Any, count: int = 1) -> tuple[dict[str, int], Any]:
    """Walk torch pickles without building a tensor: refuse unsafe globals, add up the storages.

    Args:
        file: As in :class:`RestrictedUnpickler`, at the first pickle.
        count (int): How many pickles follow each other. Defaults to 1.

    Returns:
        tuple[dict[str, int], Any]: Declared bytes by storage key, and the first pickle's content.

    Raises:
        UnsafeCheckpointError: If a global is asked for that is not on the allow-list.
    """
    storages: dict[str, int] = {}

    def resolve(name: str) -> Any:
        module, _, attribute = name.rpartition('.')
        if module in ('torch', 'torch.storage') and attribute.endswith('Storage'):
            if attribute[:-7] in _STORAGE_BYTES:
                return _STORAGE_BYTES[attribute[:-7]]
        elif module == 'torch' and isinstance(getattr(torch, attribute, None), torch.dtype):
            return _Inert
        elif STAND_INS.get(name) in (_getattr, HistoryState, _Scheduler):
            # Not inert, so that chains of getattr are refused here.
            return STAND_INS[name]
        elif name in STAND_INS or name in _CONTAINERS or name in _TORCH:
            return _Inert
        return refuse(name)

    def storage(pid: Any) -> _Inert:
        kind, size, key, _, numel = pid[:5]
        if kind != 'storage' or type(size) is not int or type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError('a reference that is not a storage')
        storages[key] = max(storages.get(key, 0), size * numel)
        return _Inert()

    first = None
    for index in range(count):
        unpickler = RestrictedUnpickler(file, resolve)
        unpickler.persistent_load = storage
        content = unpickler.load()
        first = content if index == 0 else first
    return storages, first


def rebuild(obj: Any, convert: Callable[[Any], Any]) -> Any:
    """Copy nested containers with every leaf converted; functions' placeholders are dropped.

    Args:
        obj (Any): Dicts, lists, tuples and sets of leaves; may refer to itself.
        convert (Callable[[Any], Any]): From leaf to leaf.

    Returns:
        Any: The copy; tensors in it are the same objects.
    """
    memo: dict[int, Any] = {}

    def items(values: Mapping) -> Iterator[tuple]:
        return ((walk(k), walk(v)) for k, v in values.items() if not isinstance(v, Placeholder))

    def walk(value: Any) -> Any:
        if id(value) in memo:
            return memo[id(value)]
        if isinstance(value, dict):
            new = memo[id(value)] = type(value)()
            new.update(items(value))
            if isinstance(getattr(value, '_metadata', None), dict):
                new._metadata = walk(value._metadata)
        elif type(value) is list:
            new = memo[id(value)] = []
            new.extend(map(walk, value))
        elif type(value) in (tuple, set):
            new = memo[id(value)] = type(value)(map(walk, value))
        elif isinstance(value, _Namespace):
            new = memo[id(value)] = {}
            new.update(items(vars(value)))
        elif isinstance(value, _Array):
            new = memo[id(value)] = convert(value.array)
        elif type(value) is HistoryState:
            new = memo[id(value)] = HistoryState()
            new.__dict__.update(items(vars(value)))
            new = memo[id(value)] = convert(new)
        else:
            new = convert(value)
        return new

    return walk(obj)
