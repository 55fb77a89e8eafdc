"""Convolutions, transposed convolutions and linear layers seen as matrices on rows."""

import torch
from torch import Tensor, nn

#: Rows that one refit looks at.
MAX_ROWS = 32768


class LayerView:
    """One linear map.

    ``Conv2d``, ``ConvTranspose2d`` whose kernel is its stride, or ``Linear`` on flattened maps.

    Its matrix is ``[out, in]``: for a convolution ``in`` runs over (channel, row, column) of the
    kernel, for a transposed one ``out`` does, for a linear layer on flattened maps ``in`` runs over
    (channel, position).

    Raises:
        ValueError: On another layer, or groups or dilation.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        plain = isinstance(layer, nn.Linear)
        self.spreads = isinstance(layer, nn.ConvTranspose2d)
        if not plain:
            if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                raise ValueError(f'Inheritance cannot rewrite a {type(layer).__name__}.')
            if (
                layer.groups != 1
                or layer.dilation != (1, 1)
                or (self.spreads and layer.kernel_size != layer.stride)
            ):
                raise ValueError(
                    f'Inheritance cannot rewrite {layer}: groups, dilation or an overlapping '
                    'kernel.'
                )
        self.flat = plain

    @property
    def bias(self) -> Tensor | None:
        """Bias of every row of :meth:`matrix`."""
        bias = self.layer.bias
        if bias is None or not self.spreads:
            return bias
        return bias.repeat_interleave(self.taps)

    @property
    def taps(self) -> int:
        """Outputs per channel and input position of a transposed convolution, otherwise 1."""
        return self.layer.weight[0, 0].numel() if self.spreads else 1

    def matrix(self) -> Tensor:
        """Weights ``[out, in]``, float64."""
        weight = self.layer.weight.double()
        return weight.permute(1, 2, 3, 0).flatten(0, 2) if self.spreads else weight.flatten(1)

    def assign(self, matrix: Tensor, bias: Tensor | None) -> None:
        """Write the matrix and the bias of every channel."""
        weight = self.layer.weight
        if self.spreads:
            inner, outer, *kernel = weight.shape
            matrix = matrix.reshape(outer, *kernel, inner).permute(3, 0, 1, 2)
        if matrix.numel() != weight.numel():
            raise RuntimeError(
                f'Inheritance made {matrix.numel()} weights for a layer of {tuple(weight.shape)}.'
            )
        weight.detach().copy_(matrix.reshape(weight.shape))
        if self.layer.bias is not None and bias is not None:
            self.layer.bias.detach().copy_(bias)

    def by_channel(self, channels: int) -> Tensor:
        """The matrix with all positions as rows: ``[out * positions, channels]``."""
        matrix = self.matrix()
        return matrix.view(len(matrix), channels, -1).transpose(1, 2).flatten(0, 1)

    def derive(
        self,
        read: Tensor,
        write: Tensor | None = None,
        rows: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """This layer for other channels.

        Args:
            read (Tensor): ``[in channels, new in channels]``.
            write (Tensor, optional): ``[new out channels, out channels]``.
            rows (Tensor, optional): Instead of ``write``, the output channels to keep.
            offset (Tensor, optional): Constant part of the inputs ``[in channels]`` that goes into
                the bias.

        Returns:
            tuple: Matrix of the new layer, and its bias per channel.
        """
        matrix = self.matrix()
        bias = None if self.layer.bias is None else self.layer.bias.double()
        channels = len(read)
        split = matrix.view(len(matrix), channels, -1)
        if offset is not None and bias is not None:
            shift = torch.einsum('ocp,c->o', split, offset)
            bias = bias + shift.view(-1, self.taps).mean(1)
        matrix = torch.einsum('ocp,cd->odp', split, read).flatten(1)
        if write is not None or rows is not None:
            outer = matrix.view(-1, self.taps, matrix.shape[1])
            if rows is not None:
                outer, bias = outer[rows], None if bias is None else bias[rows]
            else:
                outer = torch.einsum('no,otk->ntk', write, outer)
                bias = None if bias is None else write @ bias
            matrix = outer.flatten(0, 1)
        return matrix, bias

    def rows(self, inputs: Tensor, targets: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets as rows.

        Args:
            inputs (Tensor): ``[B, C, H, W]``, or ``[B, C]`` for a linear layer.
            targets (Tensor): What the layer should give for them.
            limit (int): Positions to take at most, spread evenly.

        Returns:
            tuple: ``[N, in]`` and ``[N, out]``.
        """
        if self.flat:
            take = _spread(len(inputs), limit, inputs.device)
            return inputs[take].flatten(1), targets[take]
        if self.spreads:
            b, c, h, w = inputs.shape
            kh, kw = self.layer.kernel_size
            take = _spread(b * h * w, limit, inputs.device)
            x = inputs.permute(0, 2, 3, 1).reshape(-1, c)[take]
            y = targets.view(b, -1, h, kh, w, kw).permute(0, 2, 4, 1, 3, 5).reshape(b * h * w, -1)
            return x, y[take]
        if self.layer.stride != (1, 1):
            raise ValueError(f'Inheritance cannot refit a strided convolution: {self.layer}.')
        b, _, h, w = targets.shape
        take = _spread(b * h * w, limit, inputs.device)
        image, row, column = take // (h * w), take // w % h, take % w
        kh, kw = self.layer.kernel_size
        ph, pw = self.layer.padding
        padded = nn.functional.pad(inputs, (pw, pw, ph, ph))
        taps = [padded[image, :, row + i, column + j] for i in range(kh) for j in range(kw)]
        return torch.stack(taps, 2).flatten(1), targets[image, :, row, column]


def _spread(total: int, limit: int, device: torch.device) -> Tensor:
    if total <= limit:
        return torch.arange(total, device=device)
    return torch.linspace(0, total - 1, limit, dtype=torch.float64, device=device).long()


def channels_last(maps: Tensor) -> Tensor:
    """``[B, C, ...]`` to ``[..., C]``."""
    return maps.movedim(1, -1)


def apply_channels(matrix: Tensor, maps: Tensor) -> Tensor:
    """Multiply the channels of ``[B, C, H, W]`` by ``[c, C]``."""
    return torch.einsum('dc,bchw->bdhw', matrix.to(maps), maps)
