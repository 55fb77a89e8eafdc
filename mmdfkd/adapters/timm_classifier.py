from torch import Tensor, nn

from .classifier import ClassifierAdapter
from .normalizer import Normalizer
from .observation import Memory, Probe, Response


class TimmClassifierAdapter(ClassifierAdapter):
    """mmpretrain's ``TimmClassifier``: a whole network of timm, its own classifier included.

    Its modules lie below ``model``, such as ``model.blocks.3``. The features are what timm's
    ``forward_features`` gives, in the network's own layout, and last the pooled vector ``[B, D]``
    before the classifier, which heads without taps read.

    Args:
        net (nn.Module): The ``TimmClassifier``.
        normalizer (Normalizer): From images in [0, 1] to its input.

    Raises:
        ValueError: If the network of timm classifies nothing: built with ``features_only`` or
            without classes.
    """

    examples = "mmpretrain's TimmClassifier"

    def __init__(self, net: nn.Module, normalizer: Normalizer) -> None:
        super().__init__(net, normalizer)
        model = net.model
        whole = hasattr(model, 'forward_features') and hasattr(model, 'forward_head')
        if not whole or not getattr(model, 'num_classes', 0):
            raise ValueError(
                f'TimmClassifier with a {type(model).__name__} of '
                f'{getattr(model, "num_classes", 0)} classes gives no answers: name a classifier '
                'of timm (one with forward_features and forward_head), num_classes of at least 1 '
                'and no features_only.'
            )

    @classmethod
    def supports(cls, net: nn.Module) -> bool:
        """True for a ``TimmClassifier``."""
        return type(net).__name__ == 'TimmClassifier'

    @property
    def num_classes(self) -> int:
        """Number of classes of timm's classifier."""
        return int(self.net.model.num_classes)

    def features(self, inputs: Tensor) -> tuple:
        """Unpooled features as timm lays them out, and the pooled ones."""
        model = self.net.model
        feats = model.forward_features(inputs)
        return feats, model.forward_head(feats, pre_logits=True)

    def answer(self, memory: Memory, probe: Probe | None = None) -> Response:
        """Class logits ``[B, classes]`` of timm's own head."""
        return Response(logits=self.net.model.forward_head(memory.feats[0]))
