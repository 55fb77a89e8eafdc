"""The embedded digits sets: real handwriting, as a detection set and as a classification set.

Both are made from the 1,797 handwritten digits (8x8 pixels, values 0 to 16) that scikit-learn
carries, so nothing is downloaded. The source is the test part of the UCI set "Optical Recognition
of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998).

A handwritten digit belongs to the train or to the val part of both sets, never to both. Every
image is a function of ``(seed, split, index)``, whatever the number of worker processes.

This module is evaluation material: the synthetic image sources import nothing from it and it
imports nothing from them.
"""

import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

#: Raised whenever the same arguments would give other files than before.
VERSION = 1
CLASSES = tuple('0123456789')
SPLITS = ('train', 'val')
VAL_SHARE = 0.2
STAMP = 'digits.json'
_FOLDERS = (*SPLITS, 'annotations')

#: Longest side of a glyph's box in pixels. Drawn half a pixel inside, since the warp rounds.
MIN_SIZE, MAX_SIZE = 14, 56
MIN_DIGITS, MAX_DIGITS = 2, 8
#: Two boxes may overlap by this IoU at most, and by this share of the smaller box.
MAX_IOU, MAX_COVERED = 0.1, 0.06
#: Least distance in luminance (of 1) between a digit and the middle 90 % of what it lies on.
MIN_CONTRAST = 0.2
_SUBPIXELS = 4
#: Level of the smoothed ink at which a glyph ends.
_OUTLINE = 0.4
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


# ---------------------------------------------------------------------------------------------
# The handwritten digits
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Handwriting:
    """The handwritten digits.

    Attributes:
        images: ``[1797, 8, 8]`` float32 ink in [0, 1].
        labels: ``[1797]`` int64 classes, 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray


def load_handwriting() -> Handwriting:
    """Load the digits bundled with scikit-learn; the only place that does.

    Raises the audit event ``mmdfkd.load_digits``, so that a run which must not touch the set can
    show that it did not.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    sys.audit('mmdfkd.load_digits')
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The embedded digits sets are made from scikit-learn's bundled digits, and "
            f'scikit-learn cannot be imported ({error}). Run `pip install scikit-learn`.'
        ) from error
    bunch = load_digits()
    return Handwriting(
        images=(bunch.images / 16.0).astype(np.float32), labels=bunch.target.astype(np.int64)
    )


def split_sources(labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Divide the handwritten digits into train and val, class by class.

    Args:
        labels: ``[N]`` classes.
        seed: Seed of the permutation.

    Returns:
        For each split the sorted source indices; disjoint, together all of ``range(N)``.
    """
    rng = np.random.default_rng([seed, len(SPLITS)])
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for label in range(len(CLASSES)):
        members = rng.permutation(np.flatnonzero(labels == label))
        held_out = round(VAL_SHARE * len(members))
        parts['val'].append(members[:held_out])
        parts['train'].append(members[held_out:])
    return {split: np.sort(np.concatenate(arrays)) for split, arrays in parts.items()}


# ---------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------


def _colour(rng: np.random.Generator, luminance: float, strength: float) -> np.ndarray:
    """A random RGB colour ``[3]`` of the given luminance; ``strength`` in [0, 1] is its chroma."""
    chroma = rng.uniform(-1, 1, 3).astype(np.float32)
    chroma -= chroma @ _LUMA
    # The longest step along `chroma` that stays within [0, 1] in every channel.
    room = np.where(chroma > 0, 1 - luminance, luminance) / np.maximum(np.abs(chroma), 1e-6)
    return luminance + strength * room.min() * chroma


def _noise_field(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise ``[size, size]`` in about [-1, 1] with ``cells`` random values a side."""
    coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def _axis(rng: np.random.Generator, size: int) -> np.ndarray:
    """Pixel coordinate ``[size, size]`` along a random direction, 0 in the middle."""
    angle = rng.uniform(0, 2 * math.pi)
    line = np.arange(size, dtype=np.float32) - (size - 1) / 2
    return math.cos(angle) * line[None, :] + math.sin(angle) * line[:, None]


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    if rng.random() < 0.6:
        return _axis(rng, size) / (size / 2)
    centre = rng.uniform(0, size, 2)
    line = np.arange(size, dtype=np.float32)
    distance = np.hypot(line[None, :] - centre[0], line[:, None] - centre[1]).astype(np.float32)
    return 1 - 2 * distance / size


def _clouds(rng: np.random.Generator, size: int) -> np.ndarray:
    return _noise_field(rng, size, int(rng.integers(3, 9)))


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    wave = np.sin(_axis(rng, size) * (2 * math.pi / rng.uniform(6, 30)) + rng.uniform(0, 6.3))
    return np.clip(wave * rng.uniform(1, 6), -1, 1).astype(np.float32)


def _ruled(rng: np.random.Generator, size: int) -> np.ndarray:
    """Ruled or squared paper: thin lines on an even ground."""
    field = np.zeros((size, size), np.float32)
    step = int(rng.integers(9, 24))
    first = rng.integers(0, step, 2)
    field[first[0] :: step] = 1
    if rng.random() < 0.6:
        field[:, first[1] :: step] = 1
    return field * rng.choice([-1, 1]).astype(np.float32)


def _checks(rng: np.random.Generator, size: int) -> np.ndarray:
    step = rng.uniform(8, 28)
    a, b = _axis(rng, size), _axis(rng, size)
    return np.sign(np.sin(a * (math.pi / step)) * np.sin(b * (math.pi / step))).astype(np.float32)


def _speckle(rng: np.random.Generator, size: int) -> np.ndarray:
    field = rng.standard_normal((size, size)).astype(np.float32)
    sigma = float(rng.uniform(0.4, 1.6))
    field = cv2.GaussianBlur(field, (0, 0), sigma)
    return np.clip(field / (2 * field.std() + 1e-6), -1.5, 1.5)


def _paper(rng: np.random.Generator, size: int) -> np.ndarray:
    """Fibres: fine noise smeared along one axis, over slow stains."""
    long, short = rng.uniform(3, 8), rng.uniform(0.3, 0.8)
    sigmas = (long, short) if rng.random() < 0.5 else (short, long)
    field = rng.standard_normal((size, size)).astype(np.float32)
    field = cv2.GaussianBlur(field, (0, 0), sigmas[0], sigmaY=sigmas[1])
    return 0.5 * field / (field.std() + 1e-6) + 0.5 * _noise_field(rng, size, 5)


_GROUNDS: tuple[Callable[[np.random.Generator, int], np.ndarray], ...] = (
    _gradient,
    _clouds,
    _stripes,
    _ruled,
    _checks,
    _speckle,
    _paper,
)


def _canvas(rng: np.random.Generator, size: int) -> np.ndarray:
    """A textured ground ``[size, size, 3]``, float32 RGB in [0, 1]."""
    luminance = rng.uniform(0.08, 0.92)
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = _colour(rng, luminance, rng.uniform(0, 0.8))
    kinds = rng.choice(len(_GROUNDS), size=int(rng.integers(1, 4)), replace=False)
    for kind in kinds:
        field = _GROUNDS[kind](rng, size)
        # The direction in colour space in which the texture moves the ground: mostly luminance.
        tint = rng.uniform(0.03, 0.11) * rng.uniform(0.4, 1.0, 3).astype(np.float32)
        canvas += field[..., None] * tint
    return np.clip(canvas, 0, 1)


def _clutter(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Draw things that are no digits under them: strokes, arcs, blobs, frames, rough patches."""
    size = canvas.shape[0]
    for _ in range(int(rng.integers(0, 7))):
        mask = np.zeros((size, size), np.uint8)
        centre = rng.uniform(0, size, 2)
        radii = rng.uniform(4, size * 0.22, 2)
        thickness = int(rng.integers(1, 4))
        kind = int(rng.integers(0, 5))
        # Sixteenths of a pixel, as cv2's `shift=4` reads them.
        fixed = tuple(int(v * 16) for v in centre)
        axes = tuple(int(v * 16) for v in radii)
        turn = float(rng.uniform(0, 360))
        if kind == 0:
            end = tuple(int(v * 16) for v in rng.uniform(0, size, 2))
            cv2.line(mask, fixed, end, 255, thickness, cv2.LINE_AA, 4)
        elif kind == 1:
            sweep = float(rng.uniform(40, 200))
            cv2.ellipse(mask, fixed, axes, turn, 0, sweep, 255, thickness, cv2.LINE_AA, 4)
        elif kind == 2:
            cv2.ellipse(mask, fixed, axes, turn, 0, 360, 255, -1, cv2.LINE_AA, 4)
        else:
            corners = cv2.boxPoints(((centre[0], centre[1]), (radii[0] * 2, radii[1] * 2), turn))
            points = (corners * 16).astype(np.int32)
            if kind == 3:
                cv2.polylines(mask, [points], True, 255, thickness, cv2.LINE_AA, 4)
            else:
                cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, 4)
        left, top, width, height = cv2.boundingRect(mask)
        if width == 0:
            continue
        part = np.s_[top : top + height, left : left + width]
        alpha, under = mask[part].astype(np.float32) / 255, canvas[part]
        if kind == 4:
            # A rough patch keeps the ground's colour and adds grain or stripes of its own.
            texture = _speckle(rng, size) if rng.random() < 0.5 else _stripes(rng, size)
            under += (alpha * texture[part] * rng.uniform(0.05, 0.12))[..., None]
            np.clip(under, 0, 1, out=under)
            continue
        step = rng.uniform(0.07, 0.22) * rng.choice([-1, 1])
        luminance = float(np.clip((under @ _LUMA)[alpha > 0].mean() + step, 0.03, 0.97))
        alpha *= rng.uniform(0.6, 1.0)
        colour = _colour(rng, luminance, rng.uniform(0, 0.8))
        under += alpha[..., None] * (colour - under)


def _ink_field(image: np.ndarray) -> np.ndarray:
    """Enlarge an 8x8 digit ``[8, 8]`` to a smooth field whose level ``_OUTLINE`` is its outline.

    Returns:
        ``[96, 96]`` float32: eight samples a source pixel, with a margin of two source pixels.
    """
    field = cv2.resize(np.pad(image, 2), None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
    field = cv2.GaussianBlur(field, (0, 0), 2)
    # Sharpened at the scale of a source pixel, or the small holes of 4, 6, 8 and 9 close.
    field += 0.7 * (field - cv2.GaussianBlur(field, (0, 0), 9.6))
    field /= field.max()
    inside = (field > _OUTLINE).astype(np.uint8)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    for part in range(1, count):
        # A faint speck beside the digit would stretch the box to something nobody sees.
        if areas[part - 1] < 0.06 * areas.max():
            field[parts == part] = 0
    return field


def _warp(field: np.ndarray, linear: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Warp an ink field about its middle by ``linear`` and cut it off at its outline.

    Written out, since ``cv2.warpAffine`` rounds coordinates differently from release to release,
    and a box would move with it.

    Args:
        field: ``[H, W]`` ink, nothing at the rim.
        linear: ``[2, 2]`` map from samples of the field to subpixels.
        shape: Height and width of the result in subpixels.

    Returns:
        ``[*shape]`` bool, the glyph, cropped to the rows and columns that hold any of it.
    """
    inverse = np.linalg.inv(linear)
    rows = np.arange(shape[0])[:, None] - (shape[0] - 1) / 2
    columns = np.arange(shape[1])[None, :] - (shape[1] - 1) / 2
    height, width = field.shape
    x = np.clip(inverse[0, 0] * columns + inverse[0, 1] * rows + (width - 1) / 2, 0, width - 1.01)
    y = np.clip(inverse[1, 0] * columns + inverse[1, 1] * rows + (height - 1) / 2, 0, height - 1.01)
    left, top = x.astype(np.int32), y.astype(np.int32)
    right_share, low_share = (x - left).astype(np.float32), (y - top).astype(np.float32)
    flat, start = field.ravel(), top * width + left
    upper = flat[start] + right_share * (flat[start + 1] - flat[start])
    lower = flat[start + width] + right_share * (flat[start + width + 1] - flat[start + width])
    mask = upper + low_share * (lower - upper) > _OUTLINE
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _glyph(field: np.ndarray, linear: np.ndarray, longest: float) -> np.ndarray:
    """Warp an ink field so that its glyph's longest side is ``longest`` pixels.

    Returns:
        Bool mask in subpixels (``_SUBPIXELS`` a pixel), cropped to the glyph: its shape is the
        box. Its longest side is within a subpixel or two of ``longest``, never above `MAX_SIZE`.
    """
    rows, columns = np.nonzero(field > _OUTLINE)
    middle = (np.array(field.shape[::-1]) - 1)[:, None] / 2
    points = linear @ (np.stack([columns, rows]) - middle)
    scale = longest * _SUBPIXELS / np.ptp(points, axis=1).max()
    # The middle of the field stays in the middle, so the farther side decides.
    reach = 2 * np.abs(points).max(axis=1)
    while True:
        width, height = (math.ceil(side * scale) + 2 * _SUBPIXELS for side in reach)
        glyph = _warp(field, linear * scale, (height, width))
        if max(glyph.shape) <= MAX_SIZE * _SUBPIXELS:
            return glyph
        scale *= 0.99


def _linear(rng: np.random.Generator) -> np.ndarray:
    """A slight rotation, shear and change of aspect ``[2, 2]``."""
    angle = math.radians(rng.uniform(-15, 15))
    aspect = math.exp(rng.uniform(-0.12, 0.12))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    skew = np.array([[1.0, rng.uniform(-0.15, 0.15)], [0.0, 1.0]])
    return turn @ skew @ np.diag([aspect, 1 / aspect])


def _is_free(box: np.ndarray, others: list[np.ndarray]) -> bool:
    """Whether ``box`` ``[4]`` (x0, y0, x1, y1) overlaps each of ``others`` little enough."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    for other in others:
        sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
        shared = float(np.maximum(sides, 0).prod())
        other_area = (other[2] - other[0]) * (other[3] - other[1])
        if shared > MAX_COVERED * min(area, other_area):
            return False
        if shared > MAX_IOU * (area + other_area - shared):
            return False
    return True


def _ink_colours(
    rng: np.random.Generator, under: np.ndarray, polarity: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two near colours that stand out from the pixels a digit covers.

    Args:
        rng: Random generator.
        under: ``[N, 3]`` the pixels below the digit and around it.
        polarity: 1 for ink brighter than the ground, -1 for darker; turned round where the ground
            leaves no room.

    Returns:
        Two RGB colours ``[3]`` between which the ink varies.
    """
    low, high = np.quantile(under @ _LUMA, [0.05, 0.95])
    room = {1: 1 - high, -1: low}
    if room[polarity] < MIN_CONTRAST + 0.05:
        polarity = max(room, key=room.get)
    edge = high if polarity > 0 else low
    contrast = rng.uniform(MIN_CONTRAST, max(min(room[polarity], 0.75), MIN_CONTRAST))
    luminance = float(np.clip(edge + polarity * contrast, 0, 1))
    strength = rng.uniform(0, 0.9)
    colour = _colour(rng, luminance, strength)
    other = colour + polarity * rng.uniform(0, 0.12)
    return colour, np.clip(other, 0, 1)


def _paint(
    rng: np.random.Generator, canvas: np.ndarray, glyph: np.ndarray, x: int, y: int, polarity: int
) -> None:
    """Paint a glyph into ``canvas`` in place, its box's corner at subpixel ``(x, y)``."""
    s = _SUBPIXELS
    left, top = x // s, y // s
    height, width = glyph.shape
    columns, rows = -(-(x + width) // s) - left, -(-(y + height) // s) - top
    padded = np.zeros((rows * s, columns * s), np.float32)
    padded[y - top * s :, x - left * s :][:height, :width] = glyph
    alpha = padded.reshape(rows, s, columns, s).mean((1, 3))
    target = canvas[top : top + rows, left : left + columns]
    first, second = _ink_colours(rng, target.reshape(-1, 3), polarity)
    shade = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    target += alpha[..., None] * (first + shade * (second - first) - target)


def draw_image(
    rng: np.random.Generator, handwriting: Handwriting, sources: np.ndarray, size: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draw one detection image.

    Args:
        rng: Random generator; the image is a function of its state.
        handwriting: The handwritten digits.
        sources: Indices of those that may be used.
        size: Side of the square image in pixels, at least 64.

    Returns:
        The image ``[size, size, 3]``, uint8 RGB, and for each digit a mapping of ``label`` (0 to
        9), ``source_index`` and ``bbox`` ``(x, y, w, h)`` in pixels, tight around the drawn glyph
        to a quarter of a pixel.
    """
    canvas = _canvas(rng, size)
    _clutter(rng, canvas)
    s = _SUBPIXELS
    count = int(rng.integers(MIN_DIGITS, MAX_DIGITS + 1))
    longest = np.sort(rng.uniform(MIN_SIZE + 0.5, min(MAX_SIZE, size / 2) - 0.5, count))[::-1]
    # A page written with one pen, or every digit for itself.
    one_pen, pen = rng.random() < 0.5, int(rng.choice([-1, 1]))
    members = [sources[handwriting.labels[sources] == label] for label in range(len(CLASSES))]

    boxes: list[np.ndarray] = []
    digits: list[dict[str, Any]] = []
    for side in longest:
        label = int(rng.integers(len(CLASSES)))
        source = int(rng.choice(members[label]))
        field, linear = _ink_field(handwriting.images[source]), _linear(rng)
        while True:
            glyph = _glyph(field, linear, side)
            height, width = glyph.shape
            for _ in range(20):
                x = int(rng.integers(0, size * s - width + 1))
                y = int(rng.integers(0, size * s - height + 1))
                box = np.array([x, y, x + width, y + height])
                if _is_free(box, boxes):
                    break
            else:
                # No room: try it smaller, and give it up at the smallest size. The first two are
                # never given up: a canvas with one box on it always has room for a small one.
                if side > MIN_SIZE + 0.5 or len(boxes) < MIN_DIGITS:
                    side = max(side * 0.8, MIN_SIZE + 0.5)
                    continue
                break
            polarity = pen if one_pen else int(rng.choice([-1, 1]))
            _paint(rng, canvas, glyph, x, y, polarity)
            boxes.append(box)
            digits.append(
                dict(label=label, source_index=source, bbox=[x / s, y / s, width / s, height / s])
            )
            break

    if rng.random() < 0.5:
        canvas = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.25, 0.55)))
    grain = rng.standard_normal((size, size, 1), np.float32)
    canvas = canvas + grain * np.float32(rng.uniform(0, 0.025))
    return np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8), digits


# ---------------------------------------------------------------------------------------------
# Writing a set
# ---------------------------------------------------------------------------------------------


def _write_png(path: Path, image: np.ndarray) -> None:
    """Write an RGB image ``[H, W, 3]``, uint8, hardly compressed: speed counts here."""
    ok, data = cv2.imencode('.png', image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not ok:
        raise OSError(f'cv2 could not encode an image of shape {image.shape} as PNG for {path}.')
    path.write_bytes(data.tobytes())


def set_digest(root: Path) -> str:
    """SHA-256 over names and contents of all images and annotation files of a set."""
    total = hashlib.sha256()
    found = [p for folder in _FOLDERS for p in (root / folder).rglob('*')]
    for path in sorted(p for p in found if p.suffix in ('.png', '.json')):
        total.update(path.relative_to(root).as_posix().encode() + b'\0')
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _read_stamp(root: Path) -> dict[str, Any] | None:
    try:
        stamp = json.loads((root / STAMP).read_text())
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) else None


def write_set(
    out: Path,
    description: dict[str, Any],
    write: Callable[[Path], None],
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> Path:
    """Write a set so that ``out`` holds either all of it or what was there before.

    The set is written beside ``out`` and renamed when it is complete. One that is already there
    with the same description and unchanged files is kept.

    Args:
        out: The set's folder.
        description: What the set is a function of; goes to the stamp file.
        write: Fills the folder it is given.
        overwrite: Write even when an up-to-date set is there.
        report: Receives a line about what was done.

    Returns:
        The set's folder, resolved.

    Raises:
        FileExistsError: ``out`` holds files that no digits converter wrote.
    """
    out = Path(out).expanduser().resolve()
    if out.exists():
        if not out.is_dir():
            raise FileExistsError(f'{out} is a file; --out must name a folder.')
        stamp = _read_stamp(out)
        if stamp is None and any(out.iterdir()):
            raise FileExistsError(
                f'{out} holds files but no {STAMP}, so it is not a set written by this converter '
                'and is left alone. Name another folder with --out, or remove this one.'
            )
        if stamp is not None and not overwrite:
            found = {k: v for k, v in stamp.items() if k != 'digest'}
            if found != description:
                report(f'{out} was made with other settings; writing it anew')
            elif stamp.get('digest') != set_digest(out):
                report(f'{out} is damaged or was changed; writing it anew')
            else:
                report(f'{out} is up to date (digest {stamp["digest"][:12]})')
                return out
        strangers = sorted({p.name for p in out.iterdir()} - {STAMP, *_FOLDERS})
        if strangers:
            raise FileExistsError(
                f'{out} would be replaced, but also holds {", ".join(strangers)}, which no digits '
                'converter wrote. Move that away, or name another folder with --out.'
            )
    partial = out.with_name(f'.{out.name}.partial-{os.getpid()}')
    retired = out.with_name(f'.{out.name}.retired-{os.getpid()}')
    start = time.perf_counter()
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
        digest = set_digest(partial)
        (partial / STAMP).write_text(json.dumps(dict(description, digest=digest), indent=1) + '\n')
        if out.exists():
            out.rename(retired)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if out.exists():
            shutil.rmtree(retired, ignore_errors=True)
        elif retired.exists():
            retired.rename(out)
    report(f'{out} written in {time.perf_counter() - start:.1f} s (digest {digest[:12]})')
    return out


@dataclass(frozen=True)
class DetectionSpec:
    """What the detection set is a function of.

    Attributes:
        seed: Seed of the split and of every image.
        train: Number of train images.
        val: Number of val images.
        size: Side of the square images in pixels.
    """

    seed: int = 0
    train: int = 4000
    val: int = 500
    size: int = 128

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f'The seed must not be negative, got {self.seed}.')
        if min(self.train, self.val) < 1:
            raise ValueError(
                f'A set needs at least one image a split, got {self.train} and {self.val}.'
            )
        if self.size < 64:
            raise ValueError(
                f'Images of {self.size} px leave no room for the digits; use at least 64.'
            )


#: Set in each worker by `_start_worker`: spec, folder, handwriting, split.
_worker: tuple[DetectionSpec, Path, Handwriting, dict[str, np.ndarray]] | None = None


def _start_worker(
    spec: DetectionSpec, root: Path, handwriting: Handwriting, parts: dict[str, np.ndarray]
) -> None:
    global _worker
    _worker = (spec, root, handwriting, parts)


def _file_name(index: int) -> str:
    return f'{index:06d}.png'


def _make_image(job: tuple[str, int]) -> tuple[str, int, list[dict[str, Any]]]:
    """Draw and write image ``index`` (from 1) of a split; runs in a worker."""
    assert _worker is not None
    spec, root, handwriting, parts = _worker
    split, index = job
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), index])
    image, digits = draw_image(rng, handwriting, parts[split], spec.size)
    _write_png(root / split / _file_name(index), image)
    return split, index, digits


def _coco(
    spec: DetectionSpec, split: str, images: dict[int, list[dict[str, Any]]]
) -> dict[str, Any]:
    """The COCO annotation of one split; category ids are the label plus one."""
    annotations = []
    for image_id, digits in sorted(images.items()):
        for digit in digits:
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=digit['label'] + 1,
                    bbox=digit['bbox'],
                    area=digit['bbox'][2] * digit['bbox'][3],
                    iscrowd=0,
                    source_index=digit['source_index'],
                )
            )
    return dict(
        info=dict(
            description=f'Handwritten digits on textured canvases, {split}',
            version=str(VERSION),
            seed=spec.seed,
        ),
        licenses=[],
        images=[
            dict(id=i, file_name=_file_name(i), width=spec.size, height=spec.size)
            for i in sorted(images)
        ],
        annotations=annotations,
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)],
    )


def _progress(items: Iterable[Any], total: int, report: Callable[[str], None]) -> Iterator[Any]:
    """Pass ``items`` through and report about every fifth part."""
    for done, item in enumerate(items, 1):
        if done == total or done % max(total // 5, 1) == 0:
            report(f'  {done}/{total} images')
        yield item


def write_detection(
    out: Path,
    spec: DetectionSpec | None = None,
    workers: int = 2,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> Path:
    """Write the detection set: ``{train,val}/*.png`` and ``annotations/instances_*.json``.

    Args:
        out: The set's folder.
        spec: What to write; the embedded default if None.
        workers: Worker processes; the files do not depend on it. 0 draws in this process.
        overwrite: Write even when an up-to-date set is there.
        report: Receives progress and the closing line.

    Returns:
        The set's folder, resolved.

    Raises:
        FileExistsError: ``out`` holds files that no digits converter wrote.
        ImportError: scikit-learn is not installed.
        ValueError: ``workers`` is negative.
    """
    spec = spec or DetectionSpec()
    if workers < 0:
        raise ValueError(f'The number of workers must not be negative, got {workers}.')

    def write(root: Path) -> None:
        handwriting = load_handwriting()
        parts = split_sources(handwriting.labels, spec.seed)
        for folder in _FOLDERS:
            (root / folder).mkdir()
        jobs = [(s, i) for s in SPLITS for i in range(1, getattr(spec, s) + 1)]
        report(f'Drawing {len(jobs)} images of {spec.size} px')
        images: dict[str, dict[int, list[dict[str, Any]]]] = {split: {} for split in SPLITS}
        state = (spec, root, handwriting, parts)
        with contextlib.ExitStack() as stack:
            # Before the fork: a child that stops threads it did not inherit waits for ever.
            stack.callback(cv2.setNumThreads, cv2.getNumThreads())
            cv2.setNumThreads(0)
            if workers > 0:
                pool = stack.enter_context(multiprocessing.Pool(workers, _start_worker, state))
                made = pool.imap_unordered(_make_image, jobs, chunksize=25)
            else:
                _start_worker(*state)
                made = map(_make_image, jobs)
            for split, index, digits in _progress(made, len(jobs), report):
                images[split][index] = digits
        for split in SPLITS:
            path = root / 'annotations' / f'instances_{split}.json'
            path.write_text(json.dumps(_coco(spec, split, images[split])))

    description = dict(set='digits_detection', version=VERSION, **asdict(spec))
    return write_set(out, description, write, overwrite, report)


def enlarge(image: np.ndarray, size: int = 32) -> np.ndarray:
    """A handwritten digit ``[8, 8]`` as a grey image ``[size, size, 3]``, uint8 RGB."""
    large = cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
    grey = np.rint(np.clip(large, 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def write_classification(
    out: Path,
    seed: int = 0,
    size: int = 32,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> Path:
    """Write the classification set: ``{train,val}/<class>/<source index>.png``.

    Every handwritten digit appears once, unaugmented, in the same part as in the detection set of
    the same seed.

    Args:
        out: The set's folder.
        seed: Seed of the split.
        size: Side of the images in pixels.
        overwrite: Write even when an up-to-date set is there.
        report: Receives the closing line.

    Returns:
        The set's folder, resolved.

    Raises:
        FileExistsError: ``out`` holds files that no digits converter wrote.
        ImportError: scikit-learn is not installed.
        ValueError: The seed is negative or the size below 8.
    """
    if seed < 0:
        raise ValueError(f'The seed must not be negative, got {seed}.')
    if size < 8:
        raise ValueError(f'The digits are 8 px wide; an image of {size} px would lose them.')

    def write(root: Path) -> None:
        handwriting = load_handwriting()
        for split, sources in split_sources(handwriting.labels, seed).items():
            for name in CLASSES:
                (root / split / name).mkdir(parents=True)
            for source in sources:
                name = CLASSES[handwriting.labels[source]]
                path = root / split / name / f'{source:04d}.png'
                _write_png(path, enlarge(handwriting.images[source], size))

    description = dict(set='digits_classification', version=VERSION, seed=seed, size=size)
    return write_set(out, description, write, overwrite, report)
