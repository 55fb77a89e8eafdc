"""The benchmark of a detector's distillation: its rows, and one of them measured."""

import importlib
import json
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tiny_runs import ROOT

from mmdfkd.distillers import Teacher
from mmdfkd.registry import MODELS

FOLDER = ROOT / 'tools' / 'benchmarks'


@pytest.fixture(scope='module')
def tool():
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module('detector_cost')
    sys.path.remove(str(FOLDER))


def test_rows_are_heads_of_their_family(tool, capsys):
    assert set(tool.ROWS) == {
        *('two-stage', 'cascade with masks', 'DETR-like', 'one-stage', 'one-stage, GFL'),
        *(f'DETR-like, {count} queries' for count in (100, 300, 900)),
    }
    # Pseudo labels, which cost a detection and a loss of their own, in each of them.
    families = [rows for name, rows in tool.ROWS.items() if 'queries' not in name]
    assert all('pseudo labels' in rows for rows in families)
    kinds = {
        type(MODELS.build(dict(h))).__name__
        for f in tool.ROWS.values()
        for r in f.values()
        for h in r
    }
    own = {'MaskResponseHead', 'FGDHead', 'QueryPriorHead', 'StudentQueryHead', 'CrossKDHead'}
    assert own <= kinds
    with pytest.raises(SystemExit):
        tool.parse_args(['--rows', 'nothing'])
    assert "there is no ['nothing']" in capsys.readouterr().err


def test_usual_heads_are_those_of_the_configs(tool):
    for family, config in (('two-stage', 'dfkd_detector.py'), ('DETR-like', 'dfkd_detr.py')):
        (*_, usual) = tool.ROWS[family].values()
        heads = Config.fromfile(ROOT / 'configs' / '_base_' / config).model.heads
        assert usual == [dict(head) for head in heads]


@pytest.mark.parametrize('family', ['two-stage', 'cascade with masks', 'DETR-like', 'one-stage'])
def test_a_teacher_sees_the_objects_of_the_ordinary_step(tool, tmp_path, family):
    torch.manual_seed(0)
    teacher = Teacher(**tool.networks(family, tmp_path)[0])
    teacher.load()
    ran = []
    head = getattr(teacher.net, 'roi_head', teacher.net).bbox_head
    (head[-1] if isinstance(head, torch.nn.ModuleList) else head).register_forward_hook(
        lambda *_: ran.append(1)
    )
    tool.sees_the_objects(teacher.net)
    seen = teacher.observe(torch.rand(2, 3, tool.SIZE, tool.SIZE), (), True)
    assert ran, 'its own is run'
    for found in seen.detections:
        sure = found[found.scores >= 0.3]
        order = sure.labels.argsort()
        assert sure.labels[order].tolist() == [0, 1, 2]
        torch.testing.assert_close(sure.bboxes[order], torch.tensor(tool.OBJECTS).float())
        assert ('masks' in sure) == (family == 'cascade with masks')
    if family == 'DETR-like':
        assert (seen.response.asked.probabilities.amax(-1) >= 0.4).sum(1).tolist() == [3, 3]


@pytest.mark.parametrize(
    ('family', 'row', 'terms'),
    [
        ('DETR-like', 'RPN', {'loss_rpn_cls', 'loss_rpn_bbox'}),
        ('DETR-like', 'pyramid', {'loss_pyramid'}),
        ('DETR-like', "student's queries", {'loss_student_query_cls'}),
        ('DETR-like', 'manifold, pyramid', {'loss_manifold_intra'}),
        ('cascade with masks', 'pseudo labels', {'loss_pseudo'}),
        ('one-stage, GFL', 'dense, LD', {'loss_dense_cls', 'loss_dense_bbox'}),
        ('DETR-like, 300 queries', 'Hungarian', {'loss_hungarian_cls', 'loss_hungarian_l1'}),
    ],
)
def test_a_row_trains(tool, tmp_path, family, row, terms):
    distiller = tool.distiller_of(family, tool.ROWS[family][row], tmp_path, 'cpu')
    images = torch.randint(0, 256, (2, 3, tool.SIZE, tool.SIZE), dtype=torch.uint8)
    step = tool.step_of(distiller, images)
    init_default_scope('mmdet')
    log = step()
    assert terms <= set(log)


def test_a_row_is_measured_once(tool, tmp_path):
    out = tmp_path / 'detector_cost.jsonl'
    for _ in range(2):
        tool.main(['--set', 'two-stage', '--rows', 'pyramid', '--rounds', '1', '--out', str(out)])
    (line,) = map(json.loads, out.read_text().splitlines())
    assert (line['set'], line['row'], line['steps']) == ('two-stage', 'pyramid', 1)
    found = line['metrics']
    assert 0.1 < found['time'] < 50 and 0.1 < found['memory'] < 20
    # At least the teacher's weights, of 2.3 M parameters.
    assert found['mib'] > 2.3e6 * 4 / 2**20
