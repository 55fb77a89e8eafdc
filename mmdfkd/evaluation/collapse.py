"""When the images of a source have become worthless."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class CollapseLimits:
    """From where on :func:`quality_of`'s figures mean a collapse.

    The defaults are our choice: far from what procedural, refined and inverted images show.

    Attributes:
        coverage: Least share of the classes that an even draw would show.
        duplicates: Largest share of near-duplicates.
        flat: The teacher tells images apart if the 10th and 90th percentile of its confidence
            differ by more; where it is sure of all of them (``sure``), they need not.
        sure: See ``flat``.
        divergence: Least divergence of teacher and student on new images, of that on older ones;
            medians.
        images: No alarm on fewer images.
    """

    coverage: float = 0.3
    duplicates: float = 0.5
    flat: float = 0.01
    sure: float = 0.9
    divergence: float = 0.1
    images: int = 8

    def __post_init__(self) -> None:
        for name in ('coverage', 'duplicates', 'flat', 'sure', 'divergence'):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f'CollapseLimits: {name} is from 0 to 1, got {value}.')


def find_collapse(quality: Mapping, limits: CollapseLimits) -> dict[str, str]:
    """What is wrong with the newest images.

    Args:
        quality (Mapping): Of :func:`mmdfkd.evaluation.image_quality.quality_of`.
        limits (CollapseLimits): From where on.

    Returns:
        dict[str, str]: A sentence without its full stop for each of ``coverage``, ``duplicates``,
            ``confidence`` and ``divergence`` that has collapsed; empty where all is well.
    """
    found: dict[str, str] = {}
    if quality['images'] < limits.images:
        return found
    if quality['coverage'] < limits.coverage:
        found['coverage'] = (
            f'the teacher names {quality["classes"]} classes in {quality["images"]} images '
            f'(coverage {quality["coverage"]:.2f}, below {limits.coverage:g})'
        )
    if quality['duplicates'] > limits.duplicates:
        found['duplicates'] = (
            f'{quality["duplicates"]:.0%} of the images are near-duplicates '
            f'(more than {limits.duplicates:.0%})'
        )
    low, high = quality['confidence_low'], quality['confidence_high']
    if high - low < limits.flat and quality['confidence'] < limits.sure:
        found['confidence'] = (
            f'the teacher is as sure of one image as of another ({low:.3f} to {high:.3f}): '
            'it tells nothing apart in them'
        )
    share = quality['divergence_share']
    if share is not None and share < limits.divergence:
        found['divergence'] = (
            f'the student agrees with the teacher on the new images (KL '
            f'{quality["divergence_new"]:.2g}), and not on older ones '
            f'({quality["divergence_old"]:.2g}): there is nothing left to learn from them'
        )
    return found
