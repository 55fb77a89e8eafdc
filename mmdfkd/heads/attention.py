from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdfkd.adapters import Observation
from mmdfkd.inheritance import InheritanceReport
from mmdfkd.losses import attention_consistency, attention_rows, head_attention, qkv_heads
from mmdfkd.registry import MODELS

from .attention_taps import attention_heads, attention_index, require_plain_attention
from .token_head import TokenHead

_MODES = {
    'mse': lambda s, t: attention_consistency(s, t, 0, 'mse'),
    'kl': lambda s, t: attention_consistency(s, t, 0, 'kl'),
    'head_ssim': lambda s, t: head_attention(s, t, 'ssim'),
    'head_kl': lambda s, t: head_attention(s, t, 'kl'),
}
_BY_HEAD = ('head_ssim', 'head_kl')


@MODELS.register_module()
class AttentionHead(TokenHead):
    """The student looks where its teacher looks.

    Rows of the attention to the patches are recomputed from the tapped outputs of ``qkv`` layers:
    fused attention gives no map, and only the rows asked for are made. They are normalised over the
    patches: what a query keeps for the prefix tokens is not compared.
    The taps are these layers, such as ``backbone.layers.3.attn.qkv``. Single rows on another grid
    are resized to the teacher's. Biases of relative positions play no part here; blocks with
    windows compare window by window, so both networks need the same windows. Attentions that are
    no such softmax (CaiT's talking heads, MiniViT's mixed ones, normalised or rotated queries and
    keys) are refused.

    Head by head an inherited student with fewer heads is compared with those of its teacher's that
    it kept: the inheritance says which, and the head saves them. Its taps are then the blocks that
    the student's were made from; heads of other blocks are no counterparts.

    Args:
        mode (str): ``'mse'`` or ``'kl'`` of the mean over heads, see
            :func:`~mmdfkd.losses.attention_consistency.attention_consistency`; ``'head_ssim'`` or
            ``'head_kl'`` head by head, for networks with the same heads and inherited students, see
            :func:`~mmdfkd.losses.head_attention.head_attention`. Defaults to ``'mse'``.
        rows (str): ``'class'``: the class token's row; ``'mean'``: that of the patches' mean query,
            for networks without class token; ``'all'``: those of all patches. Defaults to
            ``'class'``.
        num_heads (Sequence[int], optional): Heads of the student and of the teacher. Defaults to
            what the modules around the taps say.
        **kwargs: ``taps_student``, ``taps_teacher`` and ``prefix_tokens`` of
            :class:`~mmdfkd.heads.token_head.TokenHead`, ``loss_weight``, ``schedule``, ``name`` and
            ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On an unknown mode or rows, without taps, or if a class row is asked for without
            prefix tokens.
    """

    loss_key = 'loss_attention'

    def __init__(
        self,
        mode: str = 'mse',
        rows: str = 'class',
        num_heads: Sequence[int] | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if mode not in _MODES:
            raise ValueError(f'AttentionHead: mode must be one of {sorted(_MODES)}, not {mode!r}.')
        if rows not in ('class', 'mean', 'all'):
            raise ValueError(f"AttentionHead: rows must be 'class', 'mean' or 'all', not {rows!r}.")
        if rows == 'class' and min(self.prefix_tokens) < 1:
            raise ValueError("AttentionHead: without class token there is no row of it: 'mean'.")
        if not self.needs.taps_student:
            raise ValueError(
                'AttentionHead reads the outputs of qkv layers: name them, such as '
                "taps_student=['backbone.layers.3.attn.qkv']."
            )
        self.mode = mode
        self.rows = rows
        pairs = len(self.needs.taps_student)
        self.num_heads = None if num_heads is None else [(n,) * pairs for n in num_heads]
        # Numbers of the taps among the networks' attentions: as the inheritance counts blocks.
        self._blocks: list[tuple[int, int]] = []
        self._started = False

    def bind(self, student: nn.Module, teacher: nn.Module) -> None:
        """Ask the modules around the taps for their number of heads.

        Raises:
            ValueError: If there is no attention around a tap, one whose rows are not these, or,
                head by head, one of the student's with more heads than its teacher's.
        """
        sides = (
            (student, self.needs.taps_student, 'student'),
            (teacher, self.needs.taps_teacher, 'teacher'),
        )
        for net, taps, who in sides:
            for tap in taps:
                require_plain_attention(net, tap, who)
        found = [tuple(attention_heads(net, tap, who) for tap in taps) for net, taps, who in sides]
        if self.num_heads is None:
            self.num_heads = found
        if self.mode in _BY_HEAD:
            indices = [[attention_index(net, tap) for tap in taps] for net, taps, _ in sides]
            self._blocks = list(zip(*indices, strict=True))
            device = next(student.parameters()).device
            for index, (few, many) in enumerate(zip(*self.num_heads, strict=True)):
                if few > many:
                    raise ValueError(
                        f"AttentionHead: head by head, the student's {few} heads at "
                        f"'{self.needs.taps_student[index]}' have no counterparts among the "
                        f"teacher's {many}: take mode 'mse' or 'kl', of the mean over heads."
                    )
                # Placeholders until the student is inherited: what the loss reaches is the same.
                self.register_buffer(f'kept{index}', torch.arange(few, device=device))

    def start_from(self, report: InheritanceReport) -> None:
        """Learn which of the teacher's heads the student kept.

        Raises:
            ValueError: If heads were cut and a tap of the teacher is not the block that the
                student's was made from.
        """
        self._started = True
        for index, (own, other) in enumerate(self._blocks):
            if report.layers[own] == other:
                kept = getattr(self, f'kept{index}')
                kept.copy_(torch.as_tensor(report.heads[own]))
            elif self._fewer(index):
                raise ValueError(
                    f"AttentionHead: '{self.needs.taps_student[index]}' was made from the "
                    f"teacher's block {report.layers[own]}, counted from 0, not from that of "
                    f"'{self.needs.taps_teacher[index]}', whose heads are others. The student's "
                    f'blocks were made from {report.layers}: tap those.'
                )

    def fit_aligners(self, student: Observation, teacher: Observation) -> None:
        """Nothing to fit: the heads are known.

        Raises:
            ValueError: If, head by head, the student has fewer heads and was not inherited.
        """
        if not self._started and any(map(self._fewer, range(len(self._blocks)))):
            raise ValueError(
                'AttentionHead: head by head, a student with fewer heads has to be inherited '
                "(model.student.init='inherit'), which says whose counterparts they are; take mode "
                "'mse' or 'kl', of the mean over heads."
            )

    def _fewer(self, index: int) -> bool:
        return self.num_heads[0][index] < self.num_heads[1][index]

    def pair_loss(self, index: int, student: Observation, teacher: Observation) -> Tensor:
        """Rows of both networks."""
        if self.num_heads is None:
            raise RuntimeError('AttentionHead: bind it, or set num_heads.')
        (own, grid_s), (other, grid_t) = (
            self._attention(observation, side, index)
            for side, observation in enumerate((student, teacher))
        )
        if grid_s != grid_t:
            if self.rows == 'all':
                raise ValueError(
                    f"AttentionHead: rows='all' compares equal grids, not {grid_s} and {grid_t}; "
                    "take 'class' or 'mean'."
                )
            maps = F.interpolate(
                own.flatten(0, 1).unflatten(-1, grid_s), grid_t, mode='bilinear'
            ).flatten(-2)
            own = maps.unflatten(0, own.shape[:2])
            own = own / own.sum(-1, keepdim=True)
        if self._blocks:
            other = other[:, getattr(self, f'kept{index}')]
        return _MODES[self.mode](own, other)

    def _attention(
        self, observation: Observation, side: int, index: int
    ) -> tuple[Tensor, tuple[int, int]]:
        """Attention to the patches, ``[B, h, R, N]``, each row of sum 1."""
        tokens, grid = self.tokens(observation, side, index)
        if grid is None:
            raise ValueError('AttentionHead: a vector has no attention; tap qkv layers.')
        query, key, _ = qkv_heads(tokens, self.num_heads[side][index])
        prefix = tokens.shape[1] - grid[0] * grid[1]
        rows = range(prefix, tokens.shape[1]) if self.rows == 'all' else self.rows
        patches = attention_rows(query, key, rows, prefix)[..., prefix:]
        # A query may keep nearly all attention for the prefix tokens.
        floor = torch.finfo(torch.float32).tiny
        return patches / patches.sum(-1, keepdim=True).clamp_min(floor), grid
