from collections.abc import Sequence

from torch import Tensor, nn

from mmdfkd.adapters import Observation, Targets
from mmdfkd.losses import co_advise
from mmdfkd.registry import MODELS

from .base import DistillHead, Needs


@MODELS.register_module()
class CoAdviseHead(DistillHead):
    """Two teachers of different inductive bias, each heard by a token of its own.

    After Co-advise (Ren et al., CVPR 2022; papers.md Part 3.4), for students with mmpretrain's
    ``DistilledVisionTransformer`` and ``DeiTClsHead``: the class token listens to the run's
    ``teacher``, the distillation token to the first of its ``extra_teachers``, and their mean,
    which is the network's output, learns the label; see :func:`~mmdfkd.losses.co_advise`.

    (Ours: the published student has a third token for the label and stems of convolution and
    involution; here it is an ordinary DeiT, exported as it is.)

    Args:
        weights (Sequence[float]): Of both divergences. Defaults to 1 each, as published.
        temperatures (Sequence[float]): Of both. Defaults to 1 each, as published.
        class_weight (float): Of the cross-entropy with the label. Defaults to 1.
        labels (str): ``'teachers'`` takes the class of the highest mean probability of both,
            ``'target'`` the class that the image is meant to show. Defaults to ``'teachers'``.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On unknown labels, or if there are not two weights and temperatures.
    """

    needs = Needs(teacher_response=True, extra_teachers=1)

    def __init__(
        self,
        weights: Sequence[float] = (1.0, 1.0),
        temperatures: Sequence[float] = (1.0, 1.0),
        class_weight: float = 1.0,
        labels: str = 'teachers',
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if labels not in ('teachers', 'target'):
            raise ValueError(
                f"CoAdviseHead: labels must be 'teachers' or 'target', not {labels!r}."
            )
        if len(weights) != 2 or len(temperatures) != 2:
            raise ValueError(
                f'CoAdviseHead has two teachers: weights {tuple(weights)} and temperatures '
                f'{tuple(temperatures)} must be two each.'
            )
        self.labels = labels
        self.options = {
            'weights': tuple(weights),
            'temperatures': tuple(temperatures),
            'class_weight': class_weight,
        }
        # In a tuple: the classifiers are the student's, no children of the head.
        self._classifier: tuple[nn.Module, ...] = ()

    def bind(self, student: nn.Module, teacher: nn.Module) -> None:
        """Find the student's two classifiers.

        Raises:
            ValueError: If it has not two.
        """
        head = getattr(student, 'head', None)
        if not hasattr(getattr(head, 'layers', None), 'head_dist'):
            raise ValueError(
                'CoAdviseHead needs a student with a token for each teacher: backbone '
                'DistilledVisionTransformer and head DeiTClsHead of mmpretrain, not '
                f'{type(head).__name__}.'
            )
        self._classifier = (head,)

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_advise``."""
        if not self._classifier:
            raise RuntimeError('CoAdviseHead: bind has to be called before the first forward.')
        labels = targets.labels if self.labels == 'target' else None
        if self.labels == 'target' and labels is None:
            raise ValueError(
                "CoAdviseHead: labels='target' needs images drawn for a class; use 'teachers'."
            )
        (head,) = self._classifier
        first, second = head.pre_logits(student.memory.feats)
        first, second = head.layers.head(first), head.layers.head_dist(second)
        loss = co_advise(
            (first + second) / 2,
            [first, second],
            [teacher.response.logits, teacher.others[0].response.logits],
            labels,
            **self.options,
        )
        return {'loss_advise': loss}
