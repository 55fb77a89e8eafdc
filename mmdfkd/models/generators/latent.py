"""What enters a generator: noise, and what is known of the class that is wanted."""

from math import sqrt

import torch
from torch import Tensor, nn


class NoiseLatent(nn.Module):
    """Noise, with the label's code beside it where there is one.

    Args:
        noise_dims (int): Numbers of noise an image.
        label_dims (int): Numbers of a label's code; 0 for a generator that knows no labels.
    """

    def __init__(self, noise_dims: int, label_dims: int = 0) -> None:
        super().__init__()
        self.dims = noise_dims + label_dims

    def forward(self, noise: Tensor, codes: Tensor | None, layers: Tensor | None) -> Tensor:
        """``[B, noise_dims]`` and ``[B, label_dims]`` to ``[B, dims]``."""
        return noise if codes is None else torch.cat([noise, codes], 1)


class NoisyLayerLatent(nn.Module):
    """The label's code through one of several random linear layers, and no other noise.

    NAYER (Tran et al., CVPR 2024, §3.2): a layer drawn anew is the noise, so that training starts
    from the codes' geometry, and the layer is trained on with the rest. Images of one label differ
    by their layer. The release normalises the codes of a batch; ours are scaled once, where they
    are made: batch statistics of principal coordinates would undo the geometry that they carry.

    Args:
        dims (int): Numbers that leave a layer.
        label_dims (int): Numbers of a label's code.
        layers (int): How many layers: images a label in one batch.
    """

    def __init__(self, dims: int, label_dims: int, layers: int) -> None:
        super().__init__()
        self.dims = dims
        self.weight = nn.Parameter(torch.zeros(layers, dims, label_dims))
        self.bias = nn.Parameter(torch.zeros(layers, dims))

    @torch.no_grad()
    def renew(self, rng: torch.Generator) -> None:
        """Draw every layer anew.

        Unit normal weights, as published, over the root of the width: outputs are of unit size
        whatever ``label_dims``.
        """
        noise = torch.randn(self.weight.shape, generator=rng)
        self.weight.copy_(noise / sqrt(self.weight.shape[-1]))
        self.bias.zero_()

    def forward(self, noise: Tensor, codes: Tensor | None, layers: Tensor | None) -> Tensor:
        """``[B, label_dims]`` through layer ``layers`` ``[B]`` of each: ``[B, dims]``."""
        all_layers = torch.einsum('lod,bd->blo', self.weight, codes) + self.bias
        return all_layers[torch.arange(len(codes), device=codes.device), layers]
