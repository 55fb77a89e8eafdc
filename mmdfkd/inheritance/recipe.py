"""What a student is made by: which parts of the teacher are kept, and what is refitted."""

from dataclasses import dataclass

METHODS = ('slice', 'select')
_CHOICES = dict(
    layers=('uniform', 'output'),
    channels=('uniform', 'activation'),
    units=('uniform', 'activation', 'reconstruction'),
    refit=('none', 'layer', 'block'),
)
_DEFAULTS = dict(
    slice=dict(layers='output', channels='rotation', units='reconstruction', refit='block'),
    select=dict(layers='uniform', channels='uniform', units='uniform', refit='none'),
)


@dataclass(frozen=True)
class Recipe:
    """A method with its parts, each of which may be exchanged; see :func:`recipe_of`.

    Attributes:
        method: ``'slice'`` or ``'select'``.
        layers: How blocks are chosen.
        channels: How the channels of a stream are: ``'rotation'`` for ``'slice'``.
        units: How heads and hidden units are.
        refit: What linear layers are refitted to.
    """

    method: str
    layers: str
    channels: str
    units: str
    refit: str

    @property
    def refits(self) -> bool:
        """Whether layers are refitted at all."""
        return self.refit != 'none'

    def options(self) -> dict[str, str]:
        """All parts but the method."""
        return {name: getattr(self, name) for name in _CHOICES}


def recipe_of(
    method: str = 'slice',
    layers: str | None = None,
    channels: str | None = None,
    units: str | None = None,
    refit: str | None = None,
) -> Recipe:
    """A method, with other parts than its own where they are given.

    Args:
        method (str): ``'slice'`` rotates streams of channels to their leading directions,
            ``'select'`` keeps some channels as they are. Defaults to ``'slice'``.
        layers (str, optional): ``'uniform'`` spreads the kept blocks evenly; ``'output'`` keeps
            those without whose companions the teacher's output changes least, window blocks for
            window blocks and global ones for global ones. None: ``'output'`` of ``'slice'``,
            ``'uniform'`` of ``'select'``.
        channels (str, optional): Of ``'select'``: ``'uniform'`` spreads the kept channels evenly;
            ``'activation'`` keeps those of which the layers that read them make most. None:
            ``'uniform'``.
        units (str, optional): Heads and hidden units: ``'uniform'``; ``'activation'``, those of the
            largest output energy, the mean of the others going to the bias; ``'reconstruction'``,
            those from which what is cut is best reconstructed. None: ``'reconstruction'`` of
            ``'slice'``, ``'uniform'`` of ``'select'``.
        refit (str, optional): ``'none'``; ``'layer'``, each linear layer to the teacher's layer, on
            the student's own inputs; ``'block'``, the same, but layers that write into the stream
            to the teacher's stream, so that errors do not add up and the last block before dropped
            ones stands in for these. None: ``'block'`` of ``'slice'``, ``'none'`` of ``'select'``.

    Raises:
        ValueError: If there is no such method or part; names those that are.
    """
    if method not in METHODS:
        raise ValueError(f"Inheritance has no method '{method}': choose from {', '.join(METHODS)}.")
    given = dict(layers=layers, channels=channels, units=units, refit=refit)
    parts = dict(_DEFAULTS[method])
    for name, value in given.items():
        if value is None:
            continue
        if name == 'channels' and method == 'slice':
            raise ValueError(
                f"inheritance: channels={value!r} is for method='select': 'slice' rotates the "
                'channels and chooses none. Leave it out.'
            )
        if value not in _CHOICES[name]:
            raise ValueError(
                f'inheritance: {name}={value!r} is unknown: choose from '
                f'{", ".join(_CHOICES[name])}.'
            )
        parts[name] = value
    return Recipe(method, **parts)
