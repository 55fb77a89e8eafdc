"""What the benchmarks share."""

from mmdfkd.evaluation.benchmark import measured_once


def test_a_teacher_is_measured_once(tmp_path):
    """By all processes; anew for other weights or another test set."""
    weights, config, calls = tmp_path / 'teacher.pth', tmp_path / 'config.py', []
    weights.write_bytes(b'weights')
    config.write_text('data_root = "here"')

    def measure():
        calls.append(1)
        return 60.0 + len(calls), 1000

    def found():
        return measured_once(tmp_path / 'runs' / 'teacher.json', str(weights), config, measure)

    assert found() == found() == (61.0, 1000) and len(calls) == 1
    config.write_text('data_root = "there"')
    assert found() == found() == (62.0, 1000)
    weights.write_bytes(b'others')
    assert found() == (63.0, 1000) and len(calls) == 3
