from collections.abc import Sequence

import torch
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from torch import Tensor, nn

# Halving stops here: what is less sure than that is no object.
_LEAST = 0.05


class NoDetectionsError(RuntimeError):
    """The teacher detects nothing surely enough to be learned from."""


class ObjectWatch:
    """A head that learns from objects the teacher is sure of, and says where there are none.

    It stands before :class:`~mmdfkd.heads.base.DistillHead` among the bases and calls
    :meth:`start_watch` once, :meth:`sure` to choose its objects and :meth:`watch` in every step.

    Attributes:
        threshold: Least score of an object: one number, or one for each class. In the checkpoint,
            as the count of empty steps is: a resumed run goes on as it was.
        on_empty: What follows on ``patience`` training steps on end without an object in any
            process: ``'warn'`` goes on, ``'lower'`` halves the threshold, down to 0.05, ``'stop'``
            ends the run.
        patience: See above.
        meanwhile: What the student learns then, for the warning: a sentence.
    """

    meanwhile = 'The student learns nothing but background from it.'
    threshold: Tensor
    empty_steps: Tensor
    on_empty: str
    patience: int

    def start_watch(self, threshold: float | Sequence[float], on_empty: str, patience: int) -> None:
        """Take the settings and begin to count.

        Raises:
            ValueError: On a threshold outside (0, 1), an unknown ``on_empty`` or no patience.
        """
        who = type(self).__name__
        least = torch.tensor(threshold, dtype=torch.float32)
        if not least.numel() or least.dim() > 1 or not ((least > 0) & (least < 1)).all():
            raise ValueError(
                f'{who}: threshold is in (0, 1), one number or one for each class, not {threshold}.'
            )
        if on_empty not in ('warn', 'lower', 'stop'):
            raise ValueError(f"{who}: on_empty is 'warn', 'lower' or 'stop', not {on_empty!r}.")
        if patience < 1:
            raise ValueError(f'{who}: patience is at least 1 step, not {patience}.')
        self.on_empty = on_empty
        self.patience = patience
        self.register_buffer('threshold', least)
        self.register_buffer('empty_steps', torch.zeros((), dtype=torch.int64))

    def bind(self, student: nn.Module, teacher: nn.Module) -> None:
        """Look whether there are as many thresholds as classes.

        Raises:
            ValueError: If there are not.
        """
        super().bind(student, teacher)
        if not self.threshold.dim():
            return
        head = getattr(teacher, 'roi_head', teacher).bbox_head
        classes = int((head[0] if isinstance(head, nn.ModuleList) else head).num_classes)
        if len(self.threshold) != classes:
            raise ValueError(
                f'{type(self).__name__}: {len(self.threshold)} thresholds for {classes} classes.'
            )

    def sure(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Which of these reach their threshold: ``[N]`` of bools, as scores and classes are."""
        return scores >= (self.threshold[labels] if self.threshold.dim() else self.threshold)

    def watch(self, count: int) -> None:
        """Count steps without an object in any process; only those that train.

        Args:
            count (int): Objects of this process's images.

        Raises:
            NoDetectionsError: Where ``on_empty='stop'`` says so.
        """
        if not (torch.is_grad_enabled() and self.training):
            return
        total = torch.full_like(self.empty_steps, count)
        all_reduce(total)
        self.empty_steps.fill_(0 if total else int(self.empty_steps) + 1)
        if int(self.empty_steps) < self.patience:
            return
        self.empty_steps.zero_()
        self.nothing_seen(
            f'{type(self).__name__}: no detection of the teacher above '
            f'{self._least()} in {self.patience} steps on end. '
        )

    def nothing_seen(self, said: str) -> None:
        """Do what is configured.

        Args:
            said (str): What has been seen, or not: a sentence.

        Raises:
            NoDetectionsError: Where ``on_empty='stop'`` says so.
        """
        if self.on_empty == 'stop':
            raise NoDetectionsError(
                said + 'Lower the threshold, or take images with objects in them '
                '(mmdfkd.LayoutInversionSource).'
            )
        if self.on_empty == 'lower':
            # One that was set below the least stays where it is.
            self.threshold.copy_(
                torch.maximum(self.threshold / 2, self.threshold.clamp(max=_LEAST))
            )
            said += f'The threshold is now {self._least()}.'
        else:
            said += self.meanwhile
        print_log(said, 'current', 30)

    def _least(self) -> str:
        """The threshold, for messages."""
        ends = (f'{float(end):.3f}' for end in self.threshold.aminmax())
        return ' to '.join(dict.fromkeys(ends))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        # Checkpoints of before these were kept.
        for name in ('threshold', 'empty_steps'):
            state_dict.setdefault(prefix + name, getattr(self, name).clone())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
