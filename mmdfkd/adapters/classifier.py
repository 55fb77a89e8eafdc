import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Adapter
from .normalizer import Normalizer
from .observation import Memory, Probe, Response, Targets

# Heads whose answers are no softmax over classes; those derived of them neither.
_OTHER_ANSWERS = {
    'MultiLabelClsHead': 'several labels an image, each by a sigmoid',
    'MultiTaskHead': 'several tasks at once',
    'ConformerHead': 'two answers, one of each branch',
    'RegressionHead': 'numbers instead of classes',
}
_WANTED = (
    'Supported is a head with num_classes and one answer an image, read by a softmax, such as '
    'LinearClsHead or VisionTransformerClsHead.'
)


class ClassifierAdapter(Adapter):
    """mmpretrain's ``ImageClassifier`` with a linear classification head.

    Args:
        net (nn.Module): The classifier.
        normalizer (Normalizer): From images in [0, 1] to its input.

    Raises:
        ValueError: If its head does not answer with a softmax over classes.
    """

    family = 'classifier'
    examples = "mmpretrain's ImageClassifier"

    def __init__(self, net: nn.Module, normalizer: Normalizer) -> None:
        super().__init__(net, normalizer)
        # A network of timm has its head inside.
        if getattr(net, 'head', None) is not None:
            _check_head(net.head)

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
        """Class logits ``[B, classes]``; of a distilled DeiT the mean of both heads.

        Raises:
            TypeError: If the head gives no tensor.
        """
        logits = self.net.head(memory.feats)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f'The {type(self.net.head).__name__} of the classifier gives a '
                f'{type(logits).__name__} in the place of class logits. {_WANTED}'
            )
        return Response(logits=logits)

    def target_loss(self, memory: Memory, targets: Targets) -> Tensor:
        """Cross-entropy with the target class, per image."""
        return F.cross_entropy(self.answer(memory).logits, targets.labels, reduction='none')

    @torch.no_grad()
    def class_votes(self, memory: Memory) -> Tensor:
        """Class probabilities."""
        return self.answer(memory).logits.softmax(-1)


def _check_head(head: nn.Module) -> None:
    """Refuse a head that is known to answer otherwise, before anything is run."""
    found = [_OTHER_ANSWERS.get(kind.__name__) for kind in type(head).__mro__]
    reasons = [f'gives {what}' for what in found if what]
    if not reasons and getattr(head, 'num_classes', None) is None:
        reasons = ['has no num_classes']
    if reasons:
        raise ValueError(
            f'The {type(head).__name__} of the classifier {reasons[0]}: it is not distilled here. '
            f'{_WANTED}'
        )
