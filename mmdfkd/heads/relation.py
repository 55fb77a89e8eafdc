from collections.abc import Sequence

import torch
from torch import Tensor

from mmdfkd.adapters import Observation, Targets
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

from .token_pairs import TokenMap, TokenPairs


@MODELS.register_module()
class ManifoldHead(TokenPairs):
    """Patches relate to each other as the teacher's do (manifold KD, Hao et al., NeurIPS 2022).

    Means over the pairs of layers of the three terms of
    :func:`~mmdfkd.losses.manifold_terms`, each times its weight; a term of weight 0 is not
    computed. Published pairs: the first and the last four blocks of both (CaiT-S24 to DeiT-Tiny).
    MiniViT's hidden relations are ``intra_weight=4.9, inter_weight=0, random_weight=0``.

    Args:
        taps_student (Sequence[str]): Blocks of the student; see :class:`TokenPairs`.
        taps_teacher (Sequence[str], optional): Blocks of the teacher.
        intra_weight (float): Between the patches of an image. Defaults to 4, as released.
        inter_weight (float): Between images, position by position. Defaults to 0.1, as released.
        random_weight (float): Between patches drawn from the batch. Defaults to 0.2, as released.
        num_samples (int): How many are drawn, anew for every pair. Defaults to 192, as released.
        merge (int | Sequence[int], optional): Grid to which patches are merged by concatenating
            neighbourhoods: one side or ``(h, w)``, divisors of both grids. Relations cost memory
            quadratic in the patches; large maps need it. Defaults to none, as released.
        with_prefix (bool): Compare the prefix tokens that both have along with the patches, as the
            release does where their numbers agree. Not with ``merge``. Defaults to False.
        **kwargs: ``prefix_tokens`` and ``channels_last`` of :class:`TokenPairs`; ``loss_weight``,
            ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: If all weights are zero, or prefix tokens are to be merged.
    """

    def __init__(
        self,
        taps_student: Sequence[str] = (),
        taps_teacher: Sequence[str] | None = None,
        intra_weight: float = 4.0,
        inter_weight: float = 0.1,
        random_weight: float = 0.2,
        num_samples: int = 192,
        merge: int | Sequence[int] | None = None,
        with_prefix: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(taps_student, taps_teacher, **kwargs)
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

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_manifold_intra``, ``_inter`` and ``_random``, weighted."""
        terms = {
            'intra': intra_image,
            'inter': inter_image,
            'random': lambda s, t: random_sampled(s, t, self.num_samples),
        }
        pairs = [self._compared(own, other) for own, other in self.patch_pairs(student, teacher)]
        return {
            f'loss_manifold_{key}': weight * sum(terms[key](*pair) for pair in pairs) / len(pairs)
            for key, weight in self.weights.items()
            if weight
        }

    def _compared(self, own: TokenMap, other: TokenMap) -> tuple[Tensor, Tensor]:
        if self.merge is not None:
            return tuple(merge_patches(x.patches, x.grid, self.merge) for x in (own, other))
        if not self.with_prefix:
            return own.patches, other.patches
        common = min(own.prefix.shape[1], other.prefix.shape[1])
        return tuple(torch.cat([x.prefix[:, :common], x.patches], 1) for x in (own, other))


@MODELS.register_module()
class QKVRelationHead(TokenPairs):
    """Queries, keys and values relate as the teacher's do (MiniViT, Zhang et al., CVPR 2022).

    The mean over the pairs of layers of :func:`~mmdfkd.losses.qkv_relation`. Tap the joint
    projection: ``backbone.layers.3.attn.qkv`` of mmpretrain's ViT and of ViTDet,
    ``backbone.stages.0.blocks.1.attn.w_msa.qkv`` of Swin. Windows count as images: both networks
    need as many of them, of one size. Numbers and widths of attention heads need not agree.

    Args:
        taps_student (Sequence[str]): Projections of the student; see :class:`TokenPairs`.
        taps_teacher (Sequence[str], optional): Projections of the teacher.
        relation_heads (int): Parts into which queries, keys and values are cut. Defaults to 1, as
            released.
        subtract_entropy (bool): Report zero at agreement; the gradient is the same. Defaults to
            False, as released.
        with_prefix (bool): Let the prefix tokens that both have take part. Defaults to True.
        **kwargs: ``prefix_tokens`` and ``channels_last`` of :class:`TokenPairs`; ``loss_weight``,
            ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: Without taps, on fewer than one relation head.
    """

    _whole_images = False

    def __init__(
        self,
        taps_student: Sequence[str] = (),
        taps_teacher: Sequence[str] | None = None,
        relation_heads: int = 1,
        subtract_entropy: bool = False,
        with_prefix: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(taps_student, taps_teacher, **kwargs)
        if not taps_student:
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

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_qkv``."""
        pairs = self.patch_pairs(student, teacher)
        total = 0.0
        for own, other in pairs:
            common = min(own.prefix.shape[1], other.prefix.shape[1]) if self.with_prefix else 0
            s, t = (
                split_qkv(torch.cat([x.prefix[:, :common], x.patches], 1)) for x in (own, other)
            )
            total = total + qkv_relation(s, t, self.relation_heads, self.subtract_entropy)
        return {'loss_qkv': total / len(pairs)}


@MODELS.register_module()
class SelfSimilarityHead(TokenPairs):
    """Each patch resembles the patches that it resembles in the teacher (detection_style.md 1.2).

    The mean over the pairs of layers of :func:`~mmdfkd.losses.token_self_similarity`.

    Args:
        taps_student (Sequence[str]): Blocks of the student; see :class:`TokenPairs`.
        taps_teacher (Sequence[str], optional): Blocks of the teacher.
        temperature (float): Of the similarities. Defaults to 0.07.
        include_self (bool): Keep each patch's similarity to itself. Defaults to False.
        **kwargs: ``prefix_tokens`` and ``channels_last`` of :class:`TokenPairs`; ``loss_weight``,
            ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.
    """

    def __init__(
        self,
        taps_student: Sequence[str] = (),
        taps_teacher: Sequence[str] | None = None,
        temperature: float = 0.07,
        include_self: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(taps_student, taps_teacher, **kwargs)
        self.temperature = temperature
        self.include_self = include_self

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_similarity``."""
        pairs = self.patch_pairs(student, teacher)
        total = sum(
            token_self_similarity(own.patches, other.patches, self.temperature, self.include_self)
            for own, other in pairs
        )
        return {'loss_similarity': total / len(pairs)}


@MODELS.register_module()
class RKDHead(TokenPairs):
    """Images relate to each other as the teacher sees them (RKD, Park et al., CVPR 2019).

    Distances and angles between pooled features of the images of a batch (of one rank), a mean
    over the pairs of layers. It needs three images or more to say anything.

    Args:
        taps_student (Sequence[str]): Modules of the student; see :class:`TokenPairs`. Without taps
            it compares the output of backbone and neck.
        taps_teacher (Sequence[str], optional): Modules of the teacher.
        distance_weight (float): Weight of the distances. Defaults to 25, as published.
        angle_weight (float): Weight of the angles. Defaults to 50, as published.
        pool (str): ``'mean'`` over the patches, or ``'prefix'``: the first token before them. A
            vector is taken as it is. Defaults to ``'mean'``.
        **kwargs: ``prefix_tokens`` and ``channels_last`` of :class:`TokenPairs`; ``loss_weight``,
            ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On an unknown way to pool.
    """

    _whole_images = False

    def __init__(
        self,
        taps_student: Sequence[str] = (),
        taps_teacher: Sequence[str] | None = None,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        pool: str = 'mean',
        **kwargs,
    ) -> None:
        super().__init__(taps_student, taps_teacher, **kwargs)
        if pool not in ('mean', 'prefix'):
            raise ValueError(f"RKDHead: pool must be 'mean' or 'prefix', not {pool!r}.")
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight
        self.pool = pool

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_rkd_distance`` and ``loss_rkd_angle``, weighted."""
        pairs = [
            (self._pooled(own), self._pooled(other)) for own, other in self.pairs(student, teacher)
        ]
        return {
            'loss_rkd_distance': self.distance_weight
            * sum(rkd_distance(*pair) for pair in pairs)
            / len(pairs),
            'loss_rkd_angle': self.angle_weight
            * sum(rkd_angle(*pair) for pair in pairs)
            / len(pairs),
        }

    def _pooled(self, tokens: TokenMap) -> Tensor:
        if tokens.patches.shape[1] and (self.pool == 'mean' or not tokens.prefix.shape[1]):
            return tokens.patches.mean(1)
        return tokens.prefix[:, 0]
