"""A student with all of a plain ViT's weights: shared by layers, or beside others of its own."""

import time

import torch
from torch import Tensor

from mmdfkd.adapters import Adapter
from mmdfkd.utils.vit_names import family_of

from .families import compare_answers
from .report import InheritanceReport


def inherit_multiplexed(teacher: Adapter, student: Adapter, images: Tensor) -> InheritanceReport:
    """Start a classifier with :class:`mmdfkd.models.MiniViT` from its teacher.

    Args:
        teacher (Adapter): A plain ViT classifier of the student's depth and widths.
        student (Adapter): Its classification head is of the teacher's kind.
        images (Tensor): Synthetic RGB images in [0, 1], to measure the agreement on.

    Returns:
        InheritanceReport: Method ``'multiplex'``.

    Raises:
        ValueError: If the teacher is no plain ViT, or of other sizes.
    """
    return _inherit(teacher, student, images, 'multiplex')


def inherit_whole(teacher: Adapter, student: Adapter, images: Tensor) -> InheritanceReport:
    """Start a classifier that is its teacher and more, such as a :class:`mmdfkd.models.SlimmedViT`.

    Args:
        teacher (Adapter): As of :func:`inherit_multiplexed`.
        student (Adapter): Likewise.
        images (Tensor): Likewise.

    Returns:
        InheritanceReport: Method ``'take_over'``.

    Raises:
        ValueError: If the teacher is no plain ViT, or of other sizes.
    """
    return _inherit(teacher, student, images, 'take_over')


@torch.no_grad()
def _inherit(teacher: Adapter, student: Adapter, images: Tensor, method: str) -> InheritanceReport:
    """Let the student's backbone do it by its ``method``; the head is copied."""
    start = time.perf_counter()
    backbone, own_backbone = teacher.net.backbone, student.net.backbone
    weights = backbone.state_dict()
    if family_of(weights) is None:
        raise ValueError(
            f'{type(own_backbone).__name__} inherits from a plain ViT, not from a '
            f'{type(backbone).__name__}.'
        )
    getattr(own_backbone, method)(weights)
    head, own = teacher.net.head.state_dict(), student.net.head.state_dict()
    if {k: v.shape for k, v in head.items()} != {k: v.shape for k, v in own.items()}:
        raise ValueError(
            f'The teacher has a {type(teacher.net.head).__name__} and the student a '
            f'{type(student.net.head).__name__} of other weights: give both one kind of head.'
        )
    student.net.head.load_state_dict(head)
    sizes = [sum(p.numel() for p in a.net.parameters()) for a in (teacher, student)]
    device = next(student.net.parameters()).device
    modes = student.net.training
    student.net.eval()
    batches = images[-min(64, max(1, len(images) // 8)) :].to(device).split(32)
    report = InheritanceReport(
        method=method,
        layers=list(range(own_backbone.num_layers)),
        heads=[list(range(layer.num_heads)) for layer in own_backbone.layers],
        stream_energy=1.0,
        parameters=sizes[1] / sizes[0],
        seconds=0.0,
        images=len(images),
        agreement=compare_answers(teacher, student, batches),
        maps={'stream': torch.eye(own_backbone.embed_dims, dtype=torch.double, device=device)},
    )
    student.net.train(modes)
    report.seconds = time.perf_counter() - start
    return report
