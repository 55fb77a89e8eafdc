from abc import abstractmethod
from math import sqrt

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from .latent import NoiseLatent, NoisyLayerLatent


class Generator(BaseModule):
    """From noise, and labels where it knows them, to images of any size.

    The grid starts at ``base`` and grows to the image in stages of one factor each, so that no
    weight depends on the size of the image: 8, 16, 32 px for an image of 32, and of another base,
    size or shape accordingly.

    Args:
        noise_dims (int): Numbers of noise an image; with ``noisy_layers`` the width behind them.
        base (int | tuple[int, int]): Height and width of the first grid.
        label_dims (int): Numbers of a label's code; 0 for a generator that knows no labels.
        noisy_layers (int): Above 0, random linear layers on the code take the place of the noise
            (:class:`~mmdfkd.models.generators.latent.NoisyLayerLatent`).
        init_cfg (dict, optional): mmengine's initialisation.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        noise_dims: int,
        base: int | tuple[int, int],
        label_dims: int,
        noisy_layers: int,
        init_cfg: dict | None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        name = type(self).__name__
        self.base = (base, base) if isinstance(base, int) else (int(base[0]), int(base[1]))
        if noise_dims < 1 or label_dims < 0 or noisy_layers < 0 or min(self.base) < 1:
            raise ValueError(
                f'{name}: noise_dims and base are at least 1, label_dims and noisy_layers at least '
                f'0; got {noise_dims}, {base}, {label_dims} and {noisy_layers}.'
            )
        if noisy_layers and not label_dims:
            raise ValueError(f'{name}: noisy layers act on the code of a label: set label_dims.')
        self.noise_dims = noise_dims
        self.label_dims = label_dims
        self.noisy_layers = noisy_layers
        if noisy_layers:
            self.latent = NoisyLayerLatent(noise_dims, label_dims, noisy_layers)
        else:
            self.latent = NoiseLatent(noise_dims, label_dims)

    def sizes(self, size: tuple[int, int], stages: int) -> list[tuple[int, int]]:
        """Height and width after each of ``stages`` enlargements; the last is ``size``."""
        shares = [(i + 1) / stages for i in range(stages)]
        return [
            tuple(max(1, round(b * (s / b) ** share)) for b, s in zip(self.base, size, strict=True))
            for share in shares
        ]

    @torch.no_grad()
    def reset(self, rng: torch.Generator) -> None:
        """Draw every weight anew.

        Args:
            rng (torch.Generator): Of the CPU, so that the weights are the same on any device.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                # He et al., ICCV 2015, eq. 15, where a rectifier follows; half of the variance
                # else.
                gain = 2 if isinstance(module, nn.Conv2d) else 1
                noise = torch.randn(module.weight.shape, generator=rng)
                module.weight.copy_(noise * sqrt(gain / module.weight[0].numel()))
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
                module.reset_parameters()
        self.renew(rng)

    def renew(self, rng: torch.Generator) -> None:
        """Draw the noisy layers anew; nothing without."""
        if self.noisy_layers:
            self.latent.renew(rng)

    def forward(
        self,
        noise: Tensor,
        size: tuple[int, int],
        codes: Tensor | None = None,
        layers: Tensor | None = None,
    ) -> Tensor:
        """Make images.

        Args:
            noise (Tensor): ``[B, noise_dims]``.
            size (tuple[int, int]): Height and width wanted.
            codes (Tensor, optional): Of the labels, ``[B, label_dims]``.
            layers (Tensor, optional): Which noisy layer makes each, ``[B]``.

        Returns:
            Tensor: RGB in [0, 1], ``[B, 3, H, W]``.

        Raises:
            ValueError: If it knows labels and gets none, or the other way round.
        """
        name = type(self).__name__
        if (codes is None) != (self.label_dims == 0):
            raise ValueError(
                f'{name} has label_dims={self.label_dims} and got '
                f'{"no codes" if codes is None else f"codes {tuple(codes.shape)}"} of labels.'
            )
        if self.noisy_layers and layers is None:
            raise ValueError(f'{name} has noisy layers: say which one makes each image.')
        return self.render(self.latent(noise, codes, layers), size)

    @abstractmethod
    def render(self, latent: Tensor, size: tuple[int, int]) -> Tensor:
        """From ``[B, D]`` to images ``[B, 3, H, W]`` in [0, 1]."""


def map_norm(kind: str, channels: int) -> nn.Module:
    """Normalisation of a map.

    Args:
        kind (str): ``'batch'``, as published: an image depends on its batch in training; or
            ``'group'``: it does not, and there are no running statistics.
        channels (int): Of the map.

    Raises:
        ValueError: If the kind is neither.
    """
    if kind == 'batch':
        return nn.BatchNorm2d(channels)
    if kind == 'group':
        groups = next(n for n in (8, 4, 2, 1) if channels % n == 0)
        return nn.GroupNorm(groups, channels)
    raise ValueError(f"A generator's norm is 'batch' or 'group', not {kind!r}.")
