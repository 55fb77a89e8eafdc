"""A plain ViT that merges its patches on the way."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmdfkd.registry import MODELS

from ..layers import TokenSlimming
from .plain_vit import PlainViT


@MODELS.register_module()
class SlimmedViT(PlainViT):
    """Self-slimmed ViT (SiT, Zong et al., ECCV 2022; papers.md 3.2, row 12).

    Before some layers a :class:`~mmdfkd.models.layers.TokenSlimming` merges the patches into fewer;
    class and distillation token pass. It has the teacher's weights otherwise and costs less: its
    teacher is the same network without slimming. Outputs are those of mmpretrain's
    ``VisionTransformer`` with ``out_type='cls_token'``, or ``DistilledVisionTransformer``.

    Args:
        arch (str | Mapping): As of mmpretrain: ``'deit-tiny'``, ``'deit-small'``, ``'deit-base'``,
            or ``embed_dims``, ``num_layers``, ``num_heads`` and ``feedforward_channels``. Defaults
            to ``'deit-small'``.
        slim_before (Sequence[int]): Layers, from 0, before which patches are merged. Defaults to
            (3, 6, 9).
        keep (float | Sequence[float]): Share of the patches that each merging leaves, rounded
            down; one share for all, or one for each. Defaults to 0.5, as released.
        img_size (int): Input size in pixels of the stored positions, from which the numbers of
            patches follow; other sizes are interpolated and end with the same numbers. Defaults to
            224.
        patch_size (int): Side of a patch in pixels. Defaults to 16.
        in_channels (int): Channels of the image. Defaults to 3.
        distilled (bool): Whether there is a distillation token. Defaults to False.
        norm_eps (float): Epsilon of the LayerNorms. Defaults to 1e-6, mmpretrain's.
        drop_path_rate (float): Stochastic depth of the last layer, growing linearly. Defaults to 0.
        init_cfg (dict, optional): mmengine's initialisation.

    Attributes:
        patches (tuple[int, ...]): Patches of each layer's output.

    Raises:
        ValueError: On an unknown arch, layers that do not ascend or do not exist, or shares outside
            (0, 1] that leave no patch.
    """

    def __init__(
        self,
        arch: str | Mapping = 'deit-small',
        slim_before: Sequence[int] = (3, 6, 9),
        keep: float | Sequence[float] = 0.5,
        img_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        distilled: bool = False,
        norm_eps: float = 1e-6,
        drop_path_rate: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            arch, img_size, patch_size, in_channels, distilled, norm_eps, drop_path_rate, init_cfg
        )
        layers = tuple(slim_before)
        shares = (keep,) * len(layers) if isinstance(keep, int | float) else tuple(keep)
        if list(layers) != sorted(set(layers)) or any(not 0 <= i < self.num_layers for i in layers):
            raise ValueError(
                f'SlimmedViT: slim_before={layers} are no ascending layers in 0 ... '
                f'{self.num_layers - 1}.'
            )
        if len(shares) != len(layers) or any(not 0 < share <= 1 for share in shares):
            raise ValueError(
                f'SlimmedViT: keep={keep} must be a share in (0, 1], or one for each of the '
                f'{len(layers)} layers of slim_before.'
            )
        count, counts = self.grid[0] * self.grid[1], {}
        for layer, share in zip(layers, shares, strict=True):
            # A hair more, so that a third of three is one.
            count = int(count * share + 1e-6)
            if count < 1:
                raise ValueError(f'SlimmedViT: keep={keep} leaves no patch from layer {layer} on.')
            counts[layer] = count
        count, patches = self.grid[0] * self.grid[1], []
        for i in range(self.num_layers):
            count = counts.get(i, count)
            patches.append(count)
        self.patches = tuple(patches)
        self.slimming = nn.ModuleDict(
            {str(i): TokenSlimming(self.embed_dims, n) for i, n in counts.items()}
        )

    def before(self, index: int, tokens: Tensor) -> Tensor:
        """Merge the patches where the layer is one of ``slim_before``."""
        if str(index) not in self.slimming:
            return tokens
        prefix, patches = tokens.tensor_split([self.num_extra_tokens], 1)
        return torch.cat([prefix, self.slimming[str(index)](patches)], 1)

    def is_own(self, key: str) -> bool:
        """The merging layers."""
        return key.startswith('slimming.')
