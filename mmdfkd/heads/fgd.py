from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmdfkd.adapters import Observation, Targets
from mmdfkd.losses import box_places, fgd_focal, masked_mimic
from mmdfkd.registry import MODELS

from .object_watch import ObjectWatch
from .pyramid import PyramidLevels


class GlobalContext(nn.Module):
    """A map and what it says as a whole: GCNet's block, as FGD compares maps (its Eq. 12).

    ``F + W_2 ReLU(LN(W_1 sum_p a_p F_p))`` with ``a = softmax(W_k F)`` over the places.

    Args:
        channels (int): In and out; half of them in between.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 2, 1)
        self.where = nn.Conv2d(channels, 1, 1)
        self.change = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, channels),
        )
        # As GCNet's: at the start the map alone.
        nn.init.zeros_(self.change[-1].weight)
        nn.init.zeros_(self.change[-1].bias)

    def forward(self, maps: Tensor) -> Tensor:
        """``[N, C, H, W]``."""
        share = self.where(maps).flatten(2).softmax(-1)
        context = (maps.flatten(2) * share).sum(-1)
        return maps + self.change(context)[..., None, None]


@MODELS.register_module()
class FGDHead(ObjectWatch, PyramidLevels):
    """Focal and global distillation of the pyramid (FGD, Yang et al., CVPR 2022).

    Foreground and background apart, each weighted by where and in which channels the teacher's map
    is strong; the student's own masks follow the teacher's; and the maps with their global context.
    The published code has a block of context for either network and trains both; here one reads
    both, as the paper's equation has it, and is trained on the student's map. Terms are means in
    units of the teacher's energy, so that weights hold at every resolution, batch and width
    (:func:`~mmdfkd.losses.fgd_focal`).

    What is foreground: labelled boxes in the paper, here the teacher's detections, or the boxes
    that an image was made to show, where every image of the batch was: an inverting source with
    ``share=1.0``. An image without any is background; where no image had one in ``patience`` steps
    on end, that is said, and what is configured happens.

    Args:
        boxes (str): ``'teacher'``: its detections; ``'layout'``: those of the image's targets;
            ``'auto'``: the layout where the batch has one. Defaults to ``'auto'``.
        threshold (float | Sequence[float]): Least score of a detection that counts, in (0, 1); one
            for each class, or one for all. Defaults to 0.3.
        foreground_weight (float): Weight of the objects. Defaults to 1.
        background_weight (float): Weight of the rest; half of the objects', as published. Defaults
            to 0.5.
        attention_weight (float): Weight of the masks. Defaults to 0.5.
        global_weight (float): Weight of the maps with their context. Defaults to 0.5.
        temperature (float): Of the masks. Defaults to 0.5, as published.
        levels (Sequence[int], optional): As of :class:`~mmdfkd.heads.pyramid.PyramidHead`.
        align (str | Mapping): Likewise.
        on_empty (str): ``'warn'`` goes on, ``'lower'`` halves the threshold, down to
            0.05, ``'stop'`` ends the run; nothing of it with ``boxes='layout'``. Defaults to
            ``'warn'``.
        patience (int): Steps on end without an object after which that happens. Defaults to 200.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On an argument that makes no sense.
    """

    def __init__(
        self,
        boxes: str = 'auto',
        threshold: float | Sequence[float] = 0.3,
        foreground_weight: float = 1.0,
        background_weight: float = 0.5,
        attention_weight: float = 0.5,
        global_weight: float = 0.5,
        temperature: float = 0.5,
        levels: Sequence[int] | None = None,
        align: str | Mapping = 'auto',
        on_empty: str = 'warn',
        patience: int = 200,
        **kwargs,
    ) -> None:
        super().__init__(levels, align, **kwargs)
        if boxes not in ('teacher', 'layout', 'auto'):
            raise ValueError(f"FGDHead: boxes is 'teacher', 'layout' or 'auto', not {boxes!r}.")
        if temperature <= 0:
            raise ValueError(f'FGDHead: temperature must be positive, not {temperature}.')
        self.boxes = boxes
        self.weights = foreground_weight, background_weight, attention_weight
        self.global_weight = global_weight
        self.temperature = temperature
        self.contexts: nn.ModuleList | None = None
        self.start_watch(threshold, on_empty, patience)

    def build_aligners(self, student_widths: Mapping, teacher_widths: Mapping) -> None:
        """One aligner, and one block of context, per compared level."""
        super().build_aligners(student_widths, teacher_widths)
        if self.global_weight:
            self.contexts = nn.ModuleList(GlobalContext(width) for width in self.teacher_widths)

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_fgd_foreground``, ``_background``, ``_attention`` and ``_global``, by level.

        Raises:
            NoDetectionsError: Where ``on_empty='stop'`` says so.
        """
        objects = self.objects(teacher, targets)
        if self.boxes != 'layout':
            # Of layouts too: which of both a batch has may differ between processes.
            self.watch(sum(map(len, objects)))
        focal, context = [], 0.0
        for index, (map_s, map_t) in enumerate(self.paired_maps(student, teacher)):
            places = [
                box_places(boxes.to(map_t.device), map_t.shape[-2:], teacher.memory.covered)
                for boxes in objects
            ]
            places = [torch.stack(part) for part in zip(*places, strict=True)]
            focal.append(fgd_focal(map_s, map_t, *places, self.temperature))
            if self.contexts is not None:
                block = self.contexts[index]
                # The block is trained on the student's side: the teacher's map is what is wanted.
                context = context + masked_mimic(block(map_s), block(map_t))
        names = 'loss_fgd_foreground', 'loss_fgd_background', 'loss_fgd_attention'
        found = {
            name: weight * sum(terms) / len(focal)
            for name, weight, terms in zip(
                names, self.weights, zip(*focal, strict=True), strict=True
            )
        }
        if self.contexts is not None:
            found['loss_fgd_global'] = self.global_weight * context / len(focal)
        return found

    def objects(self, teacher: Observation, targets: Targets) -> list[Tensor]:
        """Boxes of each image.

        Raises:
            ValueError: With ``boxes='layout'``, if the images have none.
        """
        if self.boxes == 'layout' and targets.boxes is None:
            raise ValueError(
                "FGDHead(boxes='layout'): these images were not made to show boxes, or not all of "
                'them; take mmdfkd.LayoutInversionSource with share=1.0 (and see that its bank has '
                "images), or boxes='teacher'."
            )
        if self.boxes != 'teacher' and targets.boxes is not None:
            return list(targets.boxes)
        return [x.bboxes[self.sure(x.scores, x.labels)] for x in teacher.detections]
