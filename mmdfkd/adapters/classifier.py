import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Adapter
from .observation import Memory, Probe, Response, Targets


class ClassifierAdapter(Adapter):
    """mmpretrain's ``ImageClassifier`` with a linear classification head."""

    family = 'classifier'
    examples = "mmpretrain's ImageClassifier"

    @classmethod
    def supports(cls, net: nn.Module) -> bool:
        """True for an ``ImageClassifier`` with a head."""
        return type(net).__name__ == 'ImageClassifier' and getattr(net, 'head', None) is not None

    @property
    def num_classes(self) -> int:
        """Number of classes of the head."""
        return int(self.net.head.num_classes)

    def features(self, inputs: Tensor) -> tuple:
        """Backbone and neck."""
        return self.net.extract_feat(inputs)

    def answer(self, memory: Memory, probe: Probe | None = None) -> Response:
        """Class logits ``[B, classes]``; of a distilled DeiT the mean of both heads."""
        return Response(logits=self.net.head(memory.feats))

    def target_loss(self, memory: Memory, targets: Targets) -> Tensor:
        """Cross-entropy with the target class, per image."""
        return F.cross_entropy(self.answer(memory).logits, targets.labels, reduction='none')

    @torch.no_grad()
    def class_votes(self, memory: Memory) -> Tensor:
        """Class probabilities."""
        return self.answer(memory).logits.softmax(-1)
