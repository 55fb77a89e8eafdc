from torch import nn


def require_like_anchors(who: str, student: nn.Module, teacher: nn.Module) -> None:
    """Insist that two heads of mmdet look at the same anchors; heads without anchors pass.

    Raises:
        ValueError: If strides, scales, ratios or the number of levels differ; names both.
    """
    both = [_anchors(head) for head in (student, teacher)]
    if None not in both and both[0] != both[1]:
        raise ValueError(
            f"{who}: the student's anchors, sides by stride, are {_shown(both[0])}, the teacher's "
            f'{_shown(both[1])}: give both the same strides, scales and ratios.'
        )


def _anchors(head: nn.Module) -> dict[tuple[int, int], list[list[float]]] | None:
    generator = getattr(head, 'prior_generator', None)
    base = getattr(generator, 'base_anchors', None)
    if base is None:
        return None
    rounded = [[[round(float(x), 3) for x in box] for box in level] for level in base]
    return dict(zip(map(tuple, generator.strides), rounded, strict=True))


def _shown(anchors: dict[tuple[int, int], list[list[float]]]) -> dict[int, list[str]]:
    return {
        stride[0]: [f'{x1 - x0:.0f}x{y1 - y0:.0f}' for x0, y0, x1, y1 in boxes]
        for stride, boxes in anchors.items()
    }
