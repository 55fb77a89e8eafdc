import torch
from torch import Tensor

from mmdfkd.adapters import Observation, QueryAnswers, Targets
from mmdfkd.adapters.matching import assign_all
from mmdfkd.losses import foreground, query_cost
from mmdfkd.registry import MODELS

from .base import Needs
from .query_base import QueryHead, last_layers

# A logit of which no temperature in use leaves a doubt.
_CERTAIN = 1e4


@MODELS.register_module()
class HungarianQueryHead(QueryHead):
    """The student's own answers, each paired with one of the teacher's by a Hungarian matching.

    DETRDistill's logits and boxes (Chang et al., ICCV 2023): all queries are paired, those that see
    background, too. Any two DETRs with one kind of class loss can be compared, and what is trained
    is what the student does at inference. Of unequal numbers (ours): a student with fewer queries
    is paired with its teacher's surest; of one with more, those that are left are background.

    The costs of all images are computed at once and cross to the CPU once. The published matching
    is done anew in every layer; a query means nearly the same object in all of them, so one
    matching at the last layer serves all by default. Every layer of the student follows the
    teacher's last, matched or not; published is the teacher's same layer (detection_style.md 1.1),
    which asks for decoders of one depth.

    A matching of hundreds of queries, nearly all of which see background and cost alike, can become
    the cost of a step. ``most`` matches the teacher's surest alone; the others are paired with the
    student's others in the order of how sure they are, which takes no time.

    Args:
        matching (str): ``'last'`` pairs the queries once, at the last layers; ``'each'`` anew in
            every layer of the student, with the teacher's last. Defaults to ``'last'``.
        cost (tuple[float, float, float]): Weights of classes, L1 and GIoU in the matching. Defaults
            to DETRDistill's (1, 5, 2).
        most (int, optional): So many of the teacher's surest queries are matched. Defaults to all,
            as published.
        **kwargs: ``temperature``, ``floor``, ``cls_weight``, ``l1_weight`` and ``giou_weight`` of
            :class:`~mmdfkd.heads.query_base.QueryHead`, and those of :class:`DistillHead`.

    Raises:
        ValueError: On an unknown matching, or ``most`` below 1.
    """

    needs = Needs(teacher_response=True, own=True)

    def __init__(
        self,
        matching: str = 'last',
        cost: tuple[float, float, float] = (1.0, 5.0, 2.0),
        most: int | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if matching not in ('last', 'each'):
            raise ValueError(f"HungarianQueryHead: matching is 'last' or 'each', not {matching!r}.")
        if most is not None and most < 1:
            raise ValueError(f'HungarianQueryHead: most is at least 1 query, not {most}.')
        self.matching = matching
        self.cost = tuple(cost)
        self.most = most

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_hungarian_cls``, ``_l1`` and ``_giou``."""
        own, other = (response.own for response in self.responses(student, teacher))
        layers = len(own.logits)
        ours, theirs = (own.logits, own.boxes), _surest(other, own.logits.shape[2], layers)
        rows, columns = self.pairs(own, other)
        if self.matching == 'last':
            rows, columns = (x.expand(layers, -1, -1) for x in (rows, columns))
        left = _others(rows, own.logits.shape[2])
        silent = _background(ours[0], left.shape[-1], own.sigmoid)
        pairs = (
            tuple(_taken(x, torch.cat([rows, left], -1)) for x in ours),
            tuple(
                torch.cat([_taken(x, columns), y], 2) for x, y in zip(theirs, silent, strict=True)
            ),
        )
        names = 'loss_hungarian_cls', 'loss_hungarian_l1', 'loss_hungarian_giou'
        return dict(zip(names, self.compare(*pairs, own.sigmoid), strict=True))

    @torch.no_grad()
    def pairs(self, own: QueryAnswers, other: QueryAnswers) -> tuple[Tensor, Tensor]:
        """Which queries are paired.

        Returns:
            tuple[Tensor, Tensor]: Indices of the student's and of the teacher's, ``[l, B, K]``,
            ``l`` being 1 where one matching serves all layers. The teacher's count among its
            surest, where it has more than the student.
        """
        first = -1 if self.matching == 'last' else 0
        logits, boxes = own.logits[first:], own.boxes[first:]
        wanted = _surest(other, logits.shape[2], len(logits))
        if self.most is None or self.most >= wanted[0].shape[2]:
            return self._match(own.sigmoid, (logits, boxes), wanted)
        order = foreground(wanted[0], other.sigmoid).argsort(-1, descending=True)
        surest, others = order.split([self.most, order.shape[-1] - self.most], -1)
        rows, columns = self._match(
            own.sigmoid, (logits, boxes), tuple(_taken(x, surest) for x in wanted)
        )
        left = _others(rows, logits.shape[2])
        sure = foreground(logits, own.sigmoid).gather(2, left).argsort(-1, descending=True)
        rest = left.gather(2, sure[..., : others.shape[-1]])
        return torch.cat([rows, rest], -1), torch.cat([surest.gather(2, columns), others], -1)

    def _match(self, sigmoid: bool, ours: tuple, theirs: tuple) -> tuple[Tensor, Tensor]:
        """A matching for every layer and image."""
        cost = query_cost(*(x.flatten(0, 1) for x in (*ours, *theirs)), sigmoid, self.cost)
        return tuple(x.unflatten(0, ours[0].shape[:2]) for x in assign_all(cost))


def _surest(answers: QueryAnswers, most: int, layers: int) -> tuple[Tensor, Tensor]:
    """The last layer's logits and boxes of at most so many queries, ``[layers, B, K, ...]``."""
    last = last_layers(answers, layers)
    if last[0].shape[2] <= most:
        return last
    best = foreground(answers.logits[-1], answers.sigmoid).topk(most, dim=-1).indices
    return tuple(_taken(x, best.expand(layers, -1, -1)) for x in last)


def _others(rows: Tensor, count: int) -> Tensor:
    """The indices below ``count`` that are not among ``rows`` ``[L, B, K]``, rising."""
    chosen = torch.zeros(*rows.shape[:2], count, device=rows.device).scatter(2, rows, 1.0)
    return chosen.argsort(dim=-1, stable=True)[..., : count - rows.shape[-1]]


def _background(logits: Tensor, count: int, sigmoid: bool) -> tuple[Tensor, Tensor]:
    """Answers of queries that see nothing: logits and boxes, ``[L, B, count, ...]``."""
    shape = (*logits.shape[:2], count)
    silent = logits.new_full((*shape, logits.shape[-1]), -_CERTAIN)
    if not sigmoid:
        silent[..., -1] = _CERTAIN
    return silent, logits.new_full((*shape, 4), 0.5)


def _taken(values: Tensor, index: Tensor) -> Tensor:
    """Queries ``index`` ``[L, B, K]`` of ``[L, B, Q, C]``."""
    return values.gather(2, index[..., None].expand(*index.shape, values.shape[-1]))
