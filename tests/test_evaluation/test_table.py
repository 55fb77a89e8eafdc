from mmdfkd.evaluation import markdown_report, text_table

REPORT = dict(
    teacher=dict(
        bbox_mAP=0.8,
        bbox_mAP_50=0.9,
        params=2_000_000,
        backbone_params=1_500_000,
        flops=4_000_000_000,
        latency_ms=20.0,
    ),
    student=dict(
        bbox_mAP=0.6,
        bbox_mAP_50=0.7,
        params=500_000,
        backbone_params=300_000,
        flops=1_000_000_000,
        latency_ms=10.0,
    ),
    student_at_start=dict(bbox_mAP=0.2, bbox_mAP_50=0.3),
    retention=0.75,
    retention_at_start=0.25,
    train_images_read=0,
    steps=500,
    seconds=91.4,
    seed=2,
    init='inherit',
    data_free=True,
    input_size=[96, 128],
    proposals=50,
    report_threads=2,
    test_images=10,
)


def test_plain_text():
    lines = text_table(REPORT).splitlines()
    assert lines[2].split() == [
        'teacher',
        '0.800',
        '0.900',
        '2.00',
        'M',
        '1.50',
        'M',
        '4.00',
        'G',
        '20.0',
        'ms',
    ]
    assert lines[3].split() == ['student', 'at', 'start', '0.200', '0.300']
    assert '0.500 M (25 %)' in lines[4]
    assert '0.300 M (20 %)' in lines[4]
    assert '1.00 G (25 %)' in lines[4]
    assert '10.0 ms (x 0.50)' in lines[4]
    # Aligned: the rule, the teacher and the student end in the same column.
    assert len(lines[0]) == len(lines[1]) == len(lines[2]) == len(lines[4])
    assert lines[6].split('  ')[-1].strip() == '75.0 % (at start, init=inherit: 25.0 %)'
    facts = {line.split('  ')[0]: line.split()[-1] for line in lines[7:]}
    assert facts == {'training images read': '0', 'steps': '500', 'seconds': '91', 'seed': '2'}


def test_what_a_run_must_admit():
    text = text_table(
        REPORT | dict(data_free=False, train_images_read=8000, uses_external_weights=True)
    )
    assert '8000 (NOT data-free' in text
    assert 'uses external weights' in text
    assert 'unknown' in text_table(REPORT | dict(train_images_read=None))


def test_no_start_and_no_retention():
    report = REPORT | dict(student_at_start=None, retention=None, retention_at_start=None)
    text = text_table(report)
    assert 'at start' not in text
    assert 'not defined' in text


def test_a_weak_teacher_gives_no_retention():
    report = REPORT | dict(teacher=REPORT['teacher'] | dict(bbox_mAP=0.1, bbox_mAP_50=0.25))
    text = text_table(report | dict(retention=None, retention_at_start=None))
    (line,) = (line for line in text.splitlines() if line.startswith('retention'))
    assert line.endswith("  none: the teacher's AP50, 0.250, is below 0.3")


def test_markdown():
    look = dict(
        images=8,
        confidence=0.5,
        confidence_low=0.25,
        confidence_high=0.75,
        histogram=[3, 5],
        classes=2,
        coverage=0.4,
        duplicates=0.125,
        concentration=None,
        verified=0.5,
        divergence_new=0.25,
        divergence_old=None,
    )
    alarm = dict(iteration=20, reasons=dict(coverage='few classes'), changed='a share of 0.25')
    quality = dict(looks=[dict(look, iteration=i) for i in range(1, 30)], alarms=[alarm])
    watched = markdown_report(dict(REPORT, image_quality=quality), 'Some run', {})
    assert '| 1 | 8 | 0.50 (0.25 to 0.75) | 3 5 | 0.40 | 12% |  | 50% | 0.25 |  |' in watched
    assert watched.count(' | 8 | ') == 8 and '| 29 | 8 |' in watched
    assert '- step 20: few classes. Changed: a share of 0.25.' in watched
    page = markdown_report(REPORT, 'Some run', {'a.png': 'A picture'})
    assert 'as the networks see them' not in page
    table = [line for line in page.splitlines() if line.startswith('|')]
    assert len(table) == 5
    assert len({line.count('|') for line in table}) == 1
    assert '128x96 image, 50 proposals' in page
    assert '![A picture](a.png)' in page
