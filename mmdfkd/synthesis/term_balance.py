"""How much the terms of a generator count after its images have collapsed."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .priors.base import Prior

#: Most changes of the weights in a run: from there on a generator only starts anew.
_MOST = 4
#: Every so many alarms the generator starts anew instead.
_ANEW = 3


class TermBalance(nn.Module):
    """Weights of a generator's terms, which collapses shift; as configured while there was none.

    A collapse doubles the weights of the terms that ask for different images
    (``Prior.role == 'diversity'``) and halves those of the terms that set the generator on the
    student (``'adversary'``). Where the student has only learned what is drawn (``'divergence'``
    alone), the adversary stays as it is. Two collapses on end do so; the third has the
    generator start anew, and so do all after four changes, and every one where there are not
    at least two kinds of terms to shift between. How often each happened is in the checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        # Collapses, doublings and halvings.
        self.register_buffer('collapses', torch.zeros(3, dtype=torch.int64))

    def weight_of(self, prior: Prior) -> float:
        """A term's weight as it now is."""
        if prior.role is None:
            return prior.weight
        _, doubled, halved = self.collapses.tolist()
        return prior.weight * (2**doubled if prior.role == 'diversity' else 0.5**halved)

    def shift(self, priors: Iterable[Prior], reasons: Sequence[str]) -> str | None:
        """Take note of a collapse and change the weights.

        Args:
            priors (Iterable[Prior]): The terms of the objective.
            reasons (Sequence[str]): What has collapsed, see
                :meth:`mmdfkd.synthesis.SyntheticSource.on_collapse`.

        Returns:
            str | None: What was changed; None where the generator is to start anew.
        """
        priors = list(priors)
        before = {prior: self.weight_of(prior) for prior in priors}
        spared = set(reasons) == {'divergence'}
        count, done = int(self.collapses[0]) + 1, int(self.collapses[1:].max())
        self.collapses[0] = count
        moved = {p.role for p in priors if p.role == 'diversity' or (p.role and not spared)}
        still = any(prior.role not in moved for prior in priors)
        if count % _ANEW == 0 or done >= _MOST or not moved or not (still or len(moved) > 1):
            return None
        self.collapses[1] += 'diversity' in moved
        self.collapses[2] += 'adversary' in moved
        return ', '.join(
            f'{prior.name} weighs {now:g}, not {old:g}'
            for prior, old in before.items()
            if (now := self.weight_of(prior)) != old
        )

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args, **kwargs):
        # Checkpoints of before there was such a count.
        state_dict.setdefault(f'{prefix}collapses', torch.zeros(3, dtype=torch.int64))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
