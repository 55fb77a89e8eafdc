"""What a teacher offers to the making of images, and which priors follow from it."""

from dataclasses import dataclass
from textwrap import indent, wrap

from mmdfkd.adapters.base import Adapter
from mmdfkd.registry import MODELS

from .priors.parts import attention_layers, batch_norms, patch_size, windowed_layers


@dataclass(frozen=True)
class PriorChoice:
    """One prior, taken or left out.

    Attributes:
        cfg: Its config, with the weight to start from.
        used: Whether it is among the defaults for this teacher.
        why: The reason, a sentence without its full stop.
    """

    cfg: dict
    used: bool
    why: str


@dataclass(frozen=True)
class TeacherReport:
    """What a teacher is, as far as priors ask, and the priors that follow.

    Attributes:
        family: How it is run: the adapter's family.
        network: Type of the network and of its backbone.
        num_classes: Number of foreground classes.
        batch_norms: Layers of batch norm with statistics, in backbone and neck.
        attention: Layers of attention over the whole image that can be read.
        heads: Their heads, from least to most.
        windows: Layers whose attention stays in windows.
        prefix_tokens: Tokens before the patches.
        class_token: Whether it answers from a class token; None where it has no attention.
        patch: Height and width of a patch in pixels, None where there are none.
        choices: All priors, taken and left out.
    """

    family: str
    network: str
    num_classes: int
    batch_norms: int
    attention: int
    heads: tuple[int, int]
    windows: int
    prefix_tokens: int
    class_token: bool | None
    patch: tuple[int, int] | None
    choices: tuple[PriorChoice, ...]

    @property
    def priors(self) -> list[dict]:
        """Configs of the default priors, to be built or written into a config."""
        return [dict(choice.cfg) for choice in self.choices if choice.used]

    def __str__(self) -> str:
        """The report on several lines."""
        if self.attention:
            low, high = self.heads
            heads = f'{low}' if low == high else f'{low} to {high}'
            attention = f'{self.attention} layers over the whole image, {heads} heads'
        else:
            attention = 'none over the whole image that can be read'
        if self.windows:
            attention += f'; {self.windows} layers in windows'
        token = {None: 'none', False: 'not used for the answer', True: 'yes'}[self.class_token]
        facts = {
            'teacher': f'{self.network} ({self.family}, {self.num_classes} classes)',
            'batch norm': f'{self.batch_norms} layers' if self.batch_norms else 'none',
            'attention': attention,
            'class token': f'{token} ({self.prefix_tokens} tokens before the patches)'
            if self.prefix_tokens
            else 'none',
            'patches': 'none' if self.patch is None else '{} x {} px'.format(*self.patch),
        }
        lines = [f'{name + ":":<13}{text}' for name, text in facts.items()]
        for used, title in ((True, 'Priors'), (False, 'Left out')):
            chosen = [choice for choice in self.choices if choice.used is used]
            if chosen:
                lines.append(f'{title}:')
            for choice in chosen:
                cfg = dict(choice.cfg)
                name, weight = cfg.pop('type'), cfg.pop('weight')
                more = ''.join(f', {key}={value!r}' for key, value in cfg.items())
                head = f'{name} ({weight:g}{more}): ' if used else f'{name}: '
                lines.append(indent('\n'.join(wrap(head + choice.why, 96)), '  '))
        return '\n'.join(lines)


def inspect_teacher(teacher: Adapter, student: bool = True, targets: bool = True) -> TeacherReport:
    """Look at a teacher and choose priors for it.

    The weights are values to start from, of terms that are all about 1 for an image that does not
    meet them; they are those of the literature where it has them on such a scale.

    Args:
        teacher (Adapter): With its network.
        student (bool): Whether there is a student to disagree with.
        targets (bool): Whether the images are to show something; a generator's need not.

    Returns:
        TeacherReport: To be printed, and with ``priors`` to be used.
    """
    net = teacher.net
    layers = attention_layers(net)
    heads = [layer.num_heads for layer in layers]
    # A network of timm as a whole lies below model.
    backbone = getattr(net, 'backbone', getattr(net, 'model', net))
    return TeacherReport(
        family=teacher.family,
        network=f'{type(net).__name__} on {type(backbone).__name__}',
        num_classes=teacher.num_classes,
        batch_norms=len(batch_norms(net)),
        attention=len(layers),
        heads=(min(heads), max(heads)) if heads else (0, 0),
        windows=windowed_layers(net),
        prefix_tokens=layers[0].prefix_tokens if layers else 0,
        class_token=layers[0].class_row if layers and layers[0].prefix_tokens else None,
        patch=patch_size(net),
        choices=tuple(_choices(teacher, student, targets)),
    )


def _choices(teacher: Adapter, student: bool, targets: bool) -> list[PriorChoice]:
    """Every prior, and why it is taken or not."""
    classifier = teacher.family == 'classifier'
    found = []

    def consider(cfg: dict, wanted: bool, why: str, otherwise: str = '') -> None:
        """Take a prior if it is wanted and suits the teacher."""
        reason = MODELS.build(cfg).unsuited(teacher)
        if reason is not None:
            found.append(PriorChoice(cfg, False, reason))
        else:
            found.append(PriorChoice(cfg, wanted, why if wanted else otherwise))

    consider(
        dict(type='mmdfkd.TargetPrior', weight=1.0),
        targets,
        'the teacher has to see what an image is to show',
        'the images are to show nothing in particular',
    )
    consider(
        dict(type='mmdfkd.TotalVariationPrior', weight=0.02),
        True,
        'fine noise satisfies any teacher and shows nothing',
    )
    consider(
        dict(type='mmdfkd.BatchNormPrior', weight=1.0),
        True,
        'batch norms keep statistics of the training data, which inversion of CNNs rests on',
    )
    consider(
        dict(type='mmdfkd.AttentionPrior', weight=0.5),
        True,
        'attention to few places tells things from noise, where no batch norms do',
    )
    consider(
        dict(type='mmdfkd.PatchSimilarityPrior', weight=0.1),
        True,
        'patches of noise all resemble each other; it costs one small matrix a block',
    )
    consider(
        dict(type='mmdfkd.PatchBoundaryPrior', weight=1.0),
        True,
        'pixels are free to jump where its patches meet, and would',
    )
    consider(
        dict(type='mmdfkd.DivergencePrior', weight=1.0),
        student,
        'images on which the student differs teach it most; from the start it finds noise, so '
        'begin it late or start from procedural images',
        'there is no student',
    )
    consider(
        dict(type='mmdfkd.JensenShannonPrior', weight=0.2),
        False,
        '',
        'does what DivergencePrior does, without its mask; take one of them',
    )
    consider(
        dict(type='mmdfkd.LogitDistancePrior', weight=0.1),
        False,
        '',
        'does so in the units of the logits, without a bound: for a generator whose student is '
        'close to the teacher already',
    )
    consider(
        dict(type='mmdfkd.AttentionFocusPrior', weight=0.5),
        False,
        '',
        'asks for few places whichever they are, AttentionPrior for places spread over the images; '
        "take one of them. It is the first paper's generator's",
    )
    consider(
        dict(type='mmdfkd.AttentionConsistencyPrior', weight=0.5),
        False,
        '',
        'costs a second pass of the student; for generators, and for students of the same patches',
    )
    consider(
        dict(type='mmdfkd.InterHeadPrior', weight=1.0),
        False,
        '',
        'costs more than AttentionPrior and serves the same end; take one of them',
    )
    consider(
        dict(
            type='mmdfkd.ClassPrior', weight=1.0, mode='soft' if classifier and targets else 'self'
        ),
        not targets,
        'without targets, the teacher has to be sure of something',
        'for soft targets or for images without targets, in the place of TargetPrior',
    )
    consider(
        dict(type='mmdfkd.SubBoxPrior', weight=1.0),
        False,
        '',
        'for boxes that show classes of their own, in the place of TargetPrior; costs a pass of '
        'each box'
        if targets
        else 'its boxes are to show classes, and the images are to show nothing in particular',
    )
    consider(
        dict(type='mmdfkd.InformationEntropyPrior', weight=1.0),
        not targets,
        'without targets, all classes have to come about',
        "for images without targets (a generator's): targets are balanced already",
    )
    consider(
        dict(type='mmdfkd.ContrastivePrior', weight=0.8),
        False,
        '',
        'costs a second pass through the teacher; against images that are all alike',
    )
    consider(
        dict(type='mmdfkd.BoundaryPreservingPrior', weight=1.0),
        False,
        '',
        'against images of a class that are all alike; needs a batch of several images a class, '
        'or its memory',
    )
    return found
