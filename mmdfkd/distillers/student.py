from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from mmdfkd.adapters import Adapter, Normalizer, Observation, Targets, build_adapter
from mmdfkd.heads import DistillHead, Needs
from mmdfkd.utils.recompute import recomputing, without_recomputing

from .balance import GradientBalance
from .teacher import Teacher


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
    adapter: Adapter,
    taps: Sequence[str],
    image_size: tuple[int, int],
    channels_last: Mapping[str, bool] | None = None,
) -> dict[str, list | int]:
    """Channel counts, by one forward of a blank image.

    Args:
        adapter (Adapter): The network.
        taps (Sequence[str]): Modules whose outputs are wanted.
        image_size (tuple[int, int]): Height and width in pixels.
        channels_last (Mapping[str, bool], optional): Of taps with maps, whether they are ``[B, H,
            W, C]``. Of others it is guessed: the channels are more than rows and columns.

    Returns:
        dict[str, list | int]: Of the features (``'neck'``, for a classifier ``'backbone'``; a
            list) and of each tap by its name; ``'neck_sizes'``, rows and columns of each feature.
    """
    with evaluating(adapter.net), torch.no_grad():
        memory = adapter.encode(blank(adapter, image_size), taps)

    def channels(value, last: bool | None = None) -> int:
        value = value[-1] if isinstance(value, (tuple, list)) else value
        # Maps are [B, C, H, W]; tokens [B, N, C] or [B, H, W, C] of a ViTDet block.
        last = _tokens_last(value) if last is None and value.dim() == 4 else last
        return value.shape[1] if value.dim() == 4 and not last else value.shape[-1]

    outputs = [channels(f) for f in memory.feats]
    widths: dict[str, list | int] = {'neck': outputs, 'backbone': outputs}
    widths['neck_sizes'] = [tuple(getattr(f, 'shape', ())[2:]) for f in memory.feats]
    said = channels_last or {}
    widths.update({name: channels(v, said.get(name)) for name, v in memory.taps.items()})
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
        heads (Sequence[DistillHead]): Distill heads.
        balance (GradientBalance, optional): Weighs the heads by their gradients.
        extra_teachers (Sequence[Teacher]): Those beside the first; only traced here.
    """

    def __init__(
        self,
        net: nn.Module,
        normalizer: Normalizer,
        heads: Sequence[DistillHead],
        balance: GradientBalance | None = None,
        extra_teachers: Sequence[Teacher] = (),
    ) -> None:
        super().__init__()
        self.net = net
        self.heads = nn.ModuleList(heads)
        self.balance = balance
        self.extra_teachers = tuple(extra_teachers)
        self.adapter = build_adapter(net, normalizer)

    @property
    def needs(self) -> Needs:
        """What all heads need together."""
        return Needs.together(head.needs for head in self.heads)

    @property
    def active_needs(self) -> Needs:
        """What those heads need together that have a say at this iteration."""
        return Needs.together(head.needs for head in self.heads if head.active)

    def build_aligners(self, teacher: Adapter, image_size: tuple[int, int]) -> None:
        """Let every head make its aligners; before the optimiser is built."""
        for head in self.heads:
            head.bind(self.net, teacher.net)
        needs = self.needs
        # Where the grid is finer than the width, only the head's own setting tells.
        last = {}, {}
        for head in self.heads:
            said = getattr(head, 'channels_last', (None, None))
            for side, taps in enumerate((head.needs.taps_student, head.needs.taps_teacher)):
                if said[side] is not None:
                    last[side].update(dict.fromkeys(taps, said[side]))
        mine = widths_of(self.adapter, needs.taps_student, image_size, last[0])
        theirs = widths_of(teacher, needs.taps_teacher, image_size, last[1])
        for head in self.heads:
            head.build_aligners(mine, theirs)

    def unreached(
        self,
        teacher: Adapter,
        image_size: tuple[int, int],
        heads: Sequence[DistillHead] | None = None,
    ) -> dict[str, nn.Parameter]:
        """Trained parameters of the network that no loss of the heads reaches.

        Found out by one step on a blank image: it depends on levels, taps and outputs that the
        heads compare. Schedules play no part.

        Args:
            teacher (Adapter): The teacher; its weights do not matter yet.
            image_size (tuple[int, int]): Height and width in pixels.
            heads (Sequence[DistillHead], optional): Of which heads. Defaults to all.

        Returns:
            dict[str, nn.Parameter]: By their names in the plain network.
        """
        heads = list(self.heads if heads is None else heads)
        trained = {n: p for n, p in self.net.named_parameters() if p.requires_grad}
        if not heads:
            return trained
        with without_recomputing(self, teacher.net):
            grads = self._gradients(teacher, image_size, heads, list(trained.values()))
        return {n: trained[n] for n, grad in zip(trained, grads, strict=True) if grad is None}

    def _gradients(
        self,
        teacher: Adapter,
        image_size: tuple[int, int],
        heads: Sequence[DistillHead],
        wanted: Sequence[nn.Parameter],
    ) -> tuple[Tensor | None, ...]:
        """Of the losses of ``heads`` together on a blank image; None where nothing is reached."""
        needs = Needs.together(head.needs for head in heads)
        with evaluating(self), torch.enable_grad():
            image = blank(self.adapter, image_size)
            observation = teacher.observe(
                image, needs.taps_teacher, needs.teacher_response, fresh=needs.fresh, serials=[0]
            )
            observation.others = tuple(
                extra.adapter.observe(image)
                for extra in self.extra_teachers[: needs.extra_teachers]
            )
            # A target class for heads that read one; they compare the student, not the target.
            targets = Targets(labels=torch.zeros(1, dtype=torch.long, device=image.device))
            total = sum(self._losses(image, observation, targets, heads).values())
            return torch.autograd.grad(total, list(wanted), allow_unused=True)

    def bind_balance(self, teacher: Adapter, image_size: tuple[int, int]) -> None:
        """Let the balance find weights that all heads reach; without one, nothing happens.

        Raises:
            ValueError: If there are none, or where the network recomputes activations on the way.
        """
        if self.balance is None:
            return
        trained = {n: p for n, p in self.net.named_parameters() if p.requires_grad}
        reached = []
        for head in self.heads:
            lost = self.unreached(teacher, image_size, [head])
            reached.append({n: p for n, p in trained.items() if n not in lost})
        self.balance.bind(self.net, list(self.heads), reached)
        # It measures in the graph of the step itself: without recomputing, that spared no memory.
        found = recomputing(self.net)
        known = {id(p) for own in reached for p in own.values()}
        wanted = [p for p in self.balance.theta if id(p) in known]
        if found and not self._measurable(teacher, image_size, wanted):
            names = {module: name for name, module in self.net.named_modules()}
            module, switch = found[0]
            raise ValueError(
                f'balance: the gradient of one loss cannot be measured in or through modules that '
                f"recompute activations ('{names[module]}' has {switch}=True, of a student derived "
                f'from its teacher by the config of that). Set {switch}=False there, train without '
                'balance, or name a layer behind these modules.'
            )

    def _measurable(
        self, teacher: Adapter, image_size: tuple[int, int], wanted: Sequence[nn.Parameter]
    ) -> bool:
        """Whether gradients of parameters that are reached can be had while it recomputes."""
        # Modules before them may recompute, so only a trial tells.
        try:
            grads = self._gradients(teacher, image_size, self.heads, wanted)
        except RuntimeError:
            return False
        # Those of the modules that recompute are none, in silence.
        return not any(grad is None for grad in grads)

    def freeze_unused(self, teacher: Adapter, image_size: tuple[int, int]) -> list[str]:
        """Freeze the parts of the network that no head's loss reaches.

        So every trained parameter gets a gradient in every step.

        Args:
            teacher (Adapter): The teacher; its weights do not matter yet.
            image_size (tuple[int, int]): Height and width in pixels.

        Returns:
            list[str]: Names of the frozen modules and parameters, whole modules together.
        """
        unused = self.unreached(teacher, image_size)
        for parameter in unused.values():
            parameter.requires_grad_(False)
        return _whole_modules(self.net, set(unused))

    def forward(self, images: Tensor, teacher: Observation, targets: Targets) -> dict[str, Tensor]:
        """Run the student once and compare it with the teacher.

        Heads without a say at this iteration are not run. Where that is by their schedule, what is
        trained still gets a gradient, of zero, as if they had been.

        Args:
            images (Tensor): RGB in [0, 1], ``[B, 3, H, W]``.
            teacher (Observation): What the teacher said about them; what :attr:`active_needs` asks.
            targets (Targets): What they were meant to show.

        Returns:
            dict[str, Tensor]: Scalars ``loss_*``.
        """
        active = [(i, head) for i, head in enumerate(self.heads) if head.active]
        places, heads = [i for i, _ in active], [head for _, head in active]
        parts = self._head_losses(images, teacher, targets, heads)
        if self.balance is not None:
            parts = self.balance(parts, heads, places)
        losses = _together(parts)
        if any(not head.active and not head.resting for head in self.heads):
            name = next(iter(losses), 'loss_idle')
            # One value of each parameter is enough for a gradient of its shape.
            zero = sum(p.flatten()[0] for p in self.parameters() if p.requires_grad) * 0.0
            losses[name] = losses.get(name, 0.0) + zero
        return losses

    def _losses(
        self, images: Tensor, teacher: Observation, targets: Targets, heads: Sequence[DistillHead]
    ) -> dict[str, Tensor]:
        return _together(self._head_losses(images, teacher, targets, heads))

    def _head_losses(
        self, images: Tensor, teacher: Observation, targets: Targets, heads: Sequence[DistillHead]
    ) -> list[dict[str, Tensor]]:
        needs = Needs.together(head.needs for head in heads)
        memory = self.adapter.encode(images, needs.taps_student)
        response = None
        if needs.response or needs.own:
            # Without the probe: at its own queries alone.
            probe = teacher.probe if needs.response else None
            response = self.adapter.answer(memory, probe)
        mine = Observation(
            memory,
            teacher.probe,
            response,
            own_loss=partial(self.adapter.own_loss, memory),
            find_masks=partial(self.adapter.masks, memory),
        )
        return [head(mine, teacher, targets, images) for head in heads]


def _together(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Losses of several heads.

    Raises:
        KeyError: If two have one name.
    """
    losses: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            if name in losses:
                raise KeyError(f"Two distill heads report '{name}'; give one of them another name.")
            losses[name] = value
    return losses
