import math
from collections.abc import Mapping, Sequence

import torch
from mmengine.utils import is_seq_of
from torch import Tensor, nn

from mmdfkd.adapters import Observation, Targets
from mmdfkd.losses import cosine_distance, masked_mimic
from mmdfkd.registry import MODELS

from .alignment import fit_aligner, make_aligner, output_widths, resize
from .base import DistillHead, Needs


@MODELS.register_module()
class FeatureHead(DistillHead):
    """A classifier follows its teacher's features: tokens, maps or pooled vectors.

    What is compared is the output of the network's body, or of named modules pairwise. The
    student's side goes through a linear aligner where widths differ. Grids of unequal size are
    resized to the teacher's. Of prefix tokens (class, distillation) those that both have are
    compared with each other, and patches with patches.

    Args:
        taps_student (Sequence[str]): Modules of the student, such as ``backbone.layers.3``; none
            for the output of backbone and neck. Defaults to none.
        taps_teacher (Sequence[str], optional): Their counterparts, in the same order. Defaults to
            the same names.
        loss (str): ``'mse'``, in units of the teacher's energy, or ``'cosine'``. Defaults to
            ``'mse'``.
        pool (bool): Compare the mean over patches instead of each. Defaults to False.
        prefix_tokens (int | Sequence[int]): How many of the tokens ``[B, L, C]`` precede the
            patches: one number, or the student's and the teacher's. Vectors and maps have none.
            Defaults to 1.
        channels_last (bool, optional): Whether 4-D outputs are ``[B, H, W, C]`` (blocks of ViTDet)
            instead of ``[B, C, H, W]``. Defaults to what the widths say.
        align (str): See :func:`~mmdfkd.heads.alignment.make_aligner`. Defaults to ``'auto'``.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On an unknown loss, or taps that do not pair.
    """

    _LOSSES = {'mse': masked_mimic, 'cosine': cosine_distance}

    def __init__(
        self,
        taps_student: Sequence[str] = (),
        taps_teacher: Sequence[str] | None = None,
        loss: str = 'mse',
        pool: bool = False,
        prefix_tokens: int | Sequence[int] = 1,
        channels_last: bool | None = None,
        align: str = 'auto',
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if loss not in self._LOSSES:
            raise ValueError(
                f'FeatureHead: loss must be one of {sorted(self._LOSSES)}, not {loss!r}.'
            )
        taps_teacher = taps_student if taps_teacher is None else taps_teacher
        if len(taps_student) != len(taps_teacher):
            raise ValueError(
                f'FeatureHead pairs {len(taps_student)} taps of the student with '
                f'{len(taps_teacher)} of the teacher: name as many of each.'
            )
        self.needs = Needs(taps_student=tuple(taps_student), taps_teacher=tuple(taps_teacher))
        self.loss = loss
        self.pool = pool
        self.prefix_tokens = (
            (prefix_tokens,) * 2 if isinstance(prefix_tokens, int) else tuple(prefix_tokens)
        )
        self.channels_last = channels_last
        self.align = align
        self.aligners: nn.ModuleList | None = None

    def build_aligners(self, student_widths: Mapping, teacher_widths: Mapping) -> None:
        """One linear layer per pair."""
        own, other = self.needs.taps_student, self.needs.taps_teacher
        if own:
            pairs = [
                (output_widths(student_widths, s)[-1], output_widths(teacher_widths, t)[-1])
                for s, t in zip(own, other, strict=True)
            ]
        else:
            pairs = [tuple(output_widths(w, 'neck')[-1] for w in (student_widths, teacher_widths))]
        self.widths = tuple(zip(*pairs, strict=True))
        self.aligners = nn.ModuleList(
            make_aligner(s, t, conv=False, align=self.align) for s, t in pairs
        )

    def fit_aligners(self, student: Observation, teacher: Observation) -> None:
        """Least squares over the tokens, where both networks have one grid."""
        for index, aligner in enumerate(self.aligners):
            tokens_s, grid_s = self._tokens(student, 0, index)
            tokens_t, grid_t = self._tokens(teacher, 1, index)
            if grid_s == grid_t:
                common = min(tokens_s.shape[1], tokens_t.shape[1])
                fit_aligner(aligner, *(t[:, -common:].flatten(0, 1) for t in (tokens_s, tokens_t)))

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_feature``: the mean over the pairs, so that naming more taps changes no scale."""
        if self.aligners is None:
            raise RuntimeError(
                'FeatureHead: build_aligners has to be called before the first forward.'
            )
        total = 0.0
        for index, aligner in enumerate(self.aligners):
            tokens_s, grid_s = self._tokens(student, 0, index)
            tokens_t, grid_t = self._tokens(teacher, 1, index)
            total = total + self._compare(aligner(tokens_s), grid_s, tokens_t, grid_t)
        return {'loss_feature': total / len(self.aligners)}

    def _tokens(
        self, observation: Observation, side: int, index: int
    ) -> tuple[Tensor, tuple[int, int] | None]:
        """Tokens ``[B, L, C]``, patches last, and the patches' grid (None without patches)."""
        network = ('student', 'teacher')[side]
        taps = (self.needs.taps_student, self.needs.taps_teacher)[side]
        place = taps[index] if taps else 'output'
        feature = observation.memory.taps[place] if taps else observation.memory.feats[-1]
        if is_seq_of(feature, Tensor):
            # A distilled DeiT returns its class and its distillation token as a pair.
            return torch.stack(tuple(feature), 1), None
        if not isinstance(feature, Tensor) or feature.dim() not in (2, 3, 4):
            found = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
            raise ValueError(
                f"FeatureHead compares vectors, tokens and maps, but the {network}'s {place} is "
                f'{found}.'
            )
        if feature.dim() == 2:
            return feature[:, None], None
        if feature.dim() == 4:
            if not self._is_channels_last(feature, self.widths[side][index], place):
                feature = feature.permute(0, 2, 3, 1)
            return feature.flatten(1, 2), tuple(feature.shape[1:3])
        patches = feature.shape[1] - self.prefix_tokens[side]
        height, width = observation.memory.image_size
        rows = round(math.sqrt(max(patches, 0) * height / width))
        columns = patches // max(rows, 1)
        if patches < 1 or rows * columns != patches:
            raise ValueError(
                f"FeatureHead: the {network}'s {place} has {feature.shape[1]} tokens; without "
                f'{self.prefix_tokens[side]} prefix tokens they are no grid of the proportions of '
                'the '
                f'{height} x {width} px image. Set prefix_tokens=(student, teacher).'
            )
        return feature, (rows, columns)

    def _is_channels_last(self, feature: Tensor, width: int, place: str) -> bool:
        if self.channels_last is not None:
            return self.channels_last
        first, last = feature.shape[1] == width, feature.shape[3] == width
        if first == last:
            raise ValueError(
                f"FeatureHead cannot tell where the {width} channels of {place}'s output "
                f'{tuple(feature.shape)} are; set channels_last.'
            )
        return last

    def _compare(self, tokens_s, grid_s, tokens_t, grid_t) -> Tensor:
        if (grid_s is None) != (grid_t is None) and not self.pool:
            raise ValueError(
                'FeatureHead: one network gives patches and the other a vector; compare with the '
                'mean of '
                'the patches (pool=True), or tap modules of one kind.'
            )
        prefix_s, patches_s = self._split(tokens_s, grid_s)
        prefix_t, patches_t = self._split(tokens_t, grid_t)
        loss = self._LOSSES[self.loss]
        if self.pool:
            pooled = [
                x if patches is None else patches.mean((2, 3))[:, None]
                for x, patches in ((prefix_s, patches_s), (prefix_t, patches_t))
            ]
            common = min(x.shape[1] for x in pooled)
            return loss(pooled[0][:, :common], pooled[1][:, :common], dim=2)
        common = min(prefix_s.shape[1], prefix_t.shape[1])
        all_s, all_t = [prefix_s[:, :common]], [prefix_t[:, :common]]
        if patches_s is not None:
            all_s.append(resize(patches_s, grid_t).flatten(2).transpose(1, 2))
            all_t.append(patches_t.flatten(2).transpose(1, 2))
        return loss(torch.cat(all_s, 1), torch.cat(all_t, 1), dim=2)

    @staticmethod
    def _split(tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor | None]:
        """Prefix tokens ``[B, P, C]`` and patches as a map ``[B, C, H, W]``."""
        if grid is None:
            return tokens, None
        count = grid[0] * grid[1]
        prefix, patches = tokens[:, :-count], tokens[:, -count:]
        return prefix, patches.transpose(1, 2).unflatten(2, grid)
