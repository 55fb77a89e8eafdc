from torch import Tensor

from mmdfkd.adapters import Observation, Targets
from mmdfkd.registry import MODELS

from .base import Needs
from .query_base import QueryHead, last_layers


@MODELS.register_module()
class StudentQueryHead(QueryHead):
    """The teacher answers the student's own queries, and the student follows, layer by layer.

    At inference the student asks its own queries, which lie elsewhere than its teacher's; and
    whether one of two queries of an object keeps silent is settled among those that are asked. A
    student that has only been taught at other queries (:class:`QueryAlignedHead`) finds an object
    twice. So here the teacher's decoder is asked what the student asks: pairs without any matching,
    on the student's own distribution. Ours; no paper is known to us.

    Every query counts alike by default, since it is those that see nothing that have to be learned.
    Every decoder layer of the student follows the teacher's last.

    Args:
        floor (float): As in :class:`~mmdfkd.heads.query_base.QueryHead`. Defaults to 1.
        **kwargs: ``temperature``, ``cls_weight``, ``l1_weight`` and ``giou_weight`` of
            :class:`~mmdfkd.heads.query_base.QueryHead`, and those of :class:`DistillHead`.
    """

    needs = Needs(response=True)

    def __init__(self, floor: float = 1.0, **kwargs) -> None:
        super().__init__(floor=floor, **kwargs)

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_student_query_cls``, ``_l1`` and ``_giou``.

        Raises:
            ValueError: If the teacher cannot be asked the student's queries.
        """
        own, other = self.responses(student, teacher)
        wanted = other.ask(own.find_queries())
        if wanted is None:
            raise ValueError(
                "StudentQueryHead: the teacher cannot be asked the student's queries. Learned "
                'queries need one kind of decoder and one width; boxes (DAB-DETR, DINO, two-stage '
                'Deformable DETR) any. Match the answers instead: mmdfkd.HungarianQueryHead.'
            )
        answers = own.own
        pairs = (answers.logits, answers.boxes), last_layers(wanted, len(answers.logits))
        names = 'loss_student_query_cls', 'loss_student_query_l1', 'loss_student_query_giou'
        return dict(zip(names, self.compare(*pairs, answers.sigmoid), strict=True))
