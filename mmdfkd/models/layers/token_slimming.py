"""Fewer tokens by soft merging, and back (SiT, Zong et al., ECCV 2022)."""

import torch
from torch import Tensor, nn


class TokenSlimming(nn.Module):
    """Merges patches into fewer: every new one is a weighted mean of all.

    ``A = softmax_j(s W_2 gelu(W_1 LN(x_j)))`` over the patches ``j``, ``x'_i = sum_j A_ij x_j``,
    with a learned scale ``s``. Rows of ``A`` sum to 1, so nothing leaves the range of the patches,
    and an image of equal patches keeps them. The number of new patches does not depend on that of
    the old.

    Args:
        dims (int): Channels of a token.
        tokens (int): Patches that are left.
        ratio (float): Hidden width as a share of ``dims``. Defaults to 0.5, as released.

    Raises:
        ValueError: If fewer than one patch is to be left.
    """

    def __init__(self, dims: int, tokens: int, ratio: float = 0.5) -> None:
        super().__init__()
        if tokens < 1:
            raise ValueError(f'TokenSlimming: tokens must be at least 1, not {tokens}.')
        self.tokens = tokens
        self.norm = nn.LayerNorm(dims)
        self.fc1 = nn.Linear(dims, max(int(dims * ratio), 1))
        self.fc2 = nn.Linear(self.fc1.out_features, tokens)
        self.act = nn.GELU()
        self.scale = nn.Parameter(torch.ones(()))

    def weights(self, patches: Tensor) -> Tensor:
        """``A`` ``[B, tokens, N]`` of patches ``[B, N, C]``."""
        scores = self.fc2(self.act(self.fc1(self.norm(patches))))
        return (scores * self.scale).softmax(1).transpose(1, 2)

    def forward(self, patches: Tensor) -> Tensor:
        """From patches ``[B, N, C]`` to ``[B, tokens, C]``."""
        return self.weights(patches) @ patches


class TokenRecovery(nn.Module):
    """Gives merged patches their number back: the reverse of :class:`TokenSlimming`.

    ``y = M_1(LN(x)^T)^T``, ``z = y + M_2(LN(y))``: an MLP over the patches from ``tokens`` to
    ``recovered`` of them, and one over the channels, hidden widths ``ratio`` times their outputs.
    In training only.

    Args:
        dims (int): Channels of a token.
        tokens (int): Patches there are.
        recovered (int): Patches there were.
        ratio (float): Of the hidden widths. Defaults to 4, as released.
    """

    def __init__(self, dims: int, tokens: int, recovered: int, ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dims)
        self.places = _mlp(tokens, int(recovered * ratio), recovered)
        self.norm2 = nn.LayerNorm(dims)
        self.channels = _mlp(dims, int(dims * ratio), dims)

    def forward(self, patches: Tensor) -> Tensor:
        """From patches ``[B, tokens, C]`` to ``[B, recovered, C]``."""
        y = self.places(self.norm1(patches).transpose(1, 2)).transpose(1, 2)
        return y + self.channels(self.norm2(y))


def _mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))
