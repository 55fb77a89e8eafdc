from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdfkd.adapters import Observation
from mmdfkd.losses import (
    inter_image,
    intra_image,
    merge_patches,
    qkv_relation,
    random_sampled,
    rkd_angle,
    rkd_distance,
    split_qkv,
    token_self_similarity,
)
from mmdfkd.registry import MODELS

from .attention_taps import attention_heads
from .relation_base import Places, RelationHead


@MODELS.register_module()
class ManifoldHead(RelationHead):
    """Patches relate to each other as the teacher's do (manifold KD, Hao et al., NeurIPS 2022).

    Means over the pairs of layers of the three terms of
    :func:`~mmdfkd.losses.manifold_terms`, each times its weight; a term of weight 0 is not
    computed. Published pairs: the first and the last four blocks of both (CaiT-S24 to DeiT-Tiny).
    MiniViT's hidden relations are ``intra_weight=4.9, inter_weight=0, random_weight=0``.

    Args:
        intra_weight (float): Between the patches of an image. Defaults to 4, as released.
        inter_weight (float): Between images, position by position. Defaults to 0.1, as released.
        random_weight (float): Between patches drawn from the batch. Defaults to 0.2, as released.
        num_samples (int): How many are drawn, anew for every pair. Defaults to 192, as released.
        merge (int | Sequence[int], optional): Grid to which patches are merged by concatenating
            neighbourhoods: one side or ``(h, w)``, divisors of both grids. Relations cost memory
            quadratic in the patches; large maps need it. Defaults to none, as released.
        with_prefix (bool): Compare the prefix tokens that both have along with the patches, as the
            release does where their numbers agree. Not with ``merge``. Defaults to False.
        **kwargs: ``taps_student``, ``taps_teacher``, ``levels``, ``prefix_tokens`` and
            ``channels_last`` of :class:`~mmdfkd.heads.token_head.TokenHead`, ``loss_weight``,
            ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: If all weights are zero, or prefix tokens are to be merged.
    """

    def __init__(
        self,
        intra_weight: float = 4.0,
        inter_weight: float = 0.1,
        random_weight: float = 0.2,
        num_samples: int = 192,
        merge: int | Sequence[int] | None = None,
        with_prefix: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.weights = {'intra': intra_weight, 'inter': inter_weight, 'random': random_weight}
        if not any(self.weights.values()):
            raise ValueError('ManifoldHead: all three weights are zero; leave the head out.')
        if merge is not None and with_prefix:
            raise ValueError('ManifoldHead: prefix tokens have no place in a merged grid.')
        self.num_samples = num_samples
        self.merge = (merge, merge) if isinstance(merge, int) else merge and tuple(merge)
        self.with_prefix = with_prefix
        # Merged, unequal grids meet without interpolation.
        self._resizes = merge is None

    def pair_terms(self, own: Places, other: Places) -> dict[str, Tensor]:
        """``loss_manifold_intra``, ``_inter`` and ``_random``."""
        self.need_patches(own, other)
        if self.merge is not None:
            s, t = (merge_patches(x.patches, x.grid, self.merge) for x in (own, other))
        else:
            s, t = _joined(own, other, self.with_prefix)
        terms = {
            'intra': intra_image,
            'inter': inter_image,
            'random': lambda a, b: random_sampled(a, b, self.num_samples),
        }
        return {
            f'loss_manifold_{key}': weight * terms[key](s, t)
            for key, weight in self.weights.items()
            if weight
        }


@MODELS.register_module()
class QKVRelationHead(RelationHead):
    """Queries, keys and values relate as the teacher's do (MiniViT, Zhang et al., CVPR 2022).

    The mean over the pairs of layers of :func:`~mmdfkd.losses.qkv_relation`. Tap the joint
    projection: ``backbone.layers.3.attn.qkv`` of mmpretrain's ViT, ``backbone.blocks.3.attn.qkv``
    of ViTDet, ``backbone.stages.0.blocks.1.attn.w_msa.qkv`` of Swin. Windows count as images: both
    networks need as many of them, of one size. Numbers and widths of attention heads need not
    agree.

    Args:
        relation_heads (int): Parts into which queries, keys and values are cut. Defaults to 1, as
            released.
        subtract_entropy (bool): Report zero at agreement; the gradient is the same. Defaults to
            False, as released.
        with_prefix (bool): Let the prefix tokens that both have take part. Defaults to True.
        **kwargs: ``taps_student``, ``taps_teacher``, ``prefix_tokens`` and ``channels_last`` of
            :class:`~mmdfkd.heads.token_head.TokenHead`, ``loss_weight``, ``schedule``, ``name`` and
            ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: Without taps, or on fewer than one relation head.
    """

    def __init__(
        self,
        relation_heads: int = 1,
        subtract_entropy: bool = False,
        with_prefix: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if not self.needs.taps_student:
            raise ValueError(
                'QKVRelationHead needs taps: the joint projections of attention, such as '
                'backbone.layers.3.attn.qkv. A network without attention has none.'
            )
        if relation_heads < 1:
            raise ValueError(
                f'QKVRelationHead: relation_heads must be 1 or more, not {relation_heads}.'
            )
        self.relation_heads = relation_heads
        self.subtract_entropy = subtract_entropy
        self.with_prefix = with_prefix

    def bind(self, student: nn.Module, teacher: nn.Module) -> None:
        """See that every tap is the joint projection of an attention.

        Raises:
            ValueError: If one is not; names those there are.
        """
        for net, taps, who in (
            (student, self.needs.taps_student, 'student'),
            (teacher, self.needs.taps_teacher, 'teacher'),
        ):
            for tap in taps:
                attention_heads(net, tap, who)

    def places(
        self, index: int, student: Observation, teacher: Observation
    ) -> tuple[Places, Places]:
        """Windows need no grid of the image's proportions where they are of one size."""
        own = student.memory.taps[self.needs.taps_student[index]]
        other = teacher.memory.taps[self.needs.taps_teacher[index]].detach()
        p_s, p_t = self.prefix_tokens
        alike = own.dim() == other.dim() == 3 and own.shape[1] - p_s == other.shape[1] - p_t
        if not alike:
            return super().places(index, student, teacher)
        return tuple(Places(x[:, :p], x[:, p:], None) for x, p in ((own, p_s), (other, p_t)))

    def pair_terms(self, own: Places, other: Places) -> dict[str, Tensor]:
        """``loss_qkv``."""
        self.need_patches(own, other)
        s, t = (split_qkv(x) for x in _joined(own, other, self.with_prefix))
        return {'loss_qkv': qkv_relation(s, t, self.relation_heads, self.subtract_entropy)}


@MODELS.register_module()
class SelfSimilarityHead(RelationHead):
    """Each patch resembles the patches that it resembles in the teacher (detection_style.md 1.2).

    The mean over the pairs of layers of :func:`~mmdfkd.losses.token_self_similarity`.

    Args:
        temperature (float): Of the similarities. Defaults to 0.07.
        include_self (bool): Keep each patch's similarity to itself. Defaults to False.
        **kwargs: ``taps_student``, ``taps_teacher``, ``levels``, ``prefix_tokens`` and
            ``channels_last`` of :class:`~mmdfkd.heads.token_head.TokenHead`, ``loss_weight``,
            ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.
    """

    def __init__(self, temperature: float = 0.07, include_self: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature
        self.include_self = include_self

    def pair_terms(self, own: Places, other: Places) -> dict[str, Tensor]:
        """``loss_similarity``."""
        self.need_patches(own, other)
        loss = token_self_similarity(
            own.patches, other.patches, self.temperature, self.include_self
        )
        return {'loss_similarity': loss}


@MODELS.register_module()
class RKDHead(RelationHead):
    """Images relate to each other as the teacher sees them (RKD, Park et al., CVPR 2019).

    Distances and angles between pooled features of the images of a batch (of one rank), a mean
    over the pairs of layers. It needs three images or more to say anything.

    Args:
        distance_weight (float): Weight of the distances. Defaults to 25, as published.
        angle_weight (float): Weight of the angles. Defaults to 50, as published.
        pool (str): ``'mean'`` over the patches, or ``'prefix'``: the first token before them. A
            vector is taken as it is. Defaults to ``'mean'``.
        **kwargs: ``taps_student``, ``taps_teacher``, ``levels``, ``prefix_tokens`` and
            ``channels_last`` of :class:`~mmdfkd.heads.token_head.TokenHead`, ``loss_weight``,
            ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On an unknown way to pool.
    """

    # A mean over the patches needs no common grid.
    _resizes = False

    def __init__(
        self,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        pool: str = 'mean',
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if pool not in ('mean', 'prefix'):
            raise ValueError(f"RKDHead: pool must be 'mean' or 'prefix', not {pool!r}.")
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight
        self.pool = pool

    def pair_terms(self, own: Places, other: Places) -> dict[str, Tensor]:
        """``loss_rkd_distance`` and ``loss_rkd_angle``."""
        s, t = self._pooled(own), self._pooled(other)
        return {
            'loss_rkd_distance': self.distance_weight * rkd_distance(s, t),
            'loss_rkd_angle': self.angle_weight * rkd_angle(s, t),
        }

    def _pooled(self, tokens: Places) -> Tensor:
        if not tokens.patches.shape[1]:
            return tokens.prefix[:, 0]
        if self.pool == 'mean':
            return tokens.patches.mean(1)
        if not tokens.prefix.shape[1]:
            raise ValueError("RKDHead: pool='prefix', but there is no token before the patches.")
        return tokens.prefix[:, 0]


def _joined(own: Places, other: Places, with_prefix: bool) -> tuple[Tensor, Tensor]:
    """Patches, behind those prefix tokens that both have where they take part."""
    common = min(own.prefix.shape[1], other.prefix.shape[1]) if with_prefix else 0
    return tuple(torch.cat([x.prefix[:, :common], x.patches], 1) for x in (own, other))
