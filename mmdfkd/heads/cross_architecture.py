from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdfkd.adapters import Observation, Targets
from mmdfkd.losses import (
    discriminator_loss,
    masked_mimic,
    partially_cross_attention,
    qkv_heads,
)
from mmdfkd.registry import MODELS

from .alignment import resize
from .attention_taps import attention_heads, require_plain_attention
from .token_head import TokenHead


class GroupwiseLinear(nn.Module):
    """One linear layer for each neighbourhood of pixels.

    Published: 16 layers in place of 196, neighbourhoods of up to 4 x 4 on a map of 14 x 14. Here
    the number of neighbourhoods is fixed and their size follows the map.

    Args:
        width (int): Channels in.
        out (int): Channels out.
        groups (int): Neighbourhoods along each side. Defaults to 4.
    """

    def __init__(self, width: int, out: int, groups: int = 4) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(groups**2, width, out))
        self.bias = nn.Parameter(torch.zeros(groups**2, 1, out))
        for layer in self.weight.data:
            nn.init.orthogonal_(layer)

    def forward(self, maps: Tensor) -> Tensor:
        """From ``[B, C, H, W]`` to tokens ``[B, H * W, out]``, row by row."""
        batch, width, height, wide = maps.shape
        n = self.groups
        h, w = -(-height // n), -(-wide // n)
        maps = F.pad(maps, (0, n * w - wide, 0, n * h - height))
        blocks = maps.reshape(batch, width, n, h, n, w).permute(2, 4, 0, 3, 5, 1)
        out = torch.baddbmm(self.bias, blocks.reshape(n * n, -1, width), self.weight)
        out = out.view(n, n, batch, h, w, -1).permute(2, 0, 3, 1, 4, 5)
        out = out.reshape(batch, n * h, n * w, -1)
        return out[:, :height, :wide].flatten(1, 2)


class _Reversed(torch.autograd.Function):
    """The same forward, the opposite gradient backward."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        """As it is."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        """Reversed."""
        return -grad


@MODELS.register_module()
class CrossArchitectureHead(TokenHead):
    """A convolutional student follows a ViT (Liu et al., ACCV 2022; papers.md 3.2, row 8).

    Two projectors, trained with the student and dropped after: three 3 x 3 convolutions bring its
    map into the teacher's attention space, where a part of the entries gives way to the teacher's;
    a group-wise linear layer brings it to the teacher's tokens. The student's map is resized to the
    teacher's grid. Patches only.

    Args:
        tap_student (str): A map of the student, such as ``backbone.layer4``.
        tap_teacher (str): The block of the teacher whose output is followed.
        tap_qkv (str, optional): The teacher's ``qkv`` layer. Defaults to ``attn.qkv`` of the block.
        replaced (float): Share of the entries that give way, by chance. Defaults to 0.5, as
            published.
        groups (int): See :class:`GroupwiseLinear`. Defaults to 4.
        num_heads (int, optional): The teacher's heads, into which queries, keys and values are cut.
            Defaults to what the module around its ``qkv`` layer says.
        adversary_weight (float): Weight of a discriminator of three linear layers between both
            networks' tokens, which the student deceives through a reversed gradient, relative to
            the other terms. The published multiple views of an image are the images' augmentation,
            not this head's. Defaults to 0.
        normalize (bool): Every term in units of the teacher's energy. Defaults to True.
        **kwargs: ``prefix_tokens`` and ``channels_last`` of
            :class:`~mmdfkd.heads.token_head.TokenHead`, ``loss_weight``, ``schedule``, ``name`` and
            ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: If ``replaced`` lies outside [0, 1].
    """

    def __init__(
        self,
        tap_student: str,
        tap_teacher: str,
        tap_qkv: str | None = None,
        replaced: float = 0.5,
        groups: int = 4,
        num_heads: int | None = None,
        adversary_weight: float = 0.0,
        normalize: bool = True,
        prefix_tokens: int | Sequence[int] = (0, 1),
        **kwargs,
    ) -> None:
        tap_qkv = f'{tap_teacher}.attn.qkv' if tap_qkv is None else tap_qkv
        super().__init__(
            taps_student=[tap_student] * 2,
            taps_teacher=[tap_teacher, tap_qkv],
            prefix_tokens=prefix_tokens,
            **kwargs,
        )
        if not 0 <= replaced <= 1:
            raise ValueError(f'CrossArchitectureHead: replaced must lie in [0, 1], not {replaced}.')
        self.replaced = replaced
        self.groups = groups
        self.num_heads = num_heads
        self.adversary_weight = adversary_weight
        self.normalize = normalize
        self.attention: nn.Conv2d | None = None
        self.linear: GroupwiseLinear | None = None
        self.discriminator: nn.Sequential | None = None

    def bind(self, student: nn.Module, teacher: nn.Module) -> None:
        """Ask the teacher's attention for its number of heads.

        Raises:
            ValueError: If there is no attention around the tap, or one that is recomputed wrongly.
        """
        require_plain_attention(teacher, self.needs.taps_teacher[1], 'teacher')
        found = attention_heads(teacher, self.needs.taps_teacher[1], 'teacher')
        if self.num_heads is None:
            self.num_heads = found

    def build_aligners(self, student_widths: Mapping, teacher_widths: Mapping) -> None:
        """The projectors, and the discriminator where it has a weight."""
        super().build_aligners(student_widths, teacher_widths)
        width, (out, joint) = self.widths[0][0], self.widths[1]
        if joint % 3:
            raise ValueError(
                f"CrossArchitectureHead: '{self.needs.taps_teacher[1]}' gives {joint} channels: no "
                'queries, keys and values side by side. Set tap_qkv.'
            )
        self.attention = nn.Conv2d(width, joint, 3, padding=1)
        self.linear = GroupwiseLinear(width, out, self.groups)
        if self.adversary_weight:
            self.discriminator = nn.Sequential(
                nn.Linear(out, out // 2),
                nn.ReLU(inplace=True),
                nn.Linear(out // 2, out // 4),
                nn.ReLU(inplace=True),
                nn.Linear(out // 4, 1),
            )

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_cross_attention``, ``loss_cross_feature``, and ``loss_cross_adversary``."""
        if self.attention is None or self.num_heads is None:
            raise RuntimeError(
                'CrossArchitectureHead: bind and build_aligners have to be called before the first '
                'forward.'
            )
        losses = {
            'loss_cross_feature': self.pair_loss(0, student, teacher),
            'loss_cross_attention': self.pair_loss(1, student, teacher),
        }
        if self.discriminator is not None:
            own, other = self._projected(student, teacher)
            # One backward trains both sides: the discriminator descends, the student ascends.
            judged = discriminator_loss(
                self.discriminator(other), self.discriminator(_Reversed.apply(own))
            )
            losses['loss_cross_adversary'] = self.adversary_weight * judged
        return losses

    def pair_loss(self, index: int, student: Observation, teacher: Observation) -> Tensor:
        """Tokens against the block's output (0), attention against its ``qkv`` (1)."""
        if index == 0:
            own, other = self._projected(student, teacher)
            return masked_mimic(own, other, dim=-1, normalize=self.normalize)
        joint_t = self.patches(teacher, 1, 1)
        joint_s = self.attention(resize(self.patches(student, 0, 1), joint_t.shape[-2:]))
        own, other = (
            qkv_heads(m.flatten(2).transpose(1, 2), self.num_heads) for m in (joint_s, joint_t)
        )
        replaced = [torch.rand_like(part) < self.replaced for part in other]
        return partially_cross_attention(own, other, replaced, self.normalize)

    def _projected(self, student: Observation, teacher: Observation) -> tuple[Tensor, Tensor]:
        """Tokens ``[B, N, D_T]`` of the student, by the group-wise layers, and of the teacher."""
        tokens = self.patches(teacher, 1, 0)
        own = self.linear(resize(self.patches(student, 0, 0), tokens.shape[-2:]))
        return own, tokens.flatten(2).transpose(1, 2)
