"""A student made from its teacher, without data and without a gradient."""

import time

import torch
from torch import Tensor

from mmdfkd.adapters import Adapter
from mmdfkd.models import MiniViT
from mmdfkd.models.backbones.plain_vit import PlainViT
from mmdfkd.utils.image_count import images_at_once

from .families import Heir, build_heir
from .multiplex import inherit_multiplexed, inherit_whole
from .recipe import Recipe, recipe_of
from .report import InheritanceReport
from .transformer import MAX_TOKENS

# Images that the statistics are taken on, at least.
_LEAST_IMAGES = 8
# Images of a forward, of up to 256 x 256 px.
_AT_ONCE = 32


def _batches(images: Tensor, size: int) -> list[Tensor]:
    return list(images.split(size))


def check_image_count(images: object, inherits: bool) -> None:
    """Raise ValueError where ``model.inheritance.images`` is no number of images that suffices."""
    least = _LEAST_IMAGES if inherits else 1
    if isinstance(images, bool) or not isinstance(images, int) or images < least:
        raise ValueError(
            f'model.inheritance.images={images!r} must be a number of images, at least {least}.'
        )


def heir_of(teacher: Adapter, student: Adapter) -> Heir | None:
    """What will write a student's weights; None where its own backbone does.

    No image is needed, so that a run is refused before any is made.

    Raises:
        ValueError: If the student cannot inherit from this teacher; says why.
    """
    if teacher.num_classes != student.num_classes:
        raise ValueError(
            f'The teacher has {teacher.num_classes} classes, the student {student.num_classes}: '
            'they must be the same.'
        )
    if not teacher.normalizer.same_as(student.normalizer):
        raise ValueError(
            "The student's data_preprocessor gives another input than the teacher's (mean, std "
            'or channel order): make them equal.'
        )
    for net in (teacher.net, student.net):
        if not hasattr(net, 'backbone'):
            raise ValueError(
                f'A {type(net).__name__} has no backbone of its own to inherit from or to: set '
                "model.student.init to 'random', 'config' or a checkpoint."
            )
    if isinstance(student.net.backbone, MiniViT | PlainViT):
        return None
    return build_heir(teacher, student)


def inherit(
    teacher: Adapter,
    student: Adapter,
    images: Tensor,
    method: str = 'slice',
    batch_size: int | None = None,
    **options: str | None,
) -> InheritanceReport:
    """Write the weights of ``student`` in place, from its teacher's.

    ``'slice'`` rotates the stream of tokens, and the pyramid, to their leading directions on
    ``images``, keeps the heads, units and blocks that matter there, and refits every linear layer
    by least squares on the student's own inputs. ``'select'`` keeps evenly spread blocks, channels,
    heads and units as they are. ``options`` exchange parts of either. Where nothing is cut, all
    copy. A student with
    :class:`mmdfkd.models.MiniViT` is started by its ``multiplex``, one with
    :class:`mmdfkd.models.SlimmedViT` or :class:`mmdfkd.models.ConvAttentionViT` by its
    ``take_over``, whatever the method.

    Args:
        teacher (Adapter): The trained network.
        student (Adapter): A network of the same family with equal or smaller sizes.
        images (Tensor): Synthetic RGB images in [0, 1], ``[N, 3, H, W]``. The last eighth, 64 at
            most, is held out to measure the agreement.
        method (str): ``'slice'`` or ``'select'``. Defaults to ``'slice'``.
        batch_size (int, optional): Images per forward; by default 32 of up to 256 x 256 px, fewer
            of larger ones.
        **options: ``layers``, ``channels``, ``units`` and ``refit`` of
            :func:`~mmdfkd.inheritance.recipe.recipe_of`.

    Returns:
        InheritanceReport: What was kept, and the agreement at 0 steps.

    Raises:
        ValueError: If the student cannot inherit from this teacher; says why.
    """
    recipe = recipe_of(method, **options)
    if images.dim() != 4 or images.shape[1] != 3 or len(images) < _LEAST_IMAGES:
        raise ValueError(
            f'Inheritance needs at least {_LEAST_IMAGES} RGB images [N, 3, H, W], not '
            f'{tuple(images.shape)}.'
        )
    heir = heir_of(teacher, student)
    if heir is None:
        grown = isinstance(student.net.backbone, MiniViT)
        return (inherit_multiplexed if grown else inherit_whole)(teacher, student, images)
    start = time.perf_counter()
    parameter = next(student.net.parameters())
    images = images.to(parameter)
    spare = min(64, max(1, len(images) // 8))
    if batch_size is None:
        batch_size = images_at_once(_AT_ONCE, tuple(images.shape[-2:]))
    used, spared = images[:-spare], _batches(images[-spare:], batch_size)
    modes = teacher.net.training, student.net.training
    teacher.net.eval()
    student.net.eval()
    try:
        with torch.no_grad():
            report = _inherit(heir, used, spared, recipe, batch_size)
    finally:
        teacher.net.train(modes[0])
        student.net.train(modes[1])
    report.seconds = time.perf_counter() - start
    return report


def _inherit(
    heir: Heir, used: Tensor, spared: list[Tensor], recipe: Recipe, batch_size: int
) -> InheritanceReport:
    normalise = heir.teacher.normalizer
    tokens = heir.tokens(normalise(used[:1]))
    few = used[: max(min(len(used), 8), MAX_TOKENS // tokens)]
    # At least eight batches, so that two are held out of the refits.
    few = _batches(few, max(1, min(batch_size, len(few) // 8)))
    many = _batches(used, batch_size)
    plan = heir.backbone(([normalise(b) for b in many], [normalise(b) for b in few]), recipe)
    maps = heir.finish(plan, recipe, few)
    sizes = [
        sum(p.numel() for p in net.parameters()) for net in (heir.teacher.net, heir.student.net)
    ]
    report = InheritanceReport(
        method=recipe.method,
        options=recipe.options(),
        layers=plan.layers,
        heads=plan.heads,
        stream_energy=plan.energy,
        parameters=sizes[1] / sizes[0],
        seconds=0.0,
        images=len(used),
        pyramid_energy=None if maps is None else maps.energy,
        maps={'stream': plan.stream.read.clone()},
    )
    for index, stage in enumerate(plan.stages):
        report.maps[f'stage{index}'] = stage.read.clone()
    if maps is not None:
        report.maps['pyramid'] = maps.read.clone()
    report.agreement = heir.agreement(spared, maps)
    return report
