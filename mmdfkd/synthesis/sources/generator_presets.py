"""Published data-free methods as settings of one source."""

import copy
from collections.abc import Mapping

from mmdfkd.registry import MODELS

from .generated import GeneratorSource

_ADAM = dict(type='Adam', lr=1e-3, betas=(0.5, 0.999))
# A crop of the image padded by an eighth, of Fast and NAYER; their horizontal flip is left out, as
# is every one that the teacher may not have been trained with.
_CROP = dict(
    type='mmdfkd.LightAugment',
    flip=0.0,
    turn=0.0,
    scale=(1.0, 1.0),
    shift=0.125,
    contrast=0.0,
    brightness=0.0,
)
# Beside the statistics of batch norms, for teachers with attention: ours, no published one of these
# methods has such a term. The source leaves out what does not suit the teacher.
_PATCHES = dict(type='mmdfkd.PatchSimilarityPrior', weight=0.25)

#: Settings of each method. Rates, weights and steps are those of the authors' or of the CMI and
#: Fast-Datafree benchmarks' scripts for CIFAR; their batch (256, NAYER 400) is for the user's
#: machine to decide.
PRESETS: dict[str, dict] = {
    # Chen et al., ICCV 2019: the teacher as a fixed discriminator. Weights of CIFAR-10 (0.5 and 20
    # for CIFAR-100); rate of the benchmarks, 0.02 in the release. Its activation term is left
    # out: behind a LayerNorm the size of a feature is fixed.
    'dafl': dict(
        generator=dict(type='mmdfkd.ConvGenerator'),
        priors=[
            dict(type='mmdfkd.ClassPrior', weight=0.05, mode='self'),
            dict(type='mmdfkd.InformationEntropyPrior', weight=5.0),
        ],
        labelled=False,
        batch=256,
        optimizer=_ADAM,
    ),
    # Micaelli & Storkey, NeurIPS 2019: KL as the only term and everywhere (no mask, which came with
    # CMI), one step of the generator to five of the student.
    'zskt': dict(
        generator=dict(type='mmdfkd.ConvGenerator'),
        priors=[dict(type='mmdfkd.DivergencePrior', weight=1.0, masked=False)],
        labelled=False,
        batch=256,
        every=5,
        optimizer=_ADAM,
    ),
    # Fang et al., 2019: the mean absolute difference of the logits instead.
    'dfad': dict(
        generator=dict(type='mmdfkd.ConvGenerator'),
        priors=[dict(type='mmdfkd.LogitDistancePrior', weight=1.0)],
        labelled=False,
        batch=256,
        every=5,
        optimizer=_ADAM,
    ),
    # Choi et al., CVPR workshops 2020. Weights 1, 1, 1 and 20 as in CMI's scripts; that of the
    # entropy is 20 times the natural logarithm of 10 classes in our unit; the divergence is
    # unmasked, which there only CMI's own is.
    'dfq': dict(
        generator=dict(type='mmdfkd.ConvGenerator'),
        priors=[
            dict(type='mmdfkd.ClassPrior', weight=1.0, mode='self'),
            dict(type='mmdfkd.InformationEntropyPrior', weight=46.0),
            dict(type='mmdfkd.DivergencePrior', weight=1.0, masked=False),
            dict(type='mmdfkd.BatchNormPrior', weight=1.0, published=True),
            _PATCHES,
        ],
        labelled=False,
        batch=256,
        every=10,
        optimizer=_ADAM,
    ),
    # Fang et al., AAAI 2022, Fast-10: a round of 10 steps from a meta-learned start fills the
    # bank once an epoch of 400 steps. Fast-5: steps=5, rate 3e-3; Fast-2: 2, 5e-3, noise .015.
    'fast': dict(
        generator=dict(type='mmdfkd.ConvGenerator'),
        priors=[
            dict(type='mmdfkd.TargetPrior', weight=0.5),
            dict(type='mmdfkd.DivergencePrior', weight=1.33),
            dict(type='mmdfkd.BatchNormPrior', weight=10.0, published=True, momentum=0.9),
            _PATCHES,
        ],
        batch=256,
        every=400,
        steps=10,
        first=20,
        optimizer=dict(_ADAM, lr=2e-3),
        hold=True,
        noise_lr=0.01,
        meta='fomaml',
        view=_CROP,
        share=1.0,
        bank=dict(capacity=51200),
        augment=_CROP,
    ),
    # Habib et al., arXiv 2408.05952, in our reading, since what is accessible of it has no numbers:
    # the transformer-augmented generator, L_adv with the teacher as the discriminator (DAFL's),
    # L_attention as focus. Other readings: LogitDistancePrior for L_adv,
    # AttentionConsistencyPrior for L_attention.
    'dfkt': dict(
        generator=dict(type='mmdfkd.TransformerGenerator'),
        priors=[
            dict(type='mmdfkd.ClassPrior', weight=0.05, mode='self'),
            dict(type='mmdfkd.InformationEntropyPrior', weight=5.0),
            dict(type='mmdfkd.AttentionFocusPrior', weight=0.5),
        ],
        labelled=False,
        batch=256,
        optimizer=_ADAM,
    ),
    # Tran et al., CVPR 2024: noisy layers on the classes' codes, two rounds of 40 steps an epoch
    # of 400, a new generator every 10 epochs; 200 rounds before the first step there, 20 here.
    # 40 layers serve 10 classes at batch 400: noisy_layers is the batch over the classes.
    'nayer': dict(
        generator=dict(
            type='mmdfkd.ConvGenerator', noise_dims=256, label_dims=512, noisy_layers=40
        ),
        priors=[
            dict(type='mmdfkd.TargetPrior', weight=0.5),
            dict(type='mmdfkd.DivergencePrior', weight=1.33),
            dict(type='mmdfkd.BatchNormPrior', weight=10.0, published=True),
            _PATCHES,
        ],
        batch=400,
        every=200,
        steps=40,
        first=20,
        optimizer=dict(_ADAM, lr=4e-3),
        restart=True,
        life=20,
        view=_CROP,
        share=1.0,
        bank=dict(capacity=51200),
        augment=_CROP,
    ),
}


@MODELS.register_module()
class PresetGeneratorSource(GeneratorSource):
    """A published method, by its name: :data:`PRESETS` with some settings changed.

    Args:
        preset (str): ``'dafl'``, ``'zskt'``, ``'dfad'``, ``'dfq'``, ``'fast'``, ``'dfkt'`` or
            ``'nayer'``.
        **changes: Settings of :class:`GeneratorSource` that differ. Those of ``generator`` and
            ``bank`` are changed one by one, unless ``generator`` has another ``type``.

    Raises:
        ValueError: If there is no such method.
    """

    def __init__(self, preset: str, **changes) -> None:
        if preset not in PRESETS:
            raise ValueError(
                f'PresetGeneratorSource: preset must be one of {tuple(PRESETS)}, got {preset!r}.'
            )
        settings = copy.deepcopy(PRESETS[preset])
        for name, value in changes.items():
            merges = name in ('generator', 'bank') and isinstance(value, Mapping)
            same = isinstance(settings.get(name), dict) and merges
            if same and value.get('type', settings[name].get('type')) == settings[name].get('type'):
                settings[name].update(value)
            else:
                settings[name] = value
        super().__init__(**settings)
