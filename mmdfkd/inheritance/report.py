"""What an inherited student kept of its teacher."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class InheritanceReport:
    """What was kept, and how far the student agrees with the teacher before any training step.

    Attributes:
        method: ``'slice'`` or ``'select'``.
        options: Its parts, see :func:`~mmdfkd.inheritance.recipe.recipe_of`.
        layers: The teacher's block for each of the student's.
        heads: Kept attention heads, per kept block.
        stream_energy: Share of the energy that LayerNorms see on synthetic images, in the kept
            directions.
        pyramid_energy: The same of the pyramid (detectors), or None.
        parameters: Share of the teacher's parameters.
        seconds: Time it took.
        images: Number of synthetic images it was made with.
        agreement: Measures on held-out synthetic images, by name. Classifier: ``top1`` and ``kl``
            (teacher to student, nats). Two-stage: ``roi_class`` (share of the teacher's proposals
            with the same class), ``foreground_gap`` (mean absolute difference of the foreground
            probability there), and ``pyramid_cosine`` per level (through ``maps['pyramid']`` where
            widths differ).
        maps: ``'stream'`` ``[D, d]`` and, for detectors, ``'pyramid'`` ``[n, n']``: the student's
            channels times them approximate the teacher's. A good start for a feature aligner. A
            Swin has one for each stage, ``'stage0'`` and so on; its ``'stream'`` is the last.
    """

    method: str
    layers: list[int]
    heads: list[list[int]]
    stream_energy: float
    parameters: float
    seconds: float
    images: int
    options: dict[str, str] = field(default_factory=dict)
    pyramid_energy: float | None = None
    agreement: dict[str, float | list[float]] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict:
        """Plain values, without the maps, for JSON."""
        values = dict(self.__dict__)
        values.pop('maps')
        return values

    def __str__(self) -> str:
        agreement = []
        for name, value in self.agreement.items():
            numbers = value if isinstance(value, list) else [value]
            agreement.append(f'{name} {" ".join(f"{n:.3f}" for n in numbers)}')
        heads = ' '.join('[' + ' '.join(map(str, kept)) + ']' for kept in self.heads)
        pyramid = (
            '' if self.pyramid_energy is None else f', of the pyramid {self.pyramid_energy:.1%}'
        )
        return (
            f"Inherited by '{self.method}' from {self.images} synthetic images in "
            f'{self.seconds:.0f} s: '
            f"{self.parameters:.1%} of the parameters, {self.stream_energy:.1%} of the stream's "
            f'energy{pyramid}.\n'
            f'  blocks {self.layers}, heads {heads}\n'
            f'  agreement with the teacher at 0 steps: {", ".join(agreement)}'
        )
