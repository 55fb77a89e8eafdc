from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmdfkd.registry import MODELS

from .base import Generator, map_norm


@MODELS.register_module()
class ConvGenerator(Generator):
    """The convolutional generator of data-free distillation.

    A linear layer to the first grid, then per stage: enlarge to the nearest pixel, 3 x 3
    convolution, norm, leaky rectifier; a last convolution to RGB. With the defaults, at 32 px it is
    DAFL's (Chen et al., ICCV 2019), which ZSKT, DFAD, DFQ, Fast and NAYER took over: 128 channels
    at 8 px, 128 at 16, 64 at 32. DAFL ends in tanh and a norm without scale, so that images leave
    with the contrast that a network expects; ours ends in a norm and a sigmoid, which keeps that
    and the pixels in [0, 1].

    An image of 224 px wants more stages: ``channels=(128, 128, 128, 64, 64, 64)`` with ``base=7``.

    Args:
        noise_dims (int): Numbers of noise an image; with ``noisy_layers`` the width behind them.
        channels (Sequence[int]): Of the first grid and after each enlargement: one stage less than
            numbers.
        base (int | Sequence[int]): Height and width of the first grid; a quarter of the image, as
            published, is 8 at 32 px and 7 at 28.
        label_dims (int): Numbers of a label's code; 0 for a generator that knows no labels.
        noisy_layers (int): NAYER's; see :class:`~mmdfkd.models.generators.base.Generator`.
        norm (str): ``'batch'``, as published, or ``'group'``.
        init_cfg (dict, optional): mmengine's initialisation.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        noise_dims: int = 256,
        channels: Sequence[int] = (128, 128, 64),
        base: int | Sequence[int] = 8,
        label_dims: int = 0,
        noisy_layers: int = 0,
        norm: str = 'batch',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(noise_dims, base, label_dims, noisy_layers, init_cfg)
        if len(channels) < 2:
            raise ValueError(
                f'ConvGenerator: channels has one number for the first grid and one for each '
                f'enlargement, at least two, not {tuple(channels)}.'
            )
        self.channels = tuple(channels)
        self.stem = nn.Linear(self.latent.dims, channels[0] * self.base[0] * self.base[1])
        self.norm = map_norm(norm, channels[0])
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                map_norm(norm, after),
                nn.LeakyReLU(0.2),
            )
            for before, after in zip(channels[:-1], channels[1:], strict=True)
        )
        self.to_rgb = nn.Sequential(
            nn.Conv2d(channels[-1], 3, 3, padding=1, bias=False), map_norm(norm, 3), nn.Sigmoid()
        )

    def render(self, latent: Tensor, size: tuple[int, int]) -> Tensor:
        """From ``[B, D]`` to images ``[B, 3, H, W]`` in [0, 1]."""
        x = self.norm(self.stem(latent).view(len(latent), self.channels[0], *self.base))
        for stage, grid in zip(self.stages, self.sizes(size, len(self.stages)), strict=True):
            x = stage(F.interpolate(x, grid))
        return self.to_rgb(x)
