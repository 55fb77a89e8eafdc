from collections.abc import Mapping, Sequence

import torch
from mmengine.registry import OPTIMIZERS
from torch import Tensor, nn

from .blur import blurred


def _unit(images: Tensor) -> Tensor:
    """Each image divided by its root mean square; zeros stay zeros."""
    length = images.square().mean((1, 2, 3), keepdim=True).sqrt()
    return images / length.clamp_min(1e-12)


class SmoothDescent:
    """Descends on pixels in steps of one length an image, along gradients seen at several scales.

    Adam would move every pixel alike and answer with a faint texture of the patch size all over.
    Here the gradient is blurred at each of several scales, every scale gets the same say, and a
    step has momentum and a given length: the pixels that matter move, and they move together, so
    that contours and surfaces appear. It is descent preconditioned towards the spectrum of natural
    images, as in feature visualisation (Olah et al., Distill 2017, "Preconditioning and
    parameterization"), with the scales as its octaves.

    Args:
        scales (Sequence[float]): Deviations of the Gaussians, in pixels; one below 0.3 does not
            blur.
        lr (float): Root mean square of an image's change in one step, of the pixel range [0, 1].
        momentum (float): Share of the last direction in the next one, in [0, 1).

    Raises:
        ValueError: Without a scale, or if the momentum is none.
    """

    def __init__(self, scales: Sequence[float], lr: float, momentum: float = 0.8) -> None:
        if not len(scales):
            raise ValueError('SmoothDescent: needs at least one scale.')
        if not 0 <= momentum < 1:
            raise ValueError(f'SmoothDescent: momentum is at least 0 and below 1, got {momentum}.')
        self.scales = tuple(scales)
        self.lr = lr
        self.momentum = momentum
        self._move: Tensor | None = None

    @torch.no_grad()
    def step(
        self, images: Tensor, gradient: Tensor, factor: float = 1.0, where: Tensor | None = None
    ) -> None:
        """Change ``images`` in place and keep them in [0, 1].

        Args:
            images (Tensor): ``[B, 3, H, W]``; each takes its own way.
            gradient (Tensor): Of the same shape.
            factor (float): Scales the length of the step.
            where (Tensor, optional): ``[B, 1, H, W]``, how far each pixel may move.
        """
        direction = sum(_unit(blurred(gradient, scale)) for scale in self.scales)
        if where is not None:
            direction = direction * where
        if self._move is None:
            self._move = torch.zeros_like(direction)
        self._move = self.momentum * self._move + (1 - self.momentum) * direction
        images.sub_(self.lr * factor * _unit(self._move)).clamp_(0, 1)


class OptimizerDescent:
    """An ordinary optimiser on pixels, such as the Adam of published inversions.

    Args:
        optimizer (Mapping): Its config, with ``lr``.
    """

    def __init__(self, optimizer: Mapping) -> None:
        self.cfg = dict(optimizer)
        self._optimizer: torch.optim.Optimizer | None = None
        self._pixels: nn.Parameter | None = None

    def step(
        self, images: Tensor, gradient: Tensor, factor: float = 1.0, where: Tensor | None = None
    ) -> None:
        """As :meth:`SmoothDescent.step`; always on the same ``images``."""
        if self._optimizer is None:
            # It shares their memory.
            self._pixels = nn.Parameter(images)
            self._optimizer = OPTIMIZERS.build(dict(self.cfg, params=[self._pixels]))
        self._pixels.grad = gradient if where is None else gradient * where
        for group in self._optimizer.param_groups:
            group['lr'] = self.cfg['lr'] * factor
        self._optimizer.step()
        images.clamp_(0, 1)
