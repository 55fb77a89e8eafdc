"""A student whose layers share weights, started from a plain ViT."""

import time

import torch
from torch import Tensor

from mmdfkd.adapters import Adapter
from mmdfkd.utils.vit_names import family_of

from .families import compare_answers
from .report import InheritanceReport


@torch.no_grad()
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
    start = time.perf_counter()
    backbone, mini = teacher.net.backbone, student.net.backbone
    weights = backbone.state_dict()
    if family_of(weights) is None:
        raise ValueError(
            f'MiniViT inherits from a plain ViT, not from a {type(backbone).__name__}.'
        )
    mini.multiplex(weights)
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
        method='multiplex',
        layers=list(range(mini.num_layers)),
        heads=[list(range(layer.num_heads)) for layer in mini.layers],
        stream_energy=1.0,
        parameters=sizes[1] / sizes[0],
        seconds=0.0,
        images=len(images),
        agreement=compare_answers(teacher, student, batches),
        maps={'stream': torch.eye(mini.embed_dims, dtype=torch.double, device=device)},
    )
    student.net.train(modes)
    report.seconds = time.perf_counter() - start
    return report
