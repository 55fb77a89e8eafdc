import torch
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from torch import Tensor


class ObjectWatch:
    """A head that learns from objects the teacher is sure of, and says where there are none.

    It stands before :class:`~mmdfkd.heads.base.DistillHead` among the bases, has a ``threshold``,
    and calls :meth:`start_watch` once and :meth:`watch` in every step.

    Attributes:
        patience: Steps on end without an object after which :meth:`nothing_seen` is called.
        meanwhile: What the student learns then, for the warning: a sentence.
    """

    patience = 200
    meanwhile = 'The student learns nothing but background from it.'
    threshold: float | Tensor
    empty_steps: Tensor

    def start_watch(self) -> None:
        """Begin to count; the count is in the checkpoint, so that a resumed run goes on alike."""
        self.register_buffer('empty_steps', torch.zeros((), dtype=torch.int64))

    def watch(self, count: int) -> None:
        """Count steps without an object in any process; only those that train.

        Args:
            count (int): Objects of this process's images.
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
            f'{float(self.threshold):.3f} in {self.patience} steps on end. '
        )

    def nothing_seen(self, said: str) -> None:
        """Warn.

        Args:
            said (str): What has been seen, or not: a sentence.
        """
        print_log(said + self.meanwhile, 'current', 30)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        # Checkpoints of before there was such a count.
        state_dict.setdefault(f'{prefix}empty_steps', torch.zeros((), dtype=torch.int64))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
