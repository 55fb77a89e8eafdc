from collections.abc import Mapping

from torch import Tensor, nn

from mmdfkd.adapters import Observation
from mmdfkd.losses import masked_mimic
from mmdfkd.registry import MODELS

from .alignment import resize
from .token_head import TokenHead


class ConvAligner(nn.Sequential):
    """From a map of patches to a map of a CNN: depth-wise 3 x 3, BatchNorm, GELU, then channels.

    Args:
        width (int): Channels in.
        out (int): Channels out.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.Conv2d(width, out, 1),
        )


@MODELS.register_module()
class EarlyFeatureHead(TokenHead):
    """First blocks of a ViT follow the first stages of a CNN (DearKD, Chen et al., CVPR 2022).

    ``mean (A(F^S) - F^T)^2`` over places and channels, ``A`` an aligner that is trained with the
    student and dropped after. Meant for a first stage of the run, after which the student is to
    find biases of its own: a ``schedule`` that ends at 0 stops head and taps there. The published
    aligner was not found; :class:`ConvAligner` and the weight are ours (papers.md Part 5).

    The student's patches are resized to the grid of the teacher's map. Patches only: set
    ``prefix_tokens=(1, 0)``, or (2, 0) with a distillation token.

    Args:
        normalize (bool): In units of the teacher's energy. Defaults to True.
        **kwargs: ``taps_student``, ``taps_teacher``, ``levels``, ``prefix_tokens`` and
            ``channels_last`` of :class:`~mmdfkd.heads.token_head.TokenHead`, ``loss_weight``,
            ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: If taps do not pair.
    """

    loss_key = 'loss_early_feature'

    def __init__(self, normalize: bool = True, **kwargs) -> None:
        super().__init__(**kwargs)
        self.normalize = normalize
        self.aligners: nn.ModuleList | None = None

    def build_aligners(self, student_widths: Mapping, teacher_widths: Mapping) -> None:
        """One aligner per pair."""
        super().build_aligners(student_widths, teacher_widths)
        self.aligners = nn.ModuleList(ConvAligner(s, t) for s, t in zip(*self.widths, strict=True))

    def pair_loss(self, index: int, student: Observation, teacher: Observation) -> Tensor:
        """Aligned patches against the CNN's map."""
        map_t = self.patches(teacher, 1, index)
        map_s = self.aligners[index](self.patches(student, 0, index))
        return masked_mimic(resize(map_s, map_t.shape[-2:]), map_t, normalize=self.normalize)
