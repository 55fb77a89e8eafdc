"""Committed benchmark results: one run a line, and the tables made from them."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .retention import too_weak
from .table import markdown_table

_NUMBER = (int, float)
FIELDS: dict[str, tuple[type, ...]] = {
    'benchmark': (str,),
    'set': (str,),
    'student': _NUMBER,
    'row': (str,),
    'init': (str,),
    'seed': (int,),
    'metrics': (dict,),
    'teacher': (*_NUMBER, type(None)),
    'ceiling': (*_NUMBER, type(None)),
    'steps': (int,),
    'seconds': _NUMBER,
    'threads': (int,),
    'commit': (str,),
    'command': (str,),
}
OPTIONAL: dict[str, tuple[type, ...]] = {
    'synthesis_seconds': _NUMBER,
    'teacher_passes': _NUMBER,
    'teacher_mAP_50': _NUMBER,
}
"""Fields of a result line and their types.

``student`` is its share of the teacher's parameters; ``row`` names the images (or what else
varies) and ``init`` the student's start; the first of ``metrics`` is the main one, and ``teacher``
and ``ceiling`` (the same student distilled on the real training images) are its values for those,
null where there is none. Of :data:`OPTIONAL`, ``synthesis_seconds`` is the part of ``seconds`` that
preparing and refreshing the image source took, ``teacher_passes`` what was asked of the
teacher (:mod:`~mmdfkd.evaluation.teacher_passes`), and ``teacher_mAP_50`` the box AP50 of a teacher
that is a detector: below :data:`~mmdfkd.evaluation.retention.LEAST_AP50` there is no retention.
"""


#: What ``row`` names, where it is not images.
ROW_NAMES = {'heads': 'heads', 'head_cost': 'heads'}


class ResultError(ValueError):
    """A result line or a document with results is not as it must be."""


def validate_result(fields: Mapping[str, Any], where: str) -> None:
    """Check one result.

    Raises:
        ResultError: Names the place and the field.
    """
    known = FIELDS | OPTIONAL
    missing, unknown = sorted(FIELDS.keys() - fields.keys()), sorted(fields.keys() - known.keys())
    if missing or unknown:
        raise ResultError(f'{where}: missing fields {missing}, unknown fields {unknown}.')
    for name, types in known.items():
        if name not in fields:
            continue
        value = fields[name]
        if not isinstance(value, types) or isinstance(value, bool):
            raise ResultError(
                f"{where}: '{name}' is {value!r}, not {' or '.join(t.__name__ for t in types)}."
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ResultError(f"{where}: '{name}' is {value}.")
    if not 0 < fields['student'] < 2:
        raise ResultError(
            f"{where}: 'student' is a share of the teacher's parameters, about 1 at most, "
            f'not {fields["student"]}.'
        )
    metrics = fields['metrics']
    if not metrics or not all(
        isinstance(v, _NUMBER) and not isinstance(v, bool) and math.isfinite(v)
        for v in metrics.values()
    ):
        raise ResultError(
            f"{where}: 'metrics' maps names to finite numbers and is not empty, not {metrics!r}."
        )


def append_result(path: str | Path, **fields: Any) -> None:
    """Add one run to a benchmark's file, which is named after the benchmark.

    Args:
        path (str | Path): ``docs/results/<benchmark>.jsonl``; made where it does not exist.
        **fields: All of :data:`FIELDS`, any of :data:`OPTIONAL`.

    Raises:
        ResultError: If a field is missing, unknown or of a wrong kind; nothing is written.
    """
    path = Path(path)
    validate_result(fields, f'A result for {path.name}')
    if fields['benchmark'] != path.stem:
        raise ResultError(
            f"A result of '{fields['benchmark']}' belongs in {fields['benchmark']}.jsonl, "
            f'not in {path.name}.'
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({name: fields[name] for name in (*FIELDS, *OPTIONAL) if name in fields})
    with path.open('a', encoding='utf-8') as stream:
        stream.write(line + '\n')


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """Read and check a benchmark's file.

    Raises:
        ResultError: If a line is no valid result; names the line.
    """
    path = Path(path)
    results = []
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        if not line.strip():
            continue
        where = f'{path.name}, line {number}'
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ResultError(f'{where}: no valid JSON ({error}).') from error
        if not isinstance(fields, dict):
            raise ResultError(f'{where}: not a JSON object.')
        validate_result(fields, where)
        if fields['benchmark'] != path.stem:
            raise ResultError(f"{where}: is of benchmark '{fields['benchmark']}'.")
        results.append(fields)
    if not results:
        raise ResultError(f'{path} holds no results.')
    return results


def _number(value: float, like: Iterable[float]) -> str:
    """Three decimals for shares such as mAP, two for percentages."""
    return f'{value:.3f}' if max(map(abs, like)) <= 1 else f'{value:.2f}'


def _average(values: list[float]) -> str:
    text = _number(mean(values), values)
    return f'{text} ± {_number(stdev(values), values)}' if len(values) > 1 else text


def _share(results: list[dict], of: str) -> str:
    shares = [
        100 * next(iter(r['metrics'].values())) / r[of]
        for r in results
        if r[of] is not None and r[of] > 0
    ]
    return f'{mean(shares):.1f} %' if len(shares) == len(results) else ''


def _retention(results: list[dict]) -> str:
    """Share of the teacher's metric, or why there is none."""
    known = [r['teacher_mAP_50'] for r in results if 'teacher_mAP_50' in r]
    return too_weak(min(known, default=None)) or _share(results, 'teacher')


def _mean_of(results: list[dict], field: str) -> str:
    """Rounded mean; empty where a run does not have it."""
    known = all(field in result for result in results)
    return f'{mean(result[field] for result in results):.0f}' if known else ''


def results_markdown(results: list[dict[str, Any]], columns: Sequence[str] | None = None) -> str:
    """A Markdown table of one benchmark.

    A row for every (set, student, row, init, steps): set by set, in each by the student's start and
    size, largest first, and then in the order of the file. Runs that differ in nothing but their
    seed are averaged: mean ± standard deviation over seeds.

    Args:
        results (list[dict]): Of one benchmark, from :func:`read_results`.
        columns (Sequence[str], optional): Headers of the columns that are wanted, where not all;
            an underline stands for a space, too.

    Raises:
        ResultError: If one seed of one row appears twice, or there is no such column.
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for result in results:
        key = tuple(result[name] for name in ('set', 'student', 'row', 'init', 'steps'))
        group = groups.setdefault(key, [])
        if any(r['seed'] == result['seed'] for r in group):
            raise ResultError(
                f'{result["benchmark"]}: seed {result["seed"]} of {key} appears twice.'
            )
        group.append(result)
    metrics = list(dict.fromkeys(name for r in results for name in r['metrics']))
    sets, inits = ([*dict.fromkeys(r[name] for r in results)] for name in ('set', 'init'))
    # In the order in which the file first names them; sorting is stable.
    ordered = sorted(
        groups.values(),
        key=lambda g: (
            sets.index(g[0]['set']),
            inits.index(g[0]['init']),
            -round(100 * g[0]['student']),
        ),
    )
    cells = {
        'set': lambda g: g[0]['set'],
        ROW_NAMES.get(results[0]['benchmark'], 'images'): lambda g: g[0]['row'],
        'start': lambda g: g[0]['init'],
        'student': lambda g: f'{100 * g[0]["student"]:.0f} %',
    }
    for name in metrics:
        cells[name] = lambda g, name=name: (
            _average([r['metrics'][name] for r in g])
            if all(name in r['metrics'] for r in g)
            else ''
        )
    cells |= {
        'teacher': lambda g: (
            _number(g[0]['teacher'], [g[0]['teacher']]) if g[0]['teacher'] is not None else ''
        ),
        'retention': _retention,
        'of ceiling': lambda g: _share(g, 'ceiling'),
        'steps': lambda g: str(g[0]['steps']),
        'seconds': lambda g: f'{mean(r["seconds"] for r in g):.0f}',
        'synthesis seconds': lambda g: _mean_of(g, 'synthesis_seconds'),
        'teacher passes': lambda g: _mean_of(g, 'teacher_passes'),
        'seeds': lambda g: 'one seed' if len(g) == 1 else str(len(g)),
    }
    rows = [[make(group) for make in cells.values()] for group in ordered]
    header = list(cells)
    wanted = [_word(name) for name in (header if columns is None else columns)]
    unknown = sorted({*wanted}.difference(map(_word, header)))
    if unknown:
        raise ResultError(f'There is no column {unknown}, only {header}.')
    # A column that says nothing, or the same set everywhere, only widens the table.
    keep = [
        i
        for i, name in enumerate(header)
        if _word(name) in wanted
        and any(row[i] for row in rows)
        and not (name == 'set' and len({row[i] for row in rows}) == 1)
    ]
    return markdown_table([header[i] for i in keep], [[row[i] for i in keep] for row in rows])


def insert_tables(document: str, results: list[dict[str, Any]]) -> str:
    """Put a benchmark's tables between its markers.

    ``<!-- results:NAME -->`` ... ``<!-- /results -->`` takes all results; ``<!-- results:NAME
    set=digits init=inherit,random row!=*as_before columns=images,retention -->`` those that have
    one of the values of every field named, and of those behind ``!=`` none, with these columns. An
    underline stands for a space, an asterisk for anything.

    Args:
        document (str): The document's text.
        results (list[dict]): Of one benchmark, from :func:`read_results`.

    Raises:
        ResultError: If the document has no such place, or nothing fits what one asks for.
    """
    benchmark = results[0]['benchmark']
    pattern = re.compile(
        rf'(<!-- results:{re.escape(benchmark)}((?: \w+!?=\S+)*) -->)'
        r'(?:(?!<!-- results:).)*?<!-- /results -->',
        re.DOTALL,
    )

    def table(found: re.Match) -> str:
        wanted = [part.split('=', 1) for part in found[2].split()]
        columns = next((v.split(',') for k, v in wanted if k == 'columns'), None)
        wanted = [(name, values.split(',')) for name, values in wanted if name != 'columns']
        unknown = [name for name in (n.rstrip('!') for n, _ in wanted) if name not in FIELDS]
        fitting = [r for r in results if all(_fits(r, *condition) for condition in wanted)]
        if unknown or not fitting:
            raise ResultError(
                f"'{found[1]}': "
                + (f'there is no field {unknown}.' if unknown else 'no result fits.')
            )
        return f'{found[1]}\n{results_markdown(fitting, columns)}\n<!-- /results -->'

    text, count = pattern.subn(table, document)
    if not count:
        raise ResultError(
            f"The document has no place '<!-- results:{benchmark} --> ... <!-- /results -->'."
        )
    return text


def _fits(result: Mapping[str, Any], name: str, values: Iterable[str]) -> bool:
    """Whether a field's value is one of these, or with ``!`` behind its name none of them."""
    word = _word(result.get(name.rstrip('!')))
    return any(fnmatchcase(word, value) for value in values) != name.endswith('!')


def _word(value: Any) -> str:
    """A field's value as it is written in a marker: without blanks and commas."""
    return str(value).replace(',', '').replace(' ', '_')


def write_text(path: Path, text: str) -> None:
    """Write a file in one go: a reader never sees half of it."""
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, path)
