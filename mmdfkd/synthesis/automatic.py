"""Priors that a source is given, or that are chosen for its teacher."""

from collections.abc import Mapping, Sequence
from textwrap import indent, wrap

import torch
from mmengine.logging import print_log
from torch import nn

from mmdfkd.adapters.base import Adapter
from mmdfkd.registry import MODELS

from .teacher_report import inspect_teacher


class AutomaticPriors(nn.ModuleList):
    """Priors that are not known before the teacher is; empty until :meth:`choose`.

    Args:
        targets (bool): Whether the images are to show something.
        student (bool): Whether there is a student that differs from its teacher when images are
            made. A set made once, before training, has none.
    """

    def __init__(self, targets: bool = True, student: bool = True) -> None:
        super().__init__()
        self.targets = targets
        self.student = student
        self.chosen = False

    def choose(self, teacher: Adapter, title: str) -> None:
        """Take the defaults of the teacher's report and say why; once.

        Args:
            teacher (Adapter): The teacher.
            title (str): Whose priors they are, for the log.
        """
        if self.chosen:
            return
        self.chosen = True
        lines = []
        for choice in inspect_teacher(teacher, self.student, self.targets).choices:
            if choice.used:
                self.append(MODELS.build(dict(choice.cfg)))
                text = f'{choice.cfg["weight"]:g} {choice.cfg["type"]}: {choice.why}'
                lines.append(indent('\n'.join(wrap(text, 96)), '  '))
        self.to(next(teacher.net.parameters(), torch.zeros(())).device)
        print_log('\n'.join([f"{title}: priors='auto' takes", *lines]), 'current')


def build_priors(
    priors: Sequence[Mapping] | str, who: str, targets: bool = True, student: bool = True
) -> nn.ModuleList:
    """The priors of a config.

    Args:
        priors (Sequence[Mapping] | str): Their configs, or ``'auto'`` for those that suit the
            teacher.
        who (str): The class they are given to, for the message.
        targets (bool): Whether the images are to show something.
        student (bool): Whether images are made while a student learns.

    Raises:
        ValueError: On another word.
    """
    if isinstance(priors, str):
        if priors != 'auto':
            raise ValueError(f"{who}: priors is a list of configs, or 'auto', got {priors!r}.")
        return AutomaticPriors(targets, student)
    return nn.ModuleList(MODELS.build(prior) for prior in priors)
