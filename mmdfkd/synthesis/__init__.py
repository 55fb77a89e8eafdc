"""How training images come about where there are none."""

from .augment import LightAugment
from .bank import ReplayBank
from .frozen import frozen
from .priors import (
    AttentionPrior,
    BatchNormPrior,
    BoundaryPreservingPrior,
    ClassPrior,
    ContrastivePrior,
    DivergencePrior,
    InformationEntropyPrior,
    InterHeadPrior,
    JensenShannonPrior,
    PatchBoundaryPrior,
    PatchSimilarityPrior,
    Prior,
    SynthesisContext,
    TargetPrior,
    TotalVariationPrior,
)
from .sources import (
    FolderSource,
    GeneratorSource,
    LayoutInversionSource,
    MixtureSource,
    PooledSource,
    PresetGeneratorSource,
    RefinedSource,
    RenderedSource,
    ReplaySource,
    SyntheticSource,
)
from .teacher_report import TeacherReport, inspect_teacher

__all__ = [
    'AttentionPrior',
    'BatchNormPrior',
    'BoundaryPreservingPrior',
    'ClassPrior',
    'ContrastivePrior',
    'DivergencePrior',
    'GeneratorSource',
    'FolderSource',
    'InformationEntropyPrior',
    'InterHeadPrior',
    'JensenShannonPrior',
    'LayoutInversionSource',
    'LightAugment',
    'MixtureSource',
    'PatchBoundaryPrior',
    'PatchSimilarityPrior',
    'PooledSource',
    'PresetGeneratorSource',
    'Prior',
    'RefinedSource',
    'RenderedSource',
    'ReplayBank',
    'ReplaySource',
    'SynthesisContext',
    'SyntheticSource',
    'TargetPrior',
    'TeacherReport',
    'TotalVariationPrior',
    'frozen',
    'inspect_teacher',
]
