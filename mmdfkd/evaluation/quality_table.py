"""What was seen of the synthetic images of a run, for its report."""

from collections.abc import Mapping, Sequence
from typing import Any

#: Most looks that a report shows; all are in ``report.json``.
_MOST = 8


def quality_section(quality: Mapping[str, Any] | None) -> list[str]:
    """The looks and alarms of ``mmdfkd.SyntheticQualityHook`` as parts of a Markdown page.

    Args:
        quality (Mapping, optional): ``image_quality`` of a run's facts.

    Returns:
        list[str]: A heading, a table and the alarms; empty where nobody looked.
    """
    if not quality or not quality['looks']:
        return []
    header = ['step', 'images', 'confidence', 'histogram', 'coverage', 'near-duplicates']
    header += ['attention', 'verifier', 'KL, new images', 'KL, older images']
    rows = [_row(look) for look in _spread(quality['looks'])]
    lines = [header, ['---:'] * len(header), *rows]
    table = '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
    alarms = [
        f'- step {alarm["iteration"]}: {"; ".join(alarm["reasons"].values())}. '
        f'Changed: {alarm["changed"] or "nothing"}.'
        for alarm in quality['alarms']
    ]
    return [
        '## Synthetic images, as the networks see them',
        table,
        'Collapse alarms: none.' if not alarms else 'Collapse alarms:\n\n' + '\n'.join(alarms),
    ]


def _spread(looks: Sequence[Mapping]) -> list[Mapping]:
    """The first, the last and even ones between them."""
    if len(looks) <= _MOST:
        return list(looks)
    return [looks[round(i * (len(looks) - 1) / (_MOST - 1))] for i in range(_MOST)]


def _row(look: Mapping[str, Any]) -> list[str]:
    def text(name: str, form: str) -> str:
        value = look.get(name)
        return '' if value is None else format(value, form)

    return [
        text('iteration', 'd'),
        text('images', 'd'),
        f'{look["confidence"]:.2f} ({look["confidence_low"]:.2f} to {look["confidence_high"]:.2f})',
        ' '.join(map(str, look['histogram'])),
        text('coverage', '.2f'),
        text('duplicates', '.0%'),
        text('concentration', '.2f'),
        text('verified', '.0%'),
        text('divergence_new', '.3g'),
        text('divergence_old', '.3g'),
    ]
