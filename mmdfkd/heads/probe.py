import torch
from torch import Tensor

from mmdfkd.adapters import Observation
from mmdfkd.losses import attention_probe
from mmdfkd.losses.attention_probe import NORM_AXES
from mmdfkd.registry import MODELS

from .alignment import resize
from .token_head import TokenHead
from .tokens import split_tokens


@MODELS.register_module()
class ProbeHead(TokenHead):
    """The class token resembles the patches that it resembles in the teacher (Attention Probe).

    No aligner: widths may differ. Published: outputs of blocks 3, 7 and 11 of 12 (from 0), weight
    0.8, beside a divergence at temperature 4. Without class token (``prefix_tokens=0``, maps) the
    mean patch takes its place. Patches on another grid are resized to the teacher's.

    Args:
        norm_axis (str): See :func:`~mmdfkd.losses.attention_probe.class_gram_row`. Defaults to
            ``'channel'``.
        **kwargs: ``taps_student``, ``taps_teacher``, ``prefix_tokens`` and ``channels_last`` of
            :class:`~mmdfkd.heads.token_head.TokenHead`, ``loss_weight``, ``schedule``, ``name`` and
            ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On an unknown axis, or taps that do not pair.
    """

    loss_key = 'loss_probe'

    def __init__(self, norm_axis: str = 'channel', **kwargs) -> None:
        super().__init__(**kwargs)
        if norm_axis not in NORM_AXES:
            raise ValueError(f'ProbeHead: norm_axis must be one of {NORM_AXES}, not {norm_axis!r}.')
        self.norm_axis = norm_axis

    def pair_loss(self, index: int, student: Observation, teacher: Observation) -> Tensor:
        """Rows of both Gram matrices."""
        parts = [
            split_tokens(*self.tokens(observation, side, index))
            for side, observation in enumerate((student, teacher))
        ]
        if any(patches is None for _, patches in parts):
            raise ValueError(
                'ProbeHead compares a class token with patches, but a network gives a vector: tap '
                "blocks, or set out_type='raw'."
            )
        grid = parts[1][1].shape[-2:]
        tokens = [
            torch.cat([prefix, resize(patches, grid).flatten(2).transpose(1, 2)], 1)
            for prefix, patches in parts
        ]
        prefixes = [prefix.shape[1] for prefix, _ in parts]
        return attention_probe(*tokens, prefixes, self.norm_axis)
