from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdfkd.adapters import Adapter, Normalizer, Observation, Targets, build_adapter


def widths_of(adapter: Adapter, taps: Sequence[str], image_size: tuple[int, int]) -> dict[str, list[int] | int]:
    """Channel counts of the features (``'neck'``, for a classifier ``'backbone'``; a list) and of each tap, by one forward of a blank image."""
    net = adapter.net
    device = next(net.parameters()).device
    training = net.training
    net.eval()
    with torch.no_grad():
        memory = adapter.encode(torch.zeros(1, 3, *image_size, device=device), taps)
    net.train(training)

    def channels(value) -> int:
        value = value[-1] if isinstance(value, (tuple, list)) else value
        # Maps are [B, C, H, W]; tokens [B, N, C] or [B, H, W, C] of a ViTDet block.
        return value.shape[1] if value.dim() == 4 and not _tokens_last(value) else value.shape[-1]

    outputs = [channels(f) for f in memory.feats]
    widths: dict[str, list[int] | int] = {'neck': outputs, 'backbone': outputs}
    widths.update({name: channels(value) for name, value in memory.taps.items()})
    return widths


def _tokens_last(value: Tensor) -> bool:
    """Whether a 4-d activation is ``[B, H, W, C]``: equal strides would be odd for a map with C before H, W."""
    return value.shape[1] < value.shape[-1] and value.shape[2] < value.shape[-1]


class Student(nn.Module):
    """The plain network and its distill heads: everything that is trained, behind one forward.

    Args:
        net (nn.Module): An ordinary mmdet or mmpretrain model.
        normalizer (Normalizer): From images in [0, 1] to its input.
        heads (Sequence[nn.Module]): Distill heads.
    """

    def __init__(self, net: nn.Module, normalizer: Normalizer, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.net = net
        self.heads = nn.ModuleList(heads)
        self.adapter = build_adapter(net, normalizer)

    @property
    def taps(self) -> tuple[str, ...]:
        """Inner activations of the student that some head needs, each once."""
        return tuple(dict.fromkeys(t for head in self.heads for t in head.needs.taps_student))

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """Inner activations of the teacher that some head needs, each once."""
        return tuple(dict.fromkeys(t for head in self.heads for t in head.needs.taps_teacher))

    @property
    def needs_response(self) -> bool:
        """Whether some head compares outputs at the teacher's probe."""
        return any(head.needs.response for head in self.heads)

    def build_aligners(self, teacher: Adapter, image_size: tuple[int, int]) -> None:
        """Let every head make its aligners, from the widths of both networks; before the optimiser is built."""
        mine = widths_of(self.adapter, self.taps, image_size)
        theirs = widths_of(teacher, self.teacher_taps, image_size)
        for head in self.heads:
            head.build_aligners(mine, theirs)

    def freeze_unused(self) -> list[str]:
        """Freeze the parts of the network that no head's loss reaches, so that every trained parameter gets a gradient.

        Returns:
            list[str]: Names of the frozen modules.
        """
        frozen = []
        for name in self.adapter.unreached(self.needs_response):
            module = self.net.get_submodule(name)
            module.requires_grad_(False)
            frozen.append(name)
        return frozen

    def forward(self, images: Tensor, teacher: Observation, targets: Targets) -> dict[str, Tensor]:
        """Run the student once and compare it with the teacher.

        Args:
            images (Tensor): RGB in [0, 1], ``[B, 3, H, W]``.
            teacher (Observation): What the teacher said about them.
            targets (Targets): What they were meant to show.

        Returns:
            dict[str, Tensor]: Scalars ``loss_*``.
        """
        memory = self.adapter.encode(images, self.taps)
        response = self.adapter.answer(memory, teacher.probe) if self.needs_response else None
        mine = Observation(memory, teacher.probe, response)
        losses: dict[str, Tensor] = {}
        for head in self.heads:
            for name, value in head(mine, teacher, targets, images).items():
                if name in losses:
                    raise KeyError(f"Two distill heads report '{name}'; give one of them another name.")
                losses[name] = value
        return losses
