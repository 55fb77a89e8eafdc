"""Weights by the size of the gradients that the heads send into the student."""

from collections.abc import Mapping, Sequence

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from mmdfkd.heads import DistillHead

# A power of two: nothing is rounded by it.
_SCALE = 2.0**16


class GradientBalance(nn.Module):
    """Gives every head a gradient of the size that its weight asks for.

    With ``L_h`` the losses of head ``h`` before weight and schedule, ``theta`` weights of the
    student that all heads reach, and ``n_h`` the moving average of ``|d L_h / d theta|``, the
    losses of ``h`` are multiplied by::

        n_0 / n_h

    beside its weight and schedule: at ``theta`` head ``h`` has ``loss_weight_h`` times the gradient
    of the first head before its weight, whatever the units of both losses. The first head keeps
    its own scale. Until it has been measured, every factor is 1.

    The measure costs a backward from each loss to ``theta``, every few iterations. Nothing is
    random; the averages are saved with the run.

    (Ours; the ratio of gradient norms at the last layer is that of Esser et al., *Taming
    Transformers*, CVPR 2021, Eq. 7, there for two losses and without an average.)

    Args:
        layer (str, optional): Module of the student whose parameters are ``theta``. Defaults to the
            last weight matrix of its backbone that all heads reach.
        every (int): Iterations between two measures. Defaults to 10.
        momentum (float): Share of the old average in the new one, in [0, 1). Defaults to 0.9.

    Raises:
        ValueError: If ``every`` or ``momentum`` is out of range.
    """

    def __init__(self, layer: str | None = None, every: int = 10, momentum: float = 0.9) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f'balance: every must be at least 1, not {every}.')
        if not 0 <= momentum < 1:
            raise ValueError(f'balance: momentum must be in [0, 1), not {momentum}.')
        self.layer = layer
        self.every = every
        self.momentum = momentum
        # In a tuple: the parameters are the student's.
        self._theta: tuple[nn.Parameter, ...] = ()
        self._names: tuple[str, ...] = ()

    @property
    def theta(self) -> tuple[nn.Parameter, ...]:
        """The weights at which gradients are measured; none before :meth:`bind`."""
        return self._theta

    def bind(
        self, net: nn.Module, heads: Sequence[DistillHead], reached: Sequence[Mapping]
    ) -> None:
        """Choose ``theta``; once, before the first forward.

        Args:
            net (nn.Module): The plain student.
            heads (Sequence[DistillHead]): Its heads.
            reached (Sequence[Mapping]): Of each head, the parameters that it reaches, by name.

        Raises:
            ValueError: If there is no such layer, or it is out of a head's reach.
        """
        device = next(net.parameters()).device
        self.register_buffer('norms', torch.zeros(len(heads), device=device))
        kinds = [type(head).__name__ for head in heads]
        self._names = tuple(
            kind if kinds.count(kind) == 1 else f'{kind}{i}' for i, kind in enumerate(kinds)
        )
        if self.layer is None:
            shared = [
                name
                for name, p in net.named_parameters()
                if p.dim() > 1 and name.startswith('backbone.') and all(name in r for r in reached)
            ]
            if not shared:
                raise ValueError(
                    f'balance: no weight of the backbone is reached by all of {", ".join(kinds)}; '
                    'name a layer that is.'
                )
            names = shared[-1:]
        else:
            names = [n for n, _ in net.named_parameters() if f'{n}.'.startswith(f'{self.layer}.')]
            if not names:
                raise ValueError(f"balance: the student has no layer '{self.layer}' with weights.")
            for kind, own in zip(kinds, reached, strict=True):
                if not any(name in own for name in names):
                    raise ValueError(f"balance: {kind} does not reach the layer '{self.layer}'.")
        parameters = dict(net.named_parameters())
        self._theta = tuple(parameters[name] for name in names)

    def forward(
        self, losses: Sequence[dict[str, Tensor]], heads: Sequence[DistillHead], places: list[int]
    ) -> list[dict[str, Tensor]]:
        """Multiply the losses of the heads at work.

        Args:
            losses (Sequence[dict[str, Tensor]]): Of each head at work, with weight and schedule.
            heads (Sequence[DistillHead]): These heads.
            places (list[int]): Their places among all heads.
        """
        for own, head, place in zip(losses, heads, places, strict=True):
            if head.iteration % self.every == 0 or self.norms[place] == 0:
                self._measure(place, sum(own.values()) / head.factor)
        factors = self.factors()
        return [
            {name: value * factors[place] for name, value in own.items()}
            for own, place in zip(losses, places, strict=True)
        ]

    def factors(self) -> Tensor:
        """The factor of each head, ``[heads]``."""
        known = (self.norms > 0) & (self.norms[0] > 0)
        return torch.where(known, self.norms[0] / self.norms.clamp_min(1e-30), 1.0)

    def log(self) -> dict[str, Tensor]:
        """The factors by the name of their head, for the log."""
        return {
            f'balance_{name}': factor
            for name, factor in zip(self._names, self.factors(), strict=True)
        }

    def _measure(self, place: int, loss: Tensor) -> None:
        if not loss.requires_grad:
            return
        # Those that are fixed for a while give no gradient.
        theta = [p for p in self._theta if p.requires_grad]
        if not theta:
            return
        # As a gradient scaler does: gradients of means vanish in half precision.
        loss = loss.float() * _SCALE
        grads = torch.autograd.grad(loss, theta, retain_graph=True, allow_unused=True)
        squares = [(g.detach().float() / _SCALE).square().sum() for g in grads if g is not None]
        norm = torch.stack(squares).sum().sqrt() if squares else self.norms.new_zeros(())
        all_reduce(norm, 'mean')
        # A batch without anything to compare says nothing about the scale.
        if norm.isfinite() and norm > 0:
            old = self.norms[place]
            self.norms[place] = norm if old == 0 else torch.lerp(norm, old, self.momentum)
