from collections.abc import Mapping

from torch import Tensor, nn

from mmdfkd.adapters import Observation
from mmdfkd.losses import target_aware
from mmdfkd.losses.target_aware import ORIENTATIONS
from mmdfkd.registry import MODELS

from .alignment import resize
from .token_head import TokenHead


def _embedding(width: int, out: int) -> nn.Sequential:
    """3 x 3 convolution without bias and BatchNorm, as released."""
    return nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out))


@MODELS.register_module()
class TargetAwareHead(TokenHead):
    """Each patch of the teacher from all patches of the student (TaT, Lin et al., CVPR 2022).

    The student's patches pass two small embeddings, as queries and as values; see
    :func:`~mmdfkd.losses.target_aware.target_aware_features`. Published: weight 0.2 with
    ``normalize=False``, on the last map.

    Args:
        orientation (str): ``'paper'``: the teacher's patches ask the student's; grids may differ.
            ``'release'``: the student's ask the teacher's; they are resized to its grid. Defaults
            to ``'paper'``.
        scale (float, optional): Of the logits. Defaults to ``D_T ** -0.5``, the transformer's; the
            paper's is 1, which saturates on wide features.
        normalize (bool): In units of the teacher's energy. Defaults to True.
        **kwargs: ``taps_student``, ``taps_teacher``, ``levels``, ``prefix_tokens`` and
            ``channels_last`` of :class:`~mmdfkd.heads.token_head.TokenHead`, ``loss_weight``,
            ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On an unknown orientation, or taps that do not pair.
    """

    loss_key = 'loss_target_aware'

    def __init__(
        self,
        orientation: str = 'paper',
        scale: float | None = None,
        normalize: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if orientation not in ORIENTATIONS:
            raise ValueError(
                f'TargetAwareHead: orientation must be one of {ORIENTATIONS}, not {orientation!r}.'
            )
        self.orientation = orientation
        self.scale = scale
        self.normalize = normalize
        self.queries: nn.ModuleList | None = None
        self.values: nn.ModuleList | None = None

    def build_aligners(self, student_widths: Mapping, teacher_widths: Mapping) -> None:
        """Two embeddings per pair."""
        super().build_aligners(student_widths, teacher_widths)
        pairs = list(zip(*self.widths, strict=True))
        self.queries = nn.ModuleList(_embedding(s, t) for s, t in pairs)
        self.values = nn.ModuleList(_embedding(s, t) for s, t in pairs)

    def pair_loss(self, index: int, student: Observation, teacher: Observation) -> Tensor:
        """Reconfigured student against teacher."""
        map_t = self.patches(teacher, 1, index)
        map_s = self.patches(student, 0, index)
        if self.orientation == 'release':
            map_s = resize(map_s, map_t.shape[-2:])
        query, value, tokens = (
            m.flatten(2).transpose(1, 2)
            for m in (self.queries[index](map_s), self.values[index](map_s), map_t)
        )
        scale = self.widths[1][index] ** -0.5 if self.scale is None else self.scale
        return target_aware(query, value, tokens, self.orientation, scale, self.normalize)
