import colorsys

Colour = tuple[int, int, int]

INK: Colour = (32, 32, 32)
PAPER: Colour = (255, 255, 255)
RIGHT: Colour = (20, 120, 50)
WRONG: Colour = (190, 30, 30)

# Hues a golden section apart: neighbouring classes differ, and no two of 80 coincide.
_GOLDEN = 0.6180339887498949
_TONES = ((0.85, 0.95), (0.60, 0.85), (0.95, 0.70))


def class_colour(index: int) -> Colour:
    """RGB colour of a class, the same in every picture."""
    saturation, value = _TONES[index // 12 % len(_TONES)]
    r, g, b = colorsys.hsv_to_rgb((0.08 + index * _GOLDEN) % 1, saturation, value)
    return round(255 * r), round(255 * g), round(255 * b)


def readable_on(colour: Colour) -> Colour:
    """Black or white, whichever is read more easily on a colour."""
    r, g, b = colour
    return (0, 0, 0) if 0.299 * r + 0.587 * g + 0.114 * b > 140 else (255, 255, 255)
