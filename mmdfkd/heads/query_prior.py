from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdfkd.adapters import Observation, Targets
from mmdfkd.adapters.matching import SetCriterion
from mmdfkd.registry import MODELS

from .base import DistillHead, Needs
from .object_watch import ObjectWatch
from .query_base import require_detrs


@MODELS.register_module()
class QueryPriorHead(ObjectWatch, DistillHead):
    """The student's own set loss at the teacher's queries, by the teacher's assignment.

    DETRDistill's query prior (Chang et al., ICCV 2023): what the teacher detects are
    the objects, and the query that detects an object is responsible for it, in every decoder layer
    of the student, so that no matching wavers. A query below the threshold is background. Where
    none passes it in ``patience`` steps on end, that is said, and what is configured happens.

    Args:
        threshold (float | Sequence[float]): Least class probability of an object, in (0, 1); one
            for each class, or one for all. Defaults to 0.4.
        on_empty (str): ``'warn'`` goes on, ``'lower'`` halves the threshold, down to
            0.05, ``'stop'`` ends the run. Defaults to ``'warn'``.
        patience (int): Steps on end without an object after which that happens. Defaults to 200.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On an argument that makes no sense.
    """

    needs = Needs(response=True)

    def __init__(
        self,
        threshold: float | Sequence[float] = 0.4,
        on_empty: str = 'warn',
        patience: int = 200,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.start_watch(threshold, on_empty, patience)
        self.criterion: SetCriterion | None = None

    def bind(self, student: nn.Module, teacher: nn.Module) -> None:
        """Take the weights of the student's own losses.

        Raises:
            ValueError: If one of both is no DETR.
        """
        require_detrs(type(self).__name__, student, teacher)
        super().bind(student, teacher)
        self.criterion = SetCriterion.of_head(student.bbox_head)

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_query_prior``, the mean over layers and images.

        Raises:
            NoDetectionsError: Where ``on_empty='stop'`` says so.
        """
        own, other = (response.asked for response in self.responses(student, teacher))
        if own is None:
            raise ValueError(
                "QueryPriorHead: the student cannot be asked the teacher's queries (other decoder "
                'or width): use mmdfkd.PseudoLabelHead, which matches.'
            )
        scores, classes = other.probabilities.max(-1)
        size, terms, count = student.memory.image_size, [], 0
        for b, wanted in enumerate(other.boxes[-1].detach()):
            queries = self.sure(scores[b], classes[b]).nonzero().flatten()
            labels = classes[b, queries]
            count += len(queries)
            pairs = queries, torch.arange(len(queries), device=queries.device)
            terms += [
                self.criterion.loss(logits[b], boxes[b], wanted[queries], labels, pairs, size)
                for logits, boxes in zip(own.logits, own.boxes, strict=True)
            ]
        self.watch(count)
        return {'loss_query_prior': torch.stack(terms).mean()}
