"""How to run one family of networks: all that knows mmdet and mmpretrain models from inside."""

from torch import nn

from .base import Adapter
from .classifier import ClassifierAdapter
from .dense import DenseAnswers, DenseProbe, DenseResponse
from .detr_like import DetrAdapter
from .normalizer import Normalizer, delivered_order
from .observation import EncoderMemory, Matching, Memory, Observation, Probe, Response, Targets
from .one_stage import OneStageAdapter
from .queries import Queries, QueryAnswers, QueryProbe, QueryResponse
from .timm_classifier import TimmClassifierAdapter
from .two_stage import TwoStageAdapter

FAMILIES: tuple[type[Adapter], ...] = (
    ClassifierAdapter,
    TimmClassifierAdapter,
    TwoStageAdapter,
    DetrAdapter,
    OneStageAdapter,
)


# What to take in the place of networks that no adapter runs.
_INSTEAD = {
    'HuggingFaceClassifier': (
        "mmpretrain's wrapper gives neither features nor a head to ask. A ViT or DeiT of Hugging "
        "Face is run as mmpretrain's ImageClassifier with VisionTransformer or "
        'DistilledVisionTransformer, which takes its checkpoint as it is; many others are in timm '
        "(mmpretrain's TimmClassifier)."
    )
}


def build_adapter(net: nn.Module, normalizer: Normalizer) -> Adapter:
    """Choose the adapter that runs ``net``.

    Raises:
        TypeError: If no family supports it; names those that are supported.
        ValueError: If its head answers in a way that is not read.
    """
    for family in FAMILIES:
        if family.supports(net):
            return family(net, normalizer)
    if type(net).__name__ in _INSTEAD:
        raise TypeError(f'No adapter runs a {type(net).__name__}: {_INSTEAD[type(net).__name__]}')
    known = '; '.join(f.family + (f' ({f.examples})' if f.examples else '') for f in FAMILIES)
    # Of a one-stage detector it is the head that tells: RTMDet-Ins is an RTMDet, too.
    head = getattr(net, 'bbox_head', None)
    what = type(net).__name__ + ('' if head is None else f' with a {type(head).__name__}')
    raise TypeError(
        f'No adapter runs a {what}. Supported families: {known}. To add one, '
        'implement mmdfkd.adapters.Adapter: supports, num_classes, features, answer, target_loss '
        'and class_votes, of a detector propose and detect, too (docs/adding_a_family.md).'
    )


__all__ = [
    'Adapter',
    'ClassifierAdapter',
    'DenseAnswers',
    'DenseProbe',
    'DenseResponse',
    'DetrAdapter',
    'EncoderMemory',
    'FAMILIES',
    'Matching',
    'Memory',
    'Normalizer',
    'Observation',
    'OneStageAdapter',
    'Probe',
    'Queries',
    'QueryAnswers',
    'QueryProbe',
    'QueryResponse',
    'Response',
    'Targets',
    'TimmClassifierAdapter',
    'TwoStageAdapter',
    'build_adapter',
    'delivered_order',
]
