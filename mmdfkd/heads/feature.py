from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from mmdfkd.adapters import Observation
from mmdfkd.losses import cosine_distance, masked_mimic
from mmdfkd.registry import MODELS

from .alignment import fit_aligner, make_aligner, resize
from .token_head import TokenHead
from .tokens import Grid, split_tokens


@MODELS.register_module()
class FeatureHead(TokenHead):
    """A classifier follows its teacher's features: tokens, maps or pooled vectors.

    What is compared is the output of the network's body, or of named modules pairwise. The
    student's side goes through an aligner, by default a linear one where widths differ. Grids of
    unequal size are resized to the teacher's. Of prefix tokens (class, distillation) those that
    both have are compared with each other, and patches with patches.

    Args:
        loss (str): ``'mse'`` or ``'cosine'``. Defaults to ``'mse'``.
        normalize (bool): The squared error in units of the teacher's energy. Defaults to True.
        with_prefix (bool): Compare prefix tokens, too. Defaults to True; ViTKD compares patches
            alone.
        pool (bool): Compare the mean over patches instead of each. Defaults to False.
        align (str | Mapping): See :func:`~mmdfkd.heads.alignment.make_aligner`. Defaults to
            ``'auto'``.
        **kwargs: ``taps_student``, ``taps_teacher``, ``levels``, ``prefix_tokens`` and
            ``channels_last`` of :class:`~mmdfkd.heads.token_head.TokenHead`, ``loss_weight``,
            ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On an unknown loss, taps that do not pair, or a cosine without ``normalize``.
    """

    loss_key = 'loss_feature'
    _LOSSES = {'mse': masked_mimic, 'cosine': cosine_distance}

    def __init__(
        self,
        loss: str = 'mse',
        pool: bool = False,
        align: str | Mapping = 'auto',
        normalize: bool = True,
        with_prefix: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if loss not in self._LOSSES:
            raise ValueError(
                f'FeatureHead: loss must be one of {sorted(self._LOSSES)}, not {loss!r}.'
            )
        if loss == 'cosine' and not normalize:
            raise ValueError('FeatureHead: a cosine has no scale; normalize is for mse.')
        self.loss = loss
        self.normalize = normalize
        self.with_prefix = with_prefix
        self.pool = pool
        self.align = align
        self.aligners: nn.ModuleList | None = None

    def build_aligners(self, student_widths: Mapping, teacher_widths: Mapping) -> None:
        """An aligner per pair."""
        super().build_aligners(student_widths, teacher_widths)
        self.aligners = nn.ModuleList(
            make_aligner(s, t, conv=False, align=self.align)
            for s, t in zip(*self.widths, strict=True)
        )

    def fit_aligners(self, student: Observation, teacher: Observation) -> None:
        """Least squares over the tokens, where both networks have one grid."""
        for index, aligner in enumerate(self.aligners):
            tokens_s, grid_s = self.tokens(student, 0, index)
            tokens_t, grid_t = self.tokens(teacher, 1, index)
            if grid_s == grid_t:
                common = min(tokens_s.shape[1], tokens_t.shape[1])
                fit_aligner(aligner, *(t[:, -common:].flatten(0, 1) for t in (tokens_s, tokens_t)))

    def pair_loss(self, index: int, student: Observation, teacher: Observation) -> Tensor:
        """Prefix tokens with prefix tokens, patches with patches."""
        tokens_s, grid_s = self.tokens(student, 0, index)
        return self._compare(
            self.aligners[index](tokens_s), grid_s, *self.tokens(teacher, 1, index)
        )

    def _compare(
        self, tokens_s: Tensor, grid_s: Grid | None, tokens_t: Tensor, grid_t: Grid | None
    ) -> Tensor:
        if (grid_s is None) != (grid_t is None) and not self.pool:
            raise ValueError(
                'FeatureHead: one network gives patches and the other a vector; compare with the '
                'mean of '
                'the patches (pool=True), or tap modules of one kind.'
            )
        prefix_s, patches_s = split_tokens(tokens_s, grid_s)
        prefix_t, patches_t = split_tokens(tokens_t, grid_t)
        loss = self._LOSSES[self.loss]
        if self.loss == 'mse':
            loss = partial(loss, normalize=self.normalize)
        if patches_t is None and not self.with_prefix:
            raise ValueError(
                'FeatureHead: a vector has no patches, and with_prefix=False leaves nothing of it.'
            )
        if self.pool:
            pooled = [
                x if patches is None else patches.mean((2, 3))[:, None]
                for x, patches in ((prefix_s, patches_s), (prefix_t, patches_t))
            ]
            common = min(x.shape[1] for x in pooled)
            return loss(pooled[0][:, :common], pooled[1][:, :common], dim=2)
        common = min(prefix_s.shape[1], prefix_t.shape[1]) if self.with_prefix else 0
        all_s, all_t = [prefix_s[:, :common]], [prefix_t[:, :common]]
        if patches_s is not None:
            all_s.append(resize(patches_s, grid_t).flatten(2).transpose(1, 2))
            all_t.append(patches_t.flatten(2).transpose(1, 2))
        return loss(torch.cat(all_s, 1), torch.cat(all_t, 1), dim=2)
