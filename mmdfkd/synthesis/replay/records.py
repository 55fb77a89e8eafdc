"""What the replay bank keeps of its images, as named arrays and back."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mmdfkd.adapters.observation import Targets

from .segments import Arrays
from .sparse import dense_probabilities, sparse_probabilities

Answers = dict[str, Tensor | list[Tensor]]

#: Marks where each image's part of an array of unequal counts begins.
_OFFSETS = '#offsets'


def encode(
    images: Tensor,
    targets: Targets,
    answers: Mapping[str, Tensor | Sequence[Tensor]],
    topk: int | None = None,
    full_precision: Collection[str] = (),
) -> tuple[Arrays, dict[str, str]]:
    """Everything known of some images as arrays by name.

    Args:
        images (Tensor): ``[n, 3, H, W]``, ``uint8`` or in [0, 1].
        targets (Targets): What they show.
        answers (Mapping): By name a tensor ``[n, ...]``, or ``n`` tensors ``[k_i, ...]``.
        topk (int | None): Keep only so many of ``logits``, as probabilities.
        full_precision (Collection[str]): Answers to keep in ``float32`` instead of ``float16``.

    Returns:
        tuple[Arrays, dict[str, str]]: Copies; and texts that help to read them.

    Raises:
        ValueError: If counts differ or values are out of range.
    """
    arrays: Arrays = {}
    meta: dict[str, str] = {}
    count = len(images)

    def put(key: str, value: Tensor | Sequence[Tensor]) -> None:
        if len(value) != count:
            raise ValueError(f'ReplayBank: {count} images but {len(value)} of {key}.')
        if isinstance(value, Tensor):
            # A copy: a segment never changes, whatever becomes of the tensor.
            arrays[key] = value.detach().cpu().numpy().copy()
            return
        # End to end, and the places where the parts begin.
        arrays[key] = torch.cat([part.detach().cpu() for part in value]).numpy()
        ends = np.cumsum([0] + [len(part) for part in value])
        arrays[key + _OFFSETS] = ends.astype(np.int64)

    put('images', _pixels(images))
    if targets.labels is not None:
        put('targets.labels', targets.labels.long())
    if targets.boxes is not None:
        labels = targets.box_labels
        if labels is None or [len(b) for b in targets.boxes] != [len(c) for c in labels]:
            raise ValueError('ReplayBank: every box needs a label, in boxes and box_labels.')
        put('targets.boxes', [box.float().reshape(-1, 4) for box in targets.boxes])
        put('targets.box_labels', [label.long() for label in labels])
    for name, value in answers.items():
        exact = name in full_precision
        if name == 'logits' and topk is not None:
            meta['classes'] = str(value.shape[-1])
            values, indices = sparse_probabilities(value.detach(), topk)
            put('topk.values', values)
            put('topk.indices', indices)
        elif isinstance(value, Tensor):
            put(f'answers.{name}', _compact(name, value, exact))
        else:
            put(f'answers.{name}', [_compact(name, part, exact) for part in value])
    return arrays, meta


def decode(
    parts: Iterable[tuple[np.ndarray, np.ndarray, Arrays, Mapping[str, str]]],
    count: int,
    device: torch.device | str,
) -> tuple[Tensor, Targets, Answers | None]:
    """Put images of several segments together.

    Args:
        parts (Iterable): Of each segment: positions in the result, its rows for them, its arrays
            and texts.
        count (int): Number of images, at least 1.
        device (torch.device | str): Where they are wanted.

    Returns:
        tuple[Tensor, Targets, Answers | None]: Images ``float32 [count, 3, H, W]`` in [0, 1]; what
        they show; the teacher's answers, None if there are none.
    """
    dense: Arrays = {}
    ragged: dict[str, list] = {}
    meta: Mapping[str, str] = {}
    for where, rows, arrays, meta in parts:  # noqa: B007  (all segments have the same texts)
        for key, array in arrays.items():
            if key.endswith(_OFFSETS):
                continue
            offsets = arrays.get(key + _OFFSETS)
            if offsets is None:
                if key not in dense:
                    dense[key] = np.empty((count, *array.shape[1:]), array.dtype)
                dense[key][where] = array[rows]
            else:
                pieces = ragged.setdefault(key, [None] * count)
                for position, row in zip(where, rows, strict=True):
                    pieces[position] = array[offsets[row] : offsets[row + 1]].copy()

    def tensor(array: np.ndarray) -> Tensor:
        found = torch.from_numpy(array).to(device)
        return found.float() if found.is_floating_point() else found

    found = {key: tensor(array) for key, array in dense.items()}
    found |= {key: [tensor(piece) for piece in pieces] for key, pieces in ragged.items()}
    shown = {name: found.get(f'targets.{name}') for name in ('labels', 'boxes', 'box_labels')}
    answers = {
        key.removeprefix('answers.'): value
        for key, value in found.items()
        if key.startswith('answers.')
    }
    if 'topk.values' in found:
        answers['logits'] = dense_probabilities(
            found['topk.values'], found['topk.indices'], int(meta['classes'])
        ).log()
    return found['images'].float().div_(255), Targets(**shown), answers or None


def fields(arrays: Arrays, meta: Mapping[str, str]) -> dict[str, str]:
    """What each image has, in words: segments of one bank have the same."""
    found = {
        key: f'{array.dtype.name}{"[k]" if key + _OFFSETS in arrays else ""}{list(array.shape[1:])}'
        for key, array in arrays.items()
        if not key.endswith(_OFFSETS)
    }
    return found | dict(meta)


def classes_shown(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a row and a class that it shows, each once; -1 where it shows none."""
    count = len(arrays['images'])
    if 'targets.labels' in arrays:
        return np.arange(count), np.array(arrays['targets.labels'])
    rows, labels = np.arange(0), np.arange(0)
    if 'targets.boxes' in arrays:
        rows = np.repeat(np.arange(count), np.diff(arrays['targets.boxes' + _OFFSETS]))
        pairs = np.stack([rows, arrays['targets.box_labels']], 1)
        rows, labels = np.unique(pairs, axis=0).T
    none = np.setdiff1d(np.arange(count), rows)
    return np.concatenate([rows, none]), np.concatenate([labels, np.full(len(none), -1)])


def _pixels(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    images = images.detach().float()
    low, high = (float(bound) for bound in images.aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f'ReplayBank: images must lie in [0, 1], these reach from {low:.3g} to {high:.3g}: '
            'hand over pixels, not what a normaliser made of them.'
        )
    return images.mul(255).round_().clamp_(0, 255).to(torch.uint8)


def _compact(name: str, value: Tensor, exact: bool) -> Tensor:
    if not value.is_floating_point():
        return value.long()
    value = value.detach().float()
    if exact:
        return value
    half = value.half()
    if (half.isinf() & value.isfinite()).any():
        raise ValueError(
            f'ReplayBank: answers {name!r} reach {value.abs().max():.3g}, more than float16 holds: '
            f'set full_precision=({name!r},).'
        )
    return half
