import torch
from torch import Tensor, nn

from mmdfkd.adapters import Observation, Targets
from mmdfkd.inheritance import InheritanceReport
from mmdfkd.inheritance.depth import uniform_layers
from mmdfkd.inheritance.views import view_backbone
from mmdfkd.losses import masked_mimic
from mmdfkd.registry import MODELS

from .base import DistillHead, Needs


@MODELS.register_module()
class BlockHead(DistillHead):
    """Each block of an inherited student learns alone, from the teacher's own tokens.

    The student's block ``j`` stands for a group of the teacher's: its own block and those dropped
    behind it (the first also for those dropped before it). With ``x_j`` the teacher's tokens where
    the group begins and ``W`` the map of channels that the student was inherited through, block
    ``f_j`` is given ``W x_j`` and is to return ``W x_{j+1}``::

        loss = mean_j  E |f_j(W x_j) - W x_{j+1}|^2 / E |W x_{j+1} - W x_j|^2

    in units of what the group writes: a block that writes nothing costs 1, whatever the scale of
    the tokens. Inputs are the teacher's, so errors do not add up from block to block and every
    gradient stays in its block: the embeddings, the neck and the predictors get none.

    It runs the blocks once more, beside the student's own forward. Meant for the first part of a
    run, before end to end: ``schedule=dict(begin=..., end=..., start=1, stop=0)``, after which it
    costs nothing. The student has to be inherited (``init='inherit'``) from a backbone that
    inheritance supports; the map and the groups are taken from there.

    Args:
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        # In a tuple: the blocks are the student's, no children of the head.
        self._blocks: tuple[nn.Module, ...] = ()
        self._names: tuple[str, ...] = ()
        self._bounds: tuple[str, ...] = ()
        self._inherited = False
        self.register_load_state_dict_post_hook(lambda head, _: head._place())

    def bind(self, student: nn.Module, teacher: nn.Module) -> None:
        """Find both networks' blocks.

        Raises:
            ValueError: If a backbone is not supported, or the student's blocks cannot be matched
                with the teacher's.
        """
        own, other = (view_backbone(getattr(net, 'backbone', None)) for net in (student, teacher))
        names = {module: name for name, module in teacher.named_modules()}
        self._blocks = tuple(view.block for view in own.blocks)
        self._names = tuple(names[view.block] for view in other.blocks)
        # Placeholders until the student is inherited: what the losses reach is the same.
        device = next(student.parameters()).device
        layers = torch.tensor(uniform_layers(other.kinds, own.kinds), device=device)
        self.register_buffer('layers', layers)
        self.register_buffer('write', torch.eye(own.dims, other.dims, device=device))
        self._place()

    def start_from(self, report: InheritanceReport) -> None:
        """Take over which blocks were kept, and through which map."""
        self.layers.copy_(torch.as_tensor(report.layers))
        # `read` of every map is the pseudo-inverse of its `write`, by which the student's tokens
        # are the teacher's.
        self.write.copy_(torch.linalg.pinv(report.maps['stream'].double()))
        self._inherited = True
        self._place()

    def fit_aligners(self, student: Observation, teacher: Observation) -> None:
        """Nothing to fit: the map is exact.

        Raises:
            ValueError: If the student was not inherited.
        """
        if not self._inherited:
            raise ValueError(
                'BlockHead trains the blocks of an inherited student on the tokens of those '
                "teacher's blocks that they were made from, but this student was not inherited: "
                "set model.student.init='inherit', or leave the head out."
            )

    def _place(self) -> None:
        """Where the groups begin, and where the last one ends, as taps of the teacher."""
        names = self._names
        between = (names[layer - 1] for layer in self.layers.tolist()[1:])
        self._bounds = (f'{names[0]}:input', *between, names[-1])
        self.needs = Needs(taps_teacher=self._bounds)

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_block``: the mean over the blocks."""
        if not self._blocks:
            raise RuntimeError('BlockHead: bind has to be called before the first forward.')
        # Not in half precision: targets are differences of tokens much larger than them.
        with torch.autocast(images.device.type, enabled=False):
            tokens = [
                teacher.memory.taps[name].detach().to(self.write.dtype) @ self.write.t()
                for name in self._bounds
            ]
        total = 0.0
        for block, entry, goal in zip(self._blocks, tokens, tokens[1:], strict=False):
            total = total + masked_mimic(block(entry) - entry, goal - entry, dim=-1)
        return {'loss_block': total / len(self._blocks)}
