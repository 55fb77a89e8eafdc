from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmdfkd.adapters import Adapter, Normalizer, Observation, Targets, build_adapter


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put a network into eval mode and every module of it back afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def blank(adapter: Adapter, image_size: tuple[int, int]) -> Tensor:
    """One black image where the network is."""
    return torch.zeros(1, 3, *image_size, device=next(adapter.net.parameters()).device)


def widths_of(
    adapter: Adapter, taps: Sequence[str], image_size: tuple[int, int]
) -> dict[str, list[int] | int]:
    """Channel counts, by one forward of a blank image.

    Args:
        adapter (Adapter): The network.
        taps (Sequence[str]): Modules whose outputs are wanted.
        image_size (tuple[int, int]): Height and width in pixels.

    Returns:
        dict[str, list[int] | int]: Of the features (``'neck'``, for a classifier ``'backbone'``; a
            list) and of each tap by its name.
    """
    with evaluating(adapter.net), torch.no_grad():
        memory = adapter.encode(blank(adapter, image_size), taps)

    def channels(value) -> int:
        value = value[-1] if isinstance(value, (tuple, list)) else value
        # Maps are [B, C, H, W]; tokens [B, N, C] or [B, H, W, C] of a ViTDet block.
        return value.shape[1] if value.dim() == 4 and not _tokens_last(value) else value.shape[-1]

    outputs = [channels(f) for f in memory.feats]
    widths: dict[str, list[int] | int] = {'neck': outputs, 'backbone': outputs}
    widths.update({name: channels(value) for name, value in memory.taps.items()})
    return widths


def _tokens_last(value: Tensor) -> bool:
    """Whether a 4-d activation is ``[B, H, W, C]``: more channels than rows and columns."""
    return value.shape[1] < value.shape[-1] and value.shape[2] < value.shape[-1]


def _whole_modules(net: nn.Module, parameters: set[str]) -> list[str]:
    """Names of the largest modules that hold nothing but ``parameters``, and of single ones."""
    names: list[str] = []

    def visit(module: nn.Module, prefix: str) -> None:
        for key, child in module.named_children():
            own = {f'{prefix}{key}.{n}' for n, _ in child.named_parameters()}
            if own and own <= parameters:
                names.append(prefix + key)
            elif own & parameters:
                visit(child, f'{prefix}{key}.')
        names.extend(
            prefix + key
            for key, _ in module.named_parameters(recurse=False)
            if prefix + key in parameters
        )

    visit(net, '')
    return names


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
        """Let every head make its aligners; before the optimiser is built."""
        mine = widths_of(self.adapter, self.taps, image_size)
        theirs = widths_of(teacher, self.teacher_taps, image_size)
        for head in self.heads:
            head.build_aligners(mine, theirs)

    def freeze_unused(self, teacher: Adapter, image_size: tuple[int, int]) -> list[str]:
        """Freeze the parts of the network that no head's loss reaches.

        So every trained parameter gets a gradient in every step. What is reached is found out by
        one
        step on a blank image: it depends on levels, taps and outputs that the heads compare.

        Args:
            teacher (Adapter): The teacher; its weights do not matter yet.
            image_size (tuple[int, int]): Height and width in pixels.

        Returns:
            list[str]: Names of the frozen modules and parameters, whole modules together.
        """
        trained = {n: p for n, p in self.net.named_parameters() if p.requires_grad}
        with evaluating(self), torch.enable_grad():
            image = blank(self.adapter, image_size)
            observation = teacher.observe(image, self.teacher_taps, self.needs_response)
            # A target class for heads that read one; they compare the student, not the target.
            targets = Targets(labels=torch.zeros(1, dtype=torch.long, device=image.device))
            total = sum(self(image, observation, targets).values())
            grads = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
        unused = {name for name, grad in zip(trained, grads, strict=True) if grad is None}
        for name in unused:
            trained[name].requires_grad_(False)
        return _whole_modules(self.net, unused)

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
                    raise KeyError(
                        f"Two distill heads report '{name}'; give one of them another name."
                    )
                losses[name] = value
        return losses
