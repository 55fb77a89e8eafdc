import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mmdfkd.adapters import Observation
from mmdfkd.inheritance import InheritanceReport
from mmdfkd.losses import channel_map_mimic, to_student_channels
from mmdfkd.registry import MODELS

from .alignment import resize
from .token_head import TokenHead
from .tokens import split_tokens


@MODELS.register_module()
class ChannelMapHead(TokenHead):
    """An inherited student keeps to the teacher's channels that it was made from.

    In place of a trained projector: the known map of the inheritance takes the teacher's tokens to
    the student's channels (for ``'select'`` it picks the kept ones), see
    :func:`~mmdfkd.losses.channel_map.channel_map_mimic`. The student has to be inherited
    (``init='inherit'``); the map is saved with the head.

    Args:
        space (str): Which map: ``'stream'`` for tokens between blocks, ``'pyramid'`` for levels of
            a detector's pyramid; of a Swin ``'stage0'``, ``'stage1'`` and so on for tokens within
            that stage, ``'stream'`` being the last one's. Defaults to ``'stream'``.
        **kwargs: ``taps_student``, ``taps_teacher``, ``levels``, ``prefix_tokens`` and
            ``channels_last`` of :class:`~mmdfkd.heads.token_head.TokenHead`, ``loss_weight``,
            ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On an unknown space, or taps that do not pair.
    """

    loss_key = 'loss_channel_map'

    def __init__(self, space: str = 'stream', **kwargs) -> None:
        super().__init__(**kwargs)
        if not re.fullmatch(r'stream|pyramid|stage\d+', space):
            raise ValueError(
                "ChannelMapHead: space must be 'stream', 'pyramid' or a stage such as 'stage0', "
                f'not {space!r}.'
            )
        self.space = space
        self.started = False

    def build_aligners(self, student_widths: Mapping, teacher_widths: Mapping) -> None:
        """Room for the map.

        Raises:
            ValueError: If pairs differ in their widths: one map serves all.
        """
        super().build_aligners(student_widths, teacher_widths)
        pairs = set(zip(*self.widths, strict=True))
        if len(pairs) != 1 or min(pairs)[0] > min(pairs)[1]:
            raise ValueError(
                'ChannelMapHead compares places of one width each, the student not wider, but the '
                f'pairs are {sorted(pairs)} (student, teacher).'
            )
        # A placeholder until the student is inherited: what the loss reaches is the same.
        self.register_buffer('to_student', torch.eye(*min(pairs)))

    def start_from(self, report: InheritanceReport) -> None:
        """Take over the map.

        Raises:
            ValueError: If the inheritance made no such map, or one of another place.
        """
        if self.space not in report.maps:
            raise ValueError(
                f"ChannelMapHead: the inheritance made no map of the '{self.space}', only of "
                f'{sorted(report.maps)}.'
            )
        known = to_student_channels(report.maps[self.space])
        if known.shape != self.to_student.shape:
            raise ValueError(
                f"ChannelMapHead: the map of the '{self.space}' {tuple(known.shape)} is not that "
                f'of the compared places {tuple(self.to_student.shape)}.'
            )
        self.to_student.copy_(known)
        self.started = True

    def fit_aligners(self, student: Observation, teacher: Observation) -> None:
        """Nothing to fit: the map is known.

        Raises:
            ValueError: If the student was not inherited.
        """
        if not self.started:
            raise ValueError(
                'ChannelMapHead needs the map that an inherited student was made by: set '
                "model.student.init='inherit', or take FeatureHead, which learns a projector."
            )

    def pair_loss(self, index: int, student: Observation, teacher: Observation) -> Tensor:
        """Common prefix tokens and all patches, in the student's channels."""
        prefix_s, patches_s = split_tokens(*self.tokens(student, 0, index))
        prefix_t, patches_t = split_tokens(*self.tokens(teacher, 1, index))
        if (patches_s is None) != (patches_t is None):
            raise ValueError('ChannelMapHead: one network gives patches and the other a vector.')
        common = min(prefix_s.shape[1], prefix_t.shape[1])
        all_s, all_t = [prefix_s[:, :common]], [prefix_t[:, :common]]
        if patches_s is not None:
            all_s.append(resize(patches_s, patches_t.shape[-2:]).flatten(2).transpose(1, 2))
            all_t.append(patches_t.flatten(2).transpose(1, 2))
        return channel_map_mimic(torch.cat(all_s, 1), torch.cat(all_t, 1), self.to_student)
