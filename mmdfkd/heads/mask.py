import torch
from torch import Tensor, nn

from mmdfkd.adapters import Observation, Targets
from mmdfkd.losses import binary_kl
from mmdfkd.registry import MODELS

from .base import DistillHead, Needs


@MODELS.register_module()
class MaskResponseHead(DistillHead):
    """The student's mask head draws what the teacher's does, at the teacher's surest regions.

    Regions are the teacher's proposals that hold most foreground (of a cascade: where its stages
    moved them), the mask that of the class it sees there. The Kullback-Leibler divergence of each
    pixel's Bernoulli distribution, a mean over regions and pixels weighted by the probability of
    foreground. All stages of a cascade take part; of unequal numbers of stages the last ones pair.

    Args:
        regions (int): Most regions of an image. Defaults to 16.
        temperature (float): Softens the pixels. Defaults to 1.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: If ``regions`` is not positive.
    """

    needs = Needs(teacher_response=True)

    def __init__(self, regions: int = 16, temperature: float = 1.0, **kwargs) -> None:
        super().__init__(**kwargs)
        if regions < 1:
            raise ValueError(f'MaskResponseHead: regions must be at least 1, not {regions}.')
        self.regions = regions
        self.temperature = temperature

    def bind(self, student: nn.Module, teacher: nn.Module) -> None:
        """Look whether both have mask heads of one kind.

        Raises:
            ValueError: If one has none, or only one draws a mask for each class.
        """
        kinds = []
        for name, net in (('student', student), ('teacher', teacher)):
            roi_head = getattr(net, 'roi_head', None)
            if roi_head is None or not roi_head.with_mask:
                raise ValueError(
                    f'MaskResponseHead compares mask heads, but the {name}, a '
                    f'{type(net).__name__}, has none: take it away, or give both networks one.'
                )
            head = roi_head.mask_head
            head = head[-1] if isinstance(head, nn.ModuleList) else head
            kinds.append(bool(getattr(head, 'class_agnostic', False)))
        if kinds[0] != kinds[1]:
            raise ValueError(
                "MaskResponseHead: the student's mask head has class_agnostic="
                f"{kinds[0]}, the teacher's {kinds[1]}: give both the same."
            )

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_mask``: the mean over stages."""
        boxes, labels, weight = self.where(teacher)
        with torch.no_grad():
            other = teacher.find_masks(boxes)
        own = student.find_masks(boxes)
        count = min(len(own), len(other))
        rows = torch.arange(len(labels), device=labels.device)
        total = 0.0
        for pair in zip(own[-count:], other[-count:], strict=True):
            if pair[0].shape != pair[1].shape:
                raise ValueError(
                    f'MaskResponseHead: masks of {tuple(pair[0].shape[-2:])} pixels of the student '
                    f'and {tuple(pair[1].shape[-2:])} of the teacher: give both mask heads the '
                    'same roi_feat_size and upsampling.'
                )
            maps = [x[rows, labels if x.shape[1] > 1 else labels * 0] for x in pair]
            total = total + binary_kl(*maps, self.temperature, weight[:, None, None])
        # Without a region there is a graph all the same.
        return {'loss_mask': total / count + sum(x.sum() for x in own) * 0.0}

    @torch.no_grad()
    def where(self, teacher: Observation) -> tuple[list[Tensor], Tensor, Tensor]:
        """Boxes of each image, and class and weight of all, image by image."""
        probe = teacher.probe
        last = probe.moved[-1] if probe.moved else probe.boxes
        found = teacher.response.logits.detach().float().softmax(-1)[:, :-1]
        boxes, labels, weight = [], [], []
        for own, part in zip(last, found.split([len(b) for b in last]), strict=True):
            evidence = part.sum(1)
            best = evidence.topk(min(self.regions, len(own))).indices
            boxes.append(own[best])
            labels.append(part[best].argmax(1) if len(best) else best)
            weight.append(evidence[best])
        return boxes, torch.cat(labels), torch.cat(weight)
