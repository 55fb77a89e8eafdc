from torch import Tensor

from mmdfkd.adapters import Observation, QueryAnswers, Targets
from mmdfkd.registry import MODELS

from .base import Needs
from .query_base import QueryHead, last_layers


@MODELS.register_module()
class QueryAlignedHead(QueryHead):
    """The student answers the teacher's own queries as the teacher does, layer by layer.

    Queries of two DETRs have no common index; asked the same ones, their answers are pairs without
    any matching (KD-DETR, Wang et al., CVPR 2024): the teacher's own queries (specific sampling),
    and fresh random ones in every step (general sampling). Every decoder layer of the student
    follows the teacher's last. Nothing is added to the student, and its own queries are not
    trained by this: it inherits them, or a second head reads them (:class:`StudentQueryHead`,
    :class:`HungarianQueryHead`).

    Args:
        fresh (bool): Whether to ask the random queries, too; one more pass of both decoders.
            Defaults to True.
        **kwargs: ``temperature``, ``floor``, ``cls_weight``, ``l1_weight`` and ``giou_weight`` of
            :class:`~mmdfkd.heads.query_base.QueryHead`, and those of :class:`DistillHead`.
    """

    def __init__(self, fresh: bool = True, **kwargs) -> None:
        super().__init__(**kwargs)
        self.fresh = fresh
        self.needs = Needs(response=True, fresh=fresh)

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_query_cls``, ``_l1`` and ``_giou``, and ``loss_fresh_*`` of random queries."""
        own, other = self.responses(student, teacher)
        losses = self._terms('query', own.asked, other.asked)
        if self.fresh:
            losses.update(self._terms('fresh', own.fresh, other.fresh))
        return losses

    def _terms(
        self, kind: str, own: QueryAnswers | None, other: QueryAnswers | None
    ) -> dict[str, Tensor]:
        if own is None or other is None:
            raise ValueError(
                "QueryAlignedHead: the student cannot be asked the teacher's queries. Learned "
                'queries need one kind of decoder and one width; boxes (DAB-DETR, DINO, two-stage '
                'Deformable DETR) any. Match the answers instead: mmdfkd.HungarianQueryHead.'
            )
        pairs = (own.logits, own.boxes), last_layers(other, len(own.logits))
        return {
            f'loss_{kind}_{name}': value
            for name, value in zip(
                ('cls', 'l1', 'giou'), self.compare(*pairs, own.sigmoid), strict=True
            )
        }
