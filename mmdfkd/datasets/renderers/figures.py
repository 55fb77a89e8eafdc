"""Figures as paths: unit outlines, filled or stroked, and how they become masks.

A figure is a list of paths in a unit frame whose longest side is 1; it is then turned, stretched,
scaled and placed. Nothing here is a template of anything: every outline is drawn from distributions
over curves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor, pi

import cv2
import numpy as np

from .fields import log_uniform, weighted


@dataclass
class Path:
    """A polygon to fill or a line to stroke.

    Attributes:
        points: ``[N, 2]`` x and y; unit frame or pixels.
        width: None to fill; else the stroke's width, one number or one for each segment.
        closed: Whether a stroke returns to its first point.
    """

    points: np.ndarray
    width: float | np.ndarray | None = None
    closed: bool = False


def _circle(n: int, start: float = 0.0, stop: float = 2 * pi) -> tuple[np.ndarray, np.ndarray]:
    t = np.linspace(start, stop, n, endpoint=stop - start < 2 * pi - 1e-9)
    return np.cos(t), np.sin(t)


def superellipse(rng: np.random.Generator) -> np.ndarray:
    """Ellipses, squircles, diamonds and four-pointed stars, of any aspect."""
    x, y = _circle(40)
    power = 1.0 if rng.random() < 0.5 else log_uniform(rng, 0.4, 3.0)
    points = np.stack([np.sign(x) * np.abs(x) ** power, np.sign(y) * np.abs(y) ** power], 1)
    return points * (1.0, log_uniform(rng, 0.2, 1.0))


def rectangle(rng: np.random.Generator) -> np.ndarray:
    """Rectangles and, now and then, trapezia."""
    a = log_uniform(rng, 0.12, 1.0)
    b = a if rng.random() < 0.7 else a * rng.uniform(0.3, 1.0)
    return np.array([[-1, -a], [1, -b], [1, b], [-1, a]])


def star(rng: np.random.Generator) -> np.ndarray:
    """Polygons with corners at random radii and angles; regular ones among them."""
    n = int(rng.integers(3, 10))
    rough = rng.uniform(0, 0.6)
    t = (np.arange(n) + rng.uniform(-rough, rough, n) * 0.6) * (2 * pi / n)
    r = 1 - rng.uniform(0, rough + 0.15, n)
    if n >= 6 and rng.random() < 0.4:
        r[1::2] *= rng.uniform(0.35, 0.7)
    return np.stack([np.cos(t) * r, np.sin(t) * r], 1)


def pebble(rng: np.random.Generator) -> np.ndarray:
    """Smooth closed outlines: a circle with a few random harmonics."""
    t = np.linspace(0, 2 * pi, 48, endpoint=False)
    k = np.arange(1, 7)
    gain = rng.normal(0, 1, 6) * rng.uniform(0.1, 0.6) / k
    r = np.exp(np.cos(t[:, None] * k + rng.uniform(0, 2 * pi, 6)) @ gain)
    return np.stack([np.cos(t) * r, np.sin(t) * r], 1)


def spline(points: np.ndarray, closed: bool, per_segment: int = 8) -> np.ndarray:
    """A uniform Catmull-Rom curve through ``points`` ``[N, 2]``."""
    if closed:
        p = np.concatenate([points[-1:], points, points[:2]])
    else:
        p = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = (np.arange(per_segment) / per_segment)[:, None, None]
    p0, p1, p2, p3 = p[:-3], p[1:-2], p[2:-1], p[3:]
    curve = p1 + 0.5 * t * (
        p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0))
    )
    curve = curve.transpose(1, 0, 2).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, points[-1:]])


def walk(rng: np.random.Generator) -> np.ndarray:
    """Corners of a path that turns: from gentle bends to folds, right angles among them."""
    n = int(rng.integers(2, 7))
    if rng.random() < 0.25:
        turn = rng.choice([-pi / 2, pi / 2, pi / 4, -pi / 4], n)
    else:
        turn = rng.normal(rng.uniform(-1.2, 1.2), rng.uniform(0.2, 1.4), n)
    step = np.exp(rng.normal(0, 0.5, n))
    heading = np.cumsum(turn) + rng.uniform(0, 2 * pi)
    moves = np.stack([np.cos(heading), np.sin(heading)], 1) * step[:, None]
    return np.concatenate([np.zeros((1, 2)), np.cumsum(moves, 0)])


def scatter(rng: np.random.Generator) -> np.ndarray:
    """A few points anywhere: a curve through them crosses itself often."""
    return rng.uniform(-1, 1, (int(rng.integers(3, 7)), 2)) * (1.0, log_uniform(rng, 0.3, 1.0))


def harmonic(rng: np.random.Generator) -> np.ndarray:
    """Closed curves of a few harmonics: loops, bows and knots."""
    t = np.linspace(0, 2 * pi, 56, endpoint=False)
    k = np.arange(1, 4)
    weight = rng.normal(0, 1, (3, 2)) / k[:, None] ** rng.uniform(0.3, 1.5)
    phase = rng.uniform(0, 2 * pi, (2, 3))
    return np.stack([np.cos(t[:, None] * k + phase[i]) @ weight[:, i] for i in (0, 1)], 1)


def coil(rng: np.random.Generator) -> np.ndarray:
    """Arcs and spirals: a turning line whose radius may change."""
    sweep = rng.uniform(0.5, 2.0) * pi if rng.random() < 0.7 else rng.uniform(2.0, 6.0) * pi
    n = int(12 + sweep * 4)
    x, y = _circle(n, 0.0, sweep)
    r = np.linspace(1.0, 1.0 if rng.random() < 0.4 else rng.uniform(0.1, 0.9), n)
    return np.stack([x * r, y * r * log_uniform(rng, 0.35, 1.0)], 1)


def ripple(rng: np.random.Generator) -> np.ndarray:
    """A sine line of a few periods, its amplitude changing along it."""
    t = np.linspace(0, 1, 40)
    swing = rng.uniform(0.1, 0.8) * np.linspace(1, rng.uniform(0, 1), 40)
    return np.stack([2 * t - 1, np.sin(t * 2 * pi * rng.uniform(0.5, 4)) * swing], 1)


def _unit(points: np.ndarray) -> np.ndarray:
    """Centre and scale ``points`` so that the longest side of their box is 1."""
    low, high = points.min(0), points.max(0)
    return (points - (low + high) / 2) / max(float((high - low).max()), 1e-6)


_OUTLINES = (superellipse, rectangle, star, pebble)
_LINES = (walk, scatter, coil, ripple)
_LINE_SHARES = np.cumsum((0.36, 0.24, 0.28, 0.12))


def _open_line(rng: np.random.Generator) -> np.ndarray:
    kind = _LINES[weighted(rng, _LINE_SHARES)]
    points = kind(rng)
    if kind is scatter or (kind is walk and rng.random() < 0.55 and len(points) > 2):
        points = spline(points, closed=False)
    return points


def _width(rng: np.random.Generator, n: int) -> float | np.ndarray:
    """Stroke width in the unit frame, thin to fat, even or changing along ``n`` segments."""
    mean = log_uniform(rng, 0.025, 0.3)
    if rng.random() < 0.65 or n < 2:
        return mean
    t = np.linspace(0, 1, n)
    return mean * np.exp(
        rng.uniform(0.2, 0.8) * np.sin(2 * pi * (t * rng.uniform(0.3, 2) + rng.random()))
    )


def solid(rng: np.random.Generator) -> list[Path]:
    """One filled outline."""
    return [Path(_unit(_OUTLINES[int(rng.integers(4))](rng)))]


def ring(rng: np.random.Generator) -> list[Path]:
    """One stroked outline."""
    points = _unit(_OUTLINES[int(rng.integers(4))](rng))
    return [Path(points, log_uniform(rng, 0.03, 0.25), closed=True)]


def line(rng: np.random.Generator) -> list[Path]:
    """One open stroke."""
    points = _unit(_open_line(rng))
    return [Path(points, _width(rng, len(points) - 1))]


def loop(rng: np.random.Generator) -> list[Path]:
    """One closed stroke, often crossing itself."""
    points = harmonic(rng) if rng.random() < 0.5 else spline(scatter(rng), closed=True)
    points = _unit(points)
    return [Path(points, _width(rng, len(points)), closed=True)]


def knot(rng: np.random.Generator) -> list[Path]:
    """Two to four strokes of one pen that meet: each starts somewhere on an earlier one."""
    first = loop(rng) if rng.random() < 0.4 else line(rng)
    width = float(np.mean(first[0].width))
    paths = [Path(first[0].points, width, first[0].closed)]
    for _ in range(int(rng.integers(1, 4))):
        points = _unit(_open_line(rng) if rng.random() < 0.8 else harmonic(rng))
        points = points * rng.uniform(0.3, 1.0)
        host = paths[int(rng.integers(len(paths)))].points
        # Half of the joints sit at an end of the earlier stroke, the others anywhere along it.
        at = -1 if rng.random() < 0.5 else int(rng.integers(len(host)))
        joint = 0 if rng.random() < 0.7 else int(rng.integers(len(points)))
        paths.append(Path(points - points[joint] + host[at], width))
    everything = np.concatenate([p.points for p in paths])
    low, high = everything.min(0), everything.max(0)
    scale = 1 / max(float((high - low).max()), 1e-6)
    for p in paths:
        p.points = (p.points - (low + high) / 2) * scale
    return paths


def hatch(rng: np.random.Generator) -> list[Path]:
    """A few parallel strokes."""
    n = int(rng.integers(2, 8))
    gap = 1 / n
    width = gap * rng.uniform(0.15, 0.6)
    ends = (
        rng.uniform(0.2, 0.5, (n, 2))
        if rng.random() < 0.5
        else np.full((n, 2), rng.uniform(0.2, 0.5))
    )
    y = (np.arange(n) + 0.5) * gap - 0.5
    return [Path(np.array([[-a, v], [b, v]]), width) for (a, b), v in zip(ends, y, strict=True)]


def swarm(rng: np.random.Generator) -> list[Path]:
    """Many small copies of one figure, scattered or in a row."""
    n = int(rng.integers(3, 11))
    model = (solid, ring, line)[int(rng.integers(3))](rng)
    small = log_uniform(rng, 0.08, 0.3)
    if rng.random() < 0.35:
        centres = np.stack([np.linspace(-0.5, 0.5, n), rng.normal(0, 0.04, n)], 1)
    else:
        centres = rng.uniform(-0.5, 0.5, (n, 2))
    paths = []
    for centre in centres:
        scale = small * rng.uniform(0.6, 1.2)
        matrix = _turn(rng.uniform(0, 2 * pi)) * scale
        paths += [
            Path(p.points @ matrix + centre, _scaled(p.width, scale), p.closed) for p in model
        ]
    return paths


Figure = Callable[[np.random.Generator], list[Path]]
#: The kinds and how often each is chosen. Strokes lead: most networks answer to figures with
#: structure.
KINDS: tuple[tuple[Figure, float], ...] = (
    (solid, 0.2),
    (ring, 0.1),
    (line, 0.2),
    (loop, 0.14),
    (knot, 0.2),
    (hatch, 0.06),
    (swarm, 0.1),
)
_CUMULATIVE = np.cumsum([share for _, share in KINDS])


def any_figure(rng: np.random.Generator) -> list[Path]:
    """A figure of a random kind, in the unit frame."""
    return KINDS[weighted(rng, _CUMULATIVE)][0](rng)


def _turn(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


def _scaled(width: float | np.ndarray | None, scale: float) -> float | np.ndarray | None:
    return None if width is None else width * scale


def place(
    paths: list[Path], centre: tuple[float, float], extent: float, angle: float, aspect: float
) -> list[Path]:
    """From the unit frame to pixels.

    Args:
        paths (list[Path]): In the unit frame.
        centre (tuple[float, float]): x and y in pixels.
        extent (float): Pixels for the unit.
        angle (float): Radians.
        aspect (float): The y axis is squeezed by it before the turn; in (0, 1].
    """
    matrix = (_turn(angle) * (1.0, aspect)).T * extent
    return [Path(p.points @ matrix + centre, _scaled(p.width, extent), p.closed) for p in paths]


def rasterise(
    paths: list[Path], h: int, w: int, room: float = 0.0
) -> tuple[np.ndarray, int, int] | None:
    """The mask of a figure, as far as it lies in an image of ``h`` x ``w`` pixels.

    Small figures are drawn at up to four times the resolution, so that fine widths keep their
    value.

    Args:
        paths (list[Path]): In pixels.
        h (int): Height of the image.
        w (int): Width of the image.
        room (float): Pixels to leave around the figure, for what will blur it.

    Returns:
        tuple | None: Mask uint8 ``[mh, mw]``, its first row and column; None where nothing is
        inside.
    """
    widest = max(0.0 if p.width is None else float(np.max(p.width)) for p in paths)
    points = np.concatenate([p.points for p in paths])
    margin = widest / 2 + 1.5 + room
    (x0, y0), (x1, y1) = points.min(0) - margin, points.max(0) + margin
    x0, y0 = max(0, floor(x0)), max(0, floor(y0))
    x1, y1 = min(w, ceil(x1) + 1), min(h, ceil(y1) + 1)
    if x1 - x0 < 2 or y1 - y0 < 2:
        return None
    fine = int(np.clip(96 // max(x1 - x0, y1 - y0), 1, 4))
    mask = np.zeros(((y1 - y0) * fine, (x1 - x0) * fine), np.uint8)
    for p in paths:
        # Sixteenths of a pixel; pixel centres are whole numbers.
        dots = np.rint(((p.points - (x0, y0) + 0.5) * fine - 0.5) * 16).astype(np.int32)
        if p.width is None:
            cv2.fillPoly(mask, [dots], 255, cv2.LINE_AA, 4)
        elif np.ndim(p.width) == 0:
            width = max(1, round(float(p.width) * fine))
            cv2.polylines(mask, [dots], p.closed, 255, width, cv2.LINE_AA, 4)
        else:
            ends = np.roll(dots, -1, 0) if p.closed else dots[1:]
            widths = np.maximum(1, np.rint(np.asarray(p.width) * fine)).astype(int).tolist()
            for a, b, width in zip(dots.tolist(), ends.tolist(), widths, strict=False):
                cv2.line(mask, a, b, 255, width, cv2.LINE_AA, 4)
    if fine > 1:
        mask = cv2.resize(mask, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    return mask, y0, x0
