from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmdfkd.adapters import Observation
from mmdfkd.losses import mgd, random_mask, vitkd_generation
from mmdfkd.registry import MODELS

from .alignment import fit_aligner, make_aligner, resize
from .token_head import TokenHead


class Generator(nn.Module):
    """3 x 3 convolution, ReLU, 3 x 3 convolution, of what is not hidden.

    Args:
        channels (int): In and out.
        mask_token (bool): Whether a learned token stands where a place is hidden, instead of zero.
    """

    def __init__(self, channels: int, mask_token: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        token = torch.zeros(1, channels, 1, 1)
        self.mask_token = nn.Parameter(token.normal_(std=0.02)) if mask_token else None

    def forward(self, maps: Tensor, hidden: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` and what to hide, ``[B, 1, H, W]``, True there."""
        maps = maps.masked_fill(hidden, 0)
        if self.mask_token is not None:
            maps = maps + hidden * self.mask_token
        return self.layers(maps)


@MODELS.register_module()
class GenerationHead(TokenHead):
    """The teacher's map, generated from a part of the student's.

    Patches of the student, aligned and resized to the teacher's grid, are hidden by chance; a small
    generator that is trained with them has to say the teacher's. With ``target='hidden'`` it is
    the deep part of **ViTKD** (Yang et al., 2022): the last block; the shallow part is a
    :class:`FeatureHead` with the first two blocks. With ``target='all'`` it is **MGD** (Yang et
    al., ECCV 2022), on any map or on ``levels`` of a pyramid.

    Args:
        target (str): ``'hidden'``: only hidden patches count, a learned token stands for each, and
            as many are hidden in every image; ``'all'``: all count, hidden ones are zero, each by
            its own chance. Defaults to ``'hidden'``.
        ratio (float): Share of the patches to hide. Defaults to 0.5 for hidden, as ViTKD, and 0.65
            for all, as MGD.
        normalize (bool): In units of the teacher's energy, so that one weight holds everywhere; for
            the published weights see :mod:`mmdfkd.losses.vitkd` and :mod:`mmdfkd.losses.mgd`.
            Defaults to True.
        align (str | Mapping): See :func:`~mmdfkd.heads.alignment.make_aligner`. Defaults to
            ``'auto'``.
        **kwargs: ``taps_student``, ``taps_teacher``, ``levels``, ``prefix_tokens`` and
            ``channels_last`` of :class:`~mmdfkd.heads.token_head.TokenHead`, ``loss_weight``,
            ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On an unknown target, a ratio outside (0, 1) or taps that do not pair.
    """

    loss_key = 'loss_generation'

    def __init__(
        self,
        target: str = 'hidden',
        ratio: float | None = None,
        normalize: bool = True,
        align: str | Mapping = 'auto',
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if target not in ('hidden', 'all'):
            raise ValueError(f"GenerationHead: target must be 'hidden' or 'all', not {target!r}.")
        self.target = target
        self.ratio = {'hidden': 0.5, 'all': 0.65}[target] if ratio is None else ratio
        if not 0 < self.ratio < 1:
            raise ValueError(f'GenerationHead: ratio must lie in (0, 1), not {ratio}.')
        self.normalize = normalize
        self.align = align
        self.aligners: nn.ModuleList | None = None
        self.generators: nn.ModuleList | None = None

    def build_aligners(self, student_widths: Mapping, teacher_widths: Mapping) -> None:
        """An aligner and a generator per pair."""
        super().build_aligners(student_widths, teacher_widths)
        self.aligners = nn.ModuleList(
            make_aligner(s, t, conv=True, align=self.align)
            for s, t in zip(*self.widths, strict=True)
        )
        self.generators = nn.ModuleList(
            Generator(width, self.target == 'hidden') for width in self.widths[1]
        )

    def fit_aligners(self, student: Observation, teacher: Observation) -> None:
        """Least squares over the patches."""
        for index, aligner in enumerate(self.aligners):
            map_t = self.patches(teacher, 1, index)
            map_s = resize(self.patches(student, 0, index), map_t.shape[-2:])
            fit_aligner(aligner, *(m.movedim(1, -1).flatten(0, 2) for m in (map_s, map_t)))

    def pair_loss(self, index: int, student: Observation, teacher: Observation) -> Tensor:
        """Hide, generate, compare."""
        map_t = self.patches(teacher, 1, index)
        grid = map_t.shape[-2:]
        map_s = resize(self.aligners[index](self.patches(student, 0, index)), grid)
        exact = self.target == 'hidden'
        hidden = random_mask(len(map_s), grid.numel(), self.ratio, exact, map_s.device)
        generated = self.generators[index](map_s, hidden.view(-1, 1, *grid))
        if not exact:
            return mgd(generated, map_t, self.normalize)
        rows = [m.flatten(2).transpose(1, 2) for m in (generated, map_t)]
        return vitkd_generation(*rows, hidden, self.normalize)
