from torch import Tensor, nn

from mmdfkd.adapters import Observation, Targets
from mmdfkd.losses import distillation_token, label_cross_entropy
from mmdfkd.registry import MODELS

from .base import DistillHead, Needs


@MODELS.register_module()
class DistillationTokenHead(DistillHead):
    """A second token of the student listens to the teacher (DeiT, Touvron et al., ICML 2021).

    For students with mmpretrain's ``DistilledVisionTransformer`` and ``DeiTClsHead``: the class
    token learns the label, the distillation token the teacher's answer; see
    :func:`~mmdfkd.losses.distillation_token`. The network's own output stays the mean of both. It
    is the whole loss of DeiT: it needs no :class:`LogitHead` beside it.

    Args:
        mode (str): ``'hard'``: the teacher's first class, or ``'soft'``: its probabilities.
            Defaults to ``'hard'``.
        alpha (float): Share of the distillation token, in [0, 1]. Defaults to 0.5, as published.
            With 0 and target labels the teacher has no say: DearKD's second stage.
        temperature (float): Of the soft mode. Defaults to 1, as released.
        labels (str): Of the class token: ``'teacher'`` takes the teacher's first class,
            ``'target'`` the class that the image is meant to show. Defaults to ``'teacher'``.
        label_smoothing (float): Of the class token's labels. Defaults to 0.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On an unknown mode or kind of labels.
    """

    needs = Needs(teacher_response=True)

    def __init__(
        self,
        mode: str = 'hard',
        alpha: float = 0.5,
        temperature: float = 1.0,
        labels: str = 'teacher',
        label_smoothing: float = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if mode not in ('hard', 'soft'):
            raise ValueError(f"DistillationTokenHead: mode must be 'hard' or 'soft', not {mode!r}.")
        if labels not in ('teacher', 'target'):
            raise ValueError(
                f"DistillationTokenHead: labels must be 'teacher' or 'target', not {labels!r}."
            )
        self.labels = labels
        if alpha == 0 and labels == 'target':
            self.needs = Needs()
        self.options = {
            'mode': mode,
            'alpha': alpha,
            'temperature': temperature,
            'label_smoothing': label_smoothing,
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
                'DistillationTokenHead needs a student with a distillation token: backbone '
                'DistilledVisionTransformer and head DeiTClsHead of mmpretrain, not '
                f'{type(head).__name__}. Use LogitHead for a student with one classifier.'
            )
        self._classifier = (head,)

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_token``."""
        if not self._classifier:
            raise RuntimeError(
                'DistillationTokenHead: bind has to be called before the first forward.'
            )
        if self.needs.teacher_response and teacher.response is None:
            raise ValueError("DistillationTokenHead needs the teacher's response.")
        labels = targets.labels if self.labels == 'target' else None
        if self.labels == 'target' and labels is None:
            raise ValueError(
                "DistillationTokenHead: labels='target' needs images drawn for a class; use "
                "'teacher'."
            )
        (head,) = self._classifier
        # The head's own forward averages the two classifiers.
        class_token, token = head.pre_logits(student.memory.feats)
        if not self.needs.teacher_response:
            logits = head.layers.head(class_token)
            smoothing = self.options['label_smoothing']
            return {'loss_token': label_cross_entropy(logits, labels, label_smoothing=smoothing)}
        loss = distillation_token(
            head.layers.head(class_token),
            head.layers.head_dist(token),
            teacher.response.logits,
            labels,
            **self.options,
        )
        return {'loss_token': loss}
