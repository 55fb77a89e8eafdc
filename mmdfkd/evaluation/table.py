"""The report's table, for a terminal and for a Markdown file."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .quality_table import quality_section
from .retention import too_weak

_ROWS = (('teacher', 'teacher'), ('student_at_start', 'student at start'), ('student', 'student'))
_METRICS = (
    ('bbox_mAP', 'mAP', '{:.3f}'),
    ('bbox_mAP_50', 'AP50', '{:.3f}'),
    ('accuracy', 'accuracy (%)', '{:.2f}'),
)


def _share(value: float, whole: float) -> str:
    return f' ({100 * value / whole:.0f} %)' if whole else ''


def _amount(value: float) -> str:
    return f'{value:,.0f}' if value >= 1000 else f'{value:#.3g}'.rstrip('.')


def _cells(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    teacher = report['teacher']
    metrics = [m for m in _METRICS if m[0] in teacher]
    header = ['', *(m[1] for m in metrics), 'parameters', 'backbone', 'FLOPs', 'CPU latency']
    rows = []
    for key, name in _ROWS:
        entry = report.get(key)
        if entry is None:
            continue
        row = [name, *(form.format(entry.get(metric, math.nan)) for metric, _, form in metrics)]
        if key == 'student_at_start':
            # The same network before its training.
            row += [''] * 4
        else:
            own = key == 'teacher'
            for what, unit, size in (
                ('params', 'M', 1e6),
                ('backbone_params', 'M', 1e6),
                ('flops', 'G', 1e9),
            ):
                text = f'{_amount(entry[what] / size)} {unit}'
                row.append(text if own else text + _share(entry[what], teacher[what]))
            text = f'{entry["latency_ms"]:.1f} ms'
            row.append(
                text if own else f'{text} (x {entry["latency_ms"] / teacher["latency_ms"]:.2f})'
            )
        rows.append(row)
    return header, rows


def _percent(share: float | None) -> str:
    return 'not defined' if share is None else f'{100 * share:.1f} %'


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    weak = too_weak(report['teacher'].get('bbox_mAP_50'))
    kept = weak or _percent(report['retention'])
    if report.get('student_at_start') is not None and not weak:
        how = f', init={report["init"]}' if report.get('init') else ''
        kept += f' (at start{how}: {_percent(report["retention_at_start"])})'
    read = report.get('train_images_read')
    images = 'unknown' if read is None else str(read)
    if report.get('data_free') is False:
        images += ' (NOT data-free: the run was given images to train on, data_free=False)'
    facts = [('retention', kept), ('training images read', images)]
    if report.get('uses_external_weights'):
        facts.append(('note', "the student's start uses external weights"))
    quality = report.get('image_quality')
    if quality and quality['looks']:
        last = quality['looks'][-1]
        text = (
            f'confidence {last["confidence"]:.2f}, coverage {last["coverage"]:.2f}, '
            f'{last["duplicates"]:.0%} near-duplicates at the last of '
            f'{len(quality["looks"])} looks; collapse alarms: {len(quality["alarms"])}'
        )
        facts.append(('synthetic images', text))
    seconds = report.get('seconds')
    facts += [
        ('steps', str(report.get('steps'))),
        ('seconds', 'unknown' if seconds is None else f'{seconds:.0f}'),
        ('seed', str(report.get('seed'))),
    ]
    return facts


def align(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns in plain text: the first flush left, the others flush right."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    lines = []
    for line in (header, ['-' * width for width in widths], *rows):
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append('  '.join(cells).rstrip())
    return '\n'.join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same columns as a Markdown table."""
    rule = ['---'] + ['---:'] * (len(header) - 1)
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in (header, rule, *rows))


def text_table(report: Mapping[str, Any]) -> str:
    """The table and the facts below it, as they are printed."""
    facts = _facts(report)
    width = max(len(name) for name, _ in facts)
    return '\n'.join(
        [align(*_cells(report)), '', *(f'{name.ljust(width)}  {text}' for name, text in facts)]
    )


def markdown_report(report: Mapping[str, Any], title: str, pictures: Mapping[str, str]) -> str:
    """The report as a Markdown page.

    Args:
        report (Mapping): Contents of ``report.json``.
        title (str): Heading.
        pictures (Mapping): Captions by file name, beside the page.
    """
    parts = [f'# {title}', markdown_table(*_cells(report))]
    parts.append('\n'.join(f'- {name}: {text}' for name, text in _facts(report)))
    size = 'x'.join(map(str, reversed(report['input_size'])))
    at = f', {report["proposals"]} proposals' if report.get('proposals') else ''
    parts.append(
        f'FLOPs: whole predict of one {size} image{at} for both networks, a multiply-add counted '
        'as two. CPU latency: median over single images, both networks in turn, '
        f'{report["report_threads"]} thread(s). Tested on {report["test_images"]} images. '
        'All figures: `report.json`.'
    )
    parts += quality_section(report.get('image_quality'))
    parts += [f'## {caption}\n\n![{caption}]({name})' for name, caption in pictures.items()]
    return '\n\n'.join(parts) + '\n'
