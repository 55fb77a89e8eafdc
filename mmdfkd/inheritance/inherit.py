"""A student made from its teacher, without data and without a gradient."""

import time

import torch
from torch import Tensor

from mmdfkd.adapters import Adapter
from mmdfkd.models import MiniViT

from .families import build_heir
from .multiplex import inherit_multiplexed
from .report import InheritanceReport
from .transformer import MAX_TOKENS, inherit_backbone

METHODS = ('slice', 'select')


def _batches(images: Tensor, size: int) -> list[Tensor]:
    return list(images.split(size))


def inherit(
    teacher: Adapter,
    student: Adapter,
    images: Tensor,
    method: str = 'slice',
    batch_size: int = 32,
) -> InheritanceReport:
    """Write the weights of ``student`` in place, from its teacher's.

    ``'slice'`` rotates the stream of tokens, and the pyramid, to their leading directions on
    ``images``, keeps the heads, units and blocks that matter there, and refits every linear layer
    by least squares on the student's own inputs. ``'select'`` keeps evenly spread blocks, channels,
    heads and units as they are. Where nothing is cut, both copy. A student with
    :class:`mmdfkd.models.MiniViT` is started by its ``multiplex``, whatever the method.

    Args:
        teacher (Adapter): The trained network.
        student (Adapter): A network of the same family with equal or smaller sizes.
        images (Tensor): Synthetic RGB images in [0, 1], ``[N, 3, H, W]``. The last eighth, 64 at
            most, is held out to measure the agreement.
        method (str): ``'slice'`` or ``'select'``. Defaults to ``'slice'``.
        batch_size (int): Images per forward. Defaults to 32.

    Returns:
        InheritanceReport: What was kept, and the agreement at 0 steps.

    Raises:
        ValueError: If the student cannot inherit from this teacher; says why.
    """
    if method not in METHODS:
        raise ValueError(f"Inheritance has no method '{method}': choose from {', '.join(METHODS)}.")
    if images.dim() != 4 or images.shape[1] != 3 or len(images) < 8:
        raise ValueError(
            f'Inheritance needs at least 8 RGB images [N, 3, H, W], not {tuple(images.shape)}.'
        )
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
    if isinstance(getattr(student.net, 'backbone', None), MiniViT):
        return inherit_multiplexed(teacher, student, images)
    heir = build_heir(teacher, student)
    start = time.perf_counter()
    parameter = next(student.net.parameters())
    images = images.to(parameter)
    spare = min(64, max(1, len(images) // 8))
    used, spared = images[:-spare], _batches(images[-spare:], batch_size)
    modes = teacher.net.training, student.net.training
    teacher.net.eval()
    student.net.eval()
    try:
        with torch.no_grad():
            report = _inherit(heir, used, spared, method, batch_size)
    finally:
        teacher.net.train(modes[0])
        student.net.train(modes[1])
    report.seconds = time.perf_counter() - start
    return report


def _inherit(
    heir, used: Tensor, spared: list[Tensor], method: str, batch_size: int
) -> InheritanceReport:
    theirs, own = heir.views
    tokens = theirs.embed(heir.teacher.normalizer(used[:1]))[0].shape[:-1].numel()
    few = used[: max(min(len(used), 8), MAX_TOKENS // tokens)]
    # At least eight batches, so that two are held out of the refits.
    few = _batches(few, max(1, min(batch_size, len(few) // 8)))
    many = _batches(used, batch_size)
    normalise = heir.teacher.normalizer
    plan = inherit_backbone(
        theirs,
        own,
        ([normalise(b) for b in many], [normalise(b) for b in few]),
        method,
        heir.readout,
        heir.distance,
    )
    maps = heir.finish(plan, method, few)
    sizes = [
        sum(p.numel() for p in net.parameters()) for net in (heir.teacher.net, heir.student.net)
    ]
    report = InheritanceReport(
        method=method,
        layers=plan.layers,
        heads=plan.heads,
        stream_energy=plan.energy,
        parameters=sizes[1] / sizes[0],
        seconds=0.0,
        images=len(used),
        pyramid_energy=None if maps is None else maps.energy,
        maps={'stream': plan.stream.read.clone()},
    )
    if maps is not None:
        report.maps['pyramid'] = maps.read.clone()
    report.agreement = heir.agreement(spared, maps)
    return report
