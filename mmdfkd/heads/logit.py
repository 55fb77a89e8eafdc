import inspect
from collections.abc import Callable, Mapping

from torch import Tensor

from mmdfkd.adapters import Observation, Targets
from mmdfkd.losses import (
    dist,
    dkd,
    hard_label,
    kl_divergence,
    label_cross_entropy,
    nkd,
    sparse_label_ce,
    top_k_labels,
    with_standardized_logits,
)
from mmdfkd.registry import MODELS

from .base import DistillHead, Needs


def top_k(student_logits: Tensor, teacher_logits: Tensor, k: int = 100) -> Tensor:
    """:func:`~mmdfkd.losses.sparse_label_ce` with what would be stored of the teacher's answer."""
    k = min(k, teacher_logits.shape[-1])
    return sparse_label_ce(student_logits, top_k_labels(teacher_logits, k))


def label(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """:func:`~mmdfkd.losses.label_cross_entropy`: the teacher's answer is not read."""
    return label_cross_entropy(student_logits, labels, label_smoothing=label_smoothing)


#: Losses of logits by name, as ``LogitHead.loss`` takes them.
LOGIT_LOSSES: dict[str, Callable[..., Tensor]] = {
    'kl': kl_divergence,
    'hard': hard_label,
    'label': label,
    'dkd': dkd,
    'nkd': nkd,
    'dist': dist,
    'top_k': top_k,
}
# Where the head's temperature is not set and the loss's own default is not meant.
_TEMPERATURE = {'kl': 4.0}
_STANDARDIZED_TEMPERATURE = {'kl': 2.0}
_ARGUMENTS_OF_THE_HEAD = ('student_logits', 'teacher_logits', 'labels', 'weight', 'temperature')


@MODELS.register_module()
class LogitHead(DistillHead):
    """A classifier follows its teacher's answers (Hinton et al., 2015, and what came after).

    Args:
        temperature (float, optional): Softens both distributions, where the loss has one. Defaults
            to the loss's own: ``'kl'`` 4 (2 if standardised), ``'dkd'`` 4, ``'nkd'`` and ``'dist'``
            1.
        ce_weight (float): Weight of a cross-entropy with hard labels, relative to the loss.
            Defaults to 0.
        hard_labels (str): Labels of the cross-entropy and of ``'label'``, and target classes of
            ``'dkd'`` and ``'nkd'``: ``'teacher'`` takes the teacher's first class (DeiT's hard
            distillation), ``'target'`` the class that the image is meant to show. Defaults to
            ``'teacher'``.
        loss (str | Mapping): ``'kl'`` (softened divergence), ``'hard'`` (the teacher's decision),
            ``'label'`` (``hard_labels`` alone), ``'dkd'``, ``'nkd'``, ``'dist'`` or ``'top_k'``
            (TinyViT's sparse labels); or a mapping with ``type`` and options of that function of
            :mod:`mmdfkd.losses`, such as ``dict(type='dkd', beta=2.0)``. Defaults to ``'kl'``.
        standardize (bool): Take the logits of both in units of their own spread (Sun et al., CVPR
            2024): the student need not match their scale. Not for the cross-entropy. Defaults to
            False.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On unknown ``hard_labels``, an unknown loss, or options that it does not take.
    """

    needs = Needs(response=True)

    def __init__(
        self,
        temperature: float | None = None,
        ce_weight: float = 0.0,
        hard_labels: str = 'teacher',
        loss: str | Mapping = 'kl',
        standardize: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if hard_labels not in ('teacher', 'target'):
            raise ValueError(f"hard_labels must be 'teacher' or 'target', not {hard_labels!r}.")
        options = {'type': loss} if isinstance(loss, str) else dict(loss)
        self.loss = options.pop('type', None)
        if self.loss not in LOGIT_LOSSES:
            raise ValueError(
                f'LogitHead: loss must be one of {sorted(LOGIT_LOSSES)}, not {self.loss!r}.'
            )
        takes = inspect.signature(LOGIT_LOSSES[self.loss]).parameters
        allowed = [name for name in takes if name not in _ARGUMENTS_OF_THE_HEAD]
        if not set(options) <= set(allowed):
            raise ValueError(
                f"LogitHead: loss '{self.loss}' takes the options {allowed}, not "
                f"{sorted(set(options) - set(allowed))} (temperature is the head's own)."
            )
        if temperature is None:
            defaults = {**_TEMPERATURE, **(_STANDARDIZED_TEMPERATURE if standardize else {})}
            temperature = defaults.get(self.loss)
        elif 'temperature' not in takes:
            raise ValueError(f"LogitHead: loss '{self.loss}' has no temperature.")
        if temperature is not None:
            options['temperature'] = temperature
        self.options = options
        self.labelled = 'labels' in takes
        self.standardize = standardize
        self.ce_weight = ce_weight
        self.hard_labels = hard_labels

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_<loss>``, such as ``loss_kl``, and ``loss_ce`` where it has a weight."""
        own, other = self.responses(student, teacher)
        options = dict(self.options)
        labels = None
        if self.labelled or self.ce_weight:
            labels = other.logits.argmax(-1) if self.hard_labels == 'teacher' else targets.labels
            if labels is None:
                raise ValueError(
                    "LogitHead: hard_labels='target' needs images drawn for a class, or those of a "
                    "labelled set (DatasetSource(labels=True)); use 'teacher'."
                )
        if self.labelled:
            options['labels'] = labels
        loss = LOGIT_LOSSES[self.loss]
        if self.standardize:
            value = with_standardized_logits(loss, own.logits, other.logits, **options)
        else:
            value = loss(own.logits, other.logits, **options)
        losses = {f'loss_{self.loss}': value}
        if self.ce_weight:
            losses['loss_ce'] = self.ce_weight * label_cross_entropy(own.logits, labels)
        return losses
