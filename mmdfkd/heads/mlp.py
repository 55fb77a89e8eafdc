from torch import Tensor, nn


class MLP(nn.Sequential):
    """Linear layers with LayerNorm and ReLU between them.

    LayerNorms in place of the usual BatchNorms: a synthetic batch may be too small for these.

    Args:
        width (int): Channels in.
        hidden (int): Channels in between.
        out (int): Channels out.
        layers (int): Linear layers, 1 or more.
        maps (bool): Whether channels are at dimension 1, as of maps ``[N, C, H, W]``, instead of
            the last; every place passes alone. Defaults to False.
    """

    def __init__(self, width: int, hidden: int, out: int, layers: int, maps: bool = False) -> None:
        parts: list[nn.Module] = []
        for _ in range(layers - 1):
            parts += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU(inplace=True)]
            width = hidden
        super().__init__(*parts, nn.Linear(width, out))
        self.maps = maps

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to ``[..., out]``; maps ``[N, width, H, W]`` to ``[N, out, H, W]``."""
        if not self.maps:
            return super().forward(x)
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)
