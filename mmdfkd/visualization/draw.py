"""Single pictures: enlarge, draw boxes, write captions. Images are RGB ``[H, W, 3]`` uint8."""

from collections.abc import Sequence

import cv2
import numpy as np

from .colours import INK, PAPER, Colour, class_colour, readable_on

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SCALE = 0.42
_LINE = 16


def class_name(names: Sequence[str], label: int) -> str:
    """Name of a class; its index where there is no name, or none that the font can write."""
    name = str(names[label]) if 0 <= label < len(names) else ''
    return name if name and name.isascii() else str(label)


def fit(image: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """Resize an image so that its longer side is about ``side`` pixels.

    Small images grow by a whole factor with sharp pixels, of which a viewer can judge; larger ones
    are interpolated.

    Returns:
        tuple: The image and the factor from old to new pixels.
    """
    h, w = image.shape[:2]
    factor = side / max(h, w)
    mode = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    if factor >= 1.5:
        factor, mode = float(max(2, round(factor))), cv2.INTER_NEAREST
    size = max(1, round(w * factor)), max(1, round(h * factor))
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=mode), factor


def _text_size(text: str, scale: float) -> tuple[int, int, int]:
    (w, h), base = cv2.getTextSize(text, _FONT, scale, 1)
    return w, h, base


def _shortened(text: str, width: int, scale: float) -> str:
    if _text_size(text, scale)[0] <= width:
        return text
    while text and _text_size(text + '..', scale)[0] > width:
        text = text[:-1]
    return text + '..'


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float] | None = None,
) -> np.ndarray:
    """Draw labelled boxes.

    Args:
        image (np.ndarray): RGB uint8; unchanged.
        boxes (np.ndarray): ``[N, 4]`` xyxy pixels of the image.
        labels (Sequence[int]): Class of each box.
        names (Sequence[str]): Class names.
        scores (Sequence[float], optional): Written behind the name.
    """
    image = np.ascontiguousarray(image).copy()
    height, width = image.shape[:2]
    tags = []
    for i, (box, label) in enumerate(zip(np.asarray(boxes), labels, strict=True)):
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        colour = class_colour(int(label))
        # A dark line below the coloured one keeps it visible on any ground.
        cv2.rectangle(image, (x1, y1), (x2, y2), INK, 3, cv2.LINE_AA)
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, 2, cv2.LINE_AA)
        text = class_name(names, int(label))
        if scores is not None:
            text += f' {100 * float(scores[i]):.0f}'
        tags.append((x1, y1, text, colour))
    # Tags last: no box crosses them.
    for x1, y1, text, colour in tags:
        w, h, base = _text_size(text, _SCALE)
        left = min(max(x1 - 1, 0), max(width - w - 4, 0))
        bottom = y1 if y1 >= h + base + 2 else min(y1 + h + base + 2, height)
        cv2.rectangle(image, (left, bottom - h - base - 2), (left + w + 4, bottom), colour, -1)
        origin = (left + 2, bottom - base)
        cv2.putText(image, text, origin, _FONT, _SCALE, readable_on(colour), 1, cv2.LINE_AA)
    return image


def caption(image: np.ndarray, lines: Sequence[tuple[str, Colour]]) -> np.ndarray:
    """Add lines of text below an image, cut to its width."""
    strip = np.full((_LINE * len(lines) + 4, image.shape[1], 3), PAPER, np.uint8)
    for i, (text, colour) in enumerate(lines):
        text = _shortened(text, image.shape[1] - 4, _SCALE)
        cv2.putText(strip, text, (2, _LINE * (i + 1) - 3), _FONT, _SCALE, colour, 1, cv2.LINE_AA)
    return np.concatenate([image, strip])


def tile(
    panels: Sequence[np.ndarray], columns: int, gap: int = 8, heads: Sequence[str] = ()
) -> np.ndarray:
    """Lay panels out row by row on white.

    Args:
        panels (Sequence[np.ndarray]): RGB uint8; each is centred in a cell as wide as its column
            and as high as its row.
        columns (int): Panels a row.
        gap (int): Pixels between panels and around them.
        heads (Sequence[str]): A heading for each column.
    """
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    used = max(len(row) for row in rows)
    widths = [max(row[c].shape[1] for row in rows if c < len(row)) for c in range(used)]
    heights = [max(p.shape[0] for p in row) for row in rows]
    top = gap + (26 if heads else 0)
    canvas = np.full(
        (top + sum(heights) + gap * len(rows), gap + sum(widths) + gap * used, 3), PAPER, np.uint8
    )
    for text, left, width in zip(
        heads, np.cumsum([gap] + [w + gap for w in widths]), widths, strict=False
    ):
        w, h, _ = _text_size(text, 0.6)
        cv2.putText(
            canvas, text, (int(left) + (width - w) // 2, gap + h), _FONT, 0.6, INK, 1, cv2.LINE_AA
        )
    y = top
    for row, height in zip(rows, heights, strict=True):
        x = gap
        for panel, width in zip(row, widths, strict=False):
            h, w = panel.shape[:2]
            up, left = y + (height - h) // 2, x + (width - w) // 2
            canvas[up : up + h, left : left + w] = panel
            x += width + gap
        y += height + gap
    return canvas
