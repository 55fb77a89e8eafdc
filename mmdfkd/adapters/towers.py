"""The convolutions of a dense head before its predictors: read them, or put others in."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from mmdfkd.losses.dense import with_moments_of

#: Names of both towers, and of the modules that mmdet keeps them in.
TOWERS = {'cls': 'cls_convs', 'reg': 'reg_convs'}


def stages(head: nn.Module, tower: str) -> list[list[nn.Module]]:
    """The modules of each step of a tower: one for all levels, or one a level (RTMDet)."""
    convs = getattr(head, TOWERS[tower])
    if len(convs) and isinstance(convs[0], nn.ModuleList):
        return [list(step) for step in zip(*convs, strict=True)]
    return [[conv] for conv in convs]


def entering(head: nn.Module, convs: int) -> tuple[int, int]:
    """Levels, and channels of what enters a dense head's convolution ``convs``, from 0.

    Raises:
        ValueError: If a tower has fewer convolutions.
    """
    depth = min(len(stages(head, tower)) for tower in TOWERS)
    if not 0 <= convs <= depth:
        raise ValueError(f'{type(head).__name__} has {depth} convolutions a tower, not {convs}.')
    width = head.feat_channels if convs else head.in_channels
    return len(head.prior_generator.strides), int(width)


@contextmanager
def recorded(head: nn.Module) -> Iterator[dict[str, list[list[Tensor]]]]:
    """Keep what each step of both towers gives, level by level, of one forward of the head."""
    caught: dict[str, list[list[Tensor]]] = {}
    handles = []
    for tower in TOWERS:
        caught[tower] = []
        for modules in stages(head, tower):
            outputs: list[Tensor] = []
            caught[tower].append(outputs)
            for module in modules:
                handles.append(
                    module.register_forward_hook(lambda _m, _i, out, to=outputs: to.append(out))
                )
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(
    head: nn.Module, towers: dict[str, Sequence[Tensor]], step: int, restandardise: bool
) -> Iterator[None]:
    """Let the head go on from others' features after its step ``step``, in one forward.

    Args:
        head (nn.Module): A dense head of mmdet.
        towers (dict[str, Sequence[Tensor]]): For each tower one map a level.
        step (int): From 0.
        restandardise (bool): Whether to give them mean and variance of what they replace.
    """
    handles = []
    for tower, maps in towers.items():
        given = iter(maps)

        def put(_module, _inputs, output, given=given):
            other = next(given)
            return with_moments_of(other, output) if restandardise else other

        for module in stages(head, tower)[step]:
            handles.append(module.register_forward_hook(put))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
