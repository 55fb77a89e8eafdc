import pytest

from mmdfkd.evaluation import (
    ResultError,
    append_result,
    insert_tables,
    read_results,
    results_markdown,
)


def result(**changes) -> dict:
    fields = dict(
        benchmark='ablation',
        set='digits',
        student=0.39,
        row='procedural',
        init='inherit',
        seed=0,
        metrics=dict(bbox_mAP=0.6, bbox_mAP_50=0.8),
        teacher=0.75,
        ceiling=0.64,
        steps=500,
        seconds=170.5,
        threads=2,
        commit='abc1234',
        command='python tools/train.py configs/dfkd_vitdet.py',
    )
    return fields | changes


def test_written_lines_are_read_back(tmp_path):
    path = tmp_path / 'docs' / 'ablation.jsonl'
    append_result(path, **result())
    append_result(path, **result(seed=1, ceiling=None))
    assert read_results(path) == [result(), result(seed=1, ceiling=None)]


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        (dict(seed='0'), 'seed'),
        (dict(seed=True), 'seed'),
        (dict(metrics={}), 'metrics'),
        (dict(metrics=dict(bbox_mAP=float('nan'))), 'metrics'),
        (dict(metrics=dict(bbox_mAP='0.6')), 'metrics'),
        (dict(student=39), 'share'),
        (dict(student=0.0), 'share'),
        (dict(seconds=float('inf')), 'seconds'),
        (dict(teacher=dict(bbox_mAP=0.7)), 'teacher'),
        (dict(extra=1), 'extra'),
        (dict(synthesis_seconds='1'), 'synthesis_seconds'),
        (dict(teacher_mAP_50=None), 'teacher_mAP_50'),
        (dict(benchmark='other'), 'other.jsonl'),
    ],
)
def test_wrong_fields_write_nothing(tmp_path, changes, named):
    with pytest.raises(ResultError, match=named):
        append_result(tmp_path / 'ablation.jsonl', **result(**changes))
    assert not (tmp_path / 'ablation.jsonl').exists()


def test_missing_field_and_broken_line(tmp_path):
    fields = result()
    del fields['commit']
    with pytest.raises(ResultError, match='commit'):
        append_result(tmp_path / 'ablation.jsonl', **fields)
    path = tmp_path / 'ablation.jsonl'
    append_result(path, **result())
    path.write_text(path.read_text() + '\n{"benchmark": \n')
    with pytest.raises(ResultError, match='line 3'):
        read_results(path)
    path.write_text('')
    with pytest.raises(ResultError, match='no results'):
        read_results(path)


def _rows(table: str) -> list[dict[str, str]]:
    lines = [[c.strip() for c in line.strip('|').split('|')] for line in table.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_seeds_are_averaged():
    """Means of 0.5, 0.6, 0.7: 0.6; their standard deviation 0.1."""
    runs = [
        result(seed=s, metrics=dict(bbox_mAP=m), seconds=100 + s)
        for s, m in enumerate((0.5, 0.6, 0.7))
    ]
    (row,) = _rows(results_markdown(runs))
    assert row['bbox_mAP'] == '0.600 ± 0.100'
    assert row['retention'] == '80.0 %'
    assert row['of ceiling'] == '93.8 %'
    assert row['seconds'] == '101'
    assert row['seeds'] == '3'
    assert row['student'] == '39 %'


def test_rows_keep_the_order_of_the_file():
    runs = [
        result(row='noise', metrics=dict(bbox_mAP=0.1)),
        result(row='real', ceiling=None),
        result(row='noise', init='random', metrics=dict(bbox_mAP=0.0)),
    ]
    rows = _rows(results_markdown(runs))
    assert [(r['images'], r['start']) for r in rows] == [
        ('noise', 'inherit'),
        ('real', 'inherit'),
        ('noise', 'random'),
    ]
    assert {r['seeds'] for r in rows} == {'one seed'}
    assert rows[1]['of ceiling'] == ''
    # Not every run reports it, and the set is the same everywhere.
    assert [r['bbox_mAP_50'] for r in rows] == ['', '0.800', '']
    assert 'set' not in rows[0]


def test_a_marker_names_rows_without_blanks_and_commas():
    runs = [result(row='token, hard'), result(row='token, soft'), result(row='noise')]
    text = insert_tables('<!-- results:ablation row=token_hard,noise --><!-- /results -->', runs)
    assert 'token, hard' in text and 'noise' in text and 'token, soft' not in text


def test_rows_are_grouped_by_set_start_and_size():
    """Lines of an interrupted benchmark come in any order; a later one joins its own."""
    runs = [
        result(row='noise'),
        result(set='cells', row='noise'),
        result(row='noise', student=0.19),
        result(row='noise', init='random'),
        result(row='real'),
        result(set='cells', row='real'),
    ]
    rows = _rows(results_markdown(runs))
    assert [(r['set'], r['start'], r['student'], r['images']) for r in rows] == [
        ('digits', 'inherit', '39 %', 'noise'),
        ('digits', 'inherit', '39 %', 'real'),
        ('digits', 'inherit', '19 %', 'noise'),
        ('digits', 'random', '39 %', 'noise'),
        ('cells', 'inherit', '39 %', 'noise'),
        ('cells', 'inherit', '39 %', 'real'),
    ]


def test_synthesis_seconds_are_shown_where_known(tmp_path):
    """Lines written before they were measured stay valid."""
    path = tmp_path / 'ablation.jsonl'
    append_result(path, **result())
    append_result(path, **result(row='inverted', synthesis_seconds=42.4))
    rows = _rows(results_markdown(read_results(path)))
    assert [r['synthesis seconds'] for r in rows] == ['', '42']
    assert 'synthesis seconds' not in _rows(results_markdown([result()]))[0]


def test_a_weak_teacher_gives_no_retention(tmp_path):
    """Where a line names its AP50; older lines do not."""
    path = tmp_path / 'ablation.jsonl'
    append_result(path, **result())
    append_result(path, **result(row='noise', teacher_mAP_50=0.3))
    for seed, found in enumerate((0.301, 0.299)):
        append_result(path, **result(row='inverted', seed=seed, teacher_mAP_50=found))
    rows = _rows(results_markdown(read_results(path)))
    said = "none: the teacher's AP50, 0.299, is below 0.3"
    assert [r['retention'] for r in rows] == ['80.0 %', '80.0 %', said]
    assert [r['of ceiling'] for r in rows] == ['93.8 %'] * 3


def test_percentages_have_two_decimals():
    (row,) = _rows(results_markdown([result(metrics=dict(accuracy=97.456), teacher=98.0)]))
    assert row['accuracy'] == '97.46'
    assert row['teacher'] == '98.00'


def test_one_seed_twice_is_refused():
    with pytest.raises(ResultError, match='seed 0 .* twice'):
        results_markdown([result(), result()])


DOCUMENT = """# Results
<!-- results:ablation -->
old
<!-- /results -->
between
<!-- results:other -->
kept
<!-- /results -->
"""


def test_table_goes_between_its_markers():
    results = [result(row='new \\1')]
    updated = insert_tables(DOCUMENT, results)
    assert results_markdown(results) in updated
    assert 'old' not in updated
    assert 'between' in updated
    assert 'kept' in updated
    assert insert_tables(updated, results) == updated


def test_a_place_may_ask_for_some_of_the_lines():
    marker = '<!-- results:ablation init=random set=digits,cells -->'
    results = [result(), result(init='random'), result(init='random', set='drones')]
    updated = insert_tables(DOCUMENT + f'{marker}\n<!-- /results -->\n', results)
    assert f'{marker}\n{results_markdown(results[1:2])}\n' in updated
    assert results_markdown(results) in updated
    assert insert_tables(updated, results) == updated


def test_a_place_may_leave_out_lines_and_columns():
    marker = '<!-- results:ablation row!=*_as_before,noise columns=images,bbox_mAP,of_ceiling -->'
    rows = ('noise', 'real', 'real, as before', 'noise, as before', 'noise and more')
    text = insert_tables(f'{marker}\n<!-- /results -->', [result(row=row) for row in rows])
    wanted = [result(row='real'), result(row='noise and more')]
    columns = ['of ceiling', 'images', 'bbox_mAP']
    assert text == f'{marker}\n{results_markdown(wanted, columns)}\n<!-- /results -->'
    header, rule, *lines = results_markdown(wanted, columns).splitlines()
    assert header == '| images | bbox_mAP | of ceiling |'
    assert [line.split(' | ')[0] for line in lines] == ['| real', '| noise and more']


@pytest.mark.parametrize('document', ['nothing', DOCUMENT[:40]])
def test_markers_must_be_there(document):
    with pytest.raises(ResultError, match='has no place'):
        insert_tables(document, [result()])


@pytest.mark.parametrize(
    ('condition', 'said'),
    [
        ('init=config', 'no result fits'),
        ('init!=*', 'no result fits'),
        ('colour=red', "no field .'colour'"),
        ('colour!=red', "no field .'colour'"),
        ('columns=images,colour', "no column .'colour'"),
    ],
)
def test_a_condition_that_nothing_meets_is_named(condition, said):
    with pytest.raises(ResultError, match=said):
        insert_tables(f'<!-- results:ablation {condition} -->\n<!-- /results -->', [result()])


def test_unclosed_marker_does_not_swallow_the_next_table():
    document = '<!-- results:ablation -->\n' + DOCUMENT[DOCUMENT.index('between') :]
    with pytest.raises(ResultError, match='has no place'):
        insert_tables(document, [result()])


def test_a_student_may_hold_a_little_more_than_its_teacher(tmp_path):
    """One that saves by its tokens, say."""
    append_result(tmp_path / 'ablation.jsonl', **result(student=1.02))
    (line,) = read_results(tmp_path / 'ablation.jsonl')
    assert line['student'] == 1.02
