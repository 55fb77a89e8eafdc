"""The toolboxes' own training tools launch our configs as they are."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny_runs import FEW_IMAGES, NO_VALIDATION, ROOT, TWO_STEPS, run_tool

RUNS = (('mmpretrain', 'dfkd_deit', 'pool'), ('mmdet', 'dfkd_vitdet', 'scenes'))


@pytest.mark.parametrize(('package', 'run', 'images'), RUNS, ids=[r[0] for r in RUNS])
def test_their_train_tool_runs_our_config(package, run, images, tmp_path):
    # Found, not imported: mmpretrain alone does not import on every machine.
    tool = Path(find_spec(package).origin).parent / '.mim' / 'tools' / 'train.py'
    if not tool.is_file():
        pytest.skip(f'this build of {package} comes without its tools')
    run_tool(
        tool,
        ROOT / f'configs/{run}.py',
        '--work-dir',
        tmp_path / 'run',
        cwd=tmp_path,
        options=(*TWO_STEPS, *FEW_IMAGES[images], *NO_VALIDATION),
    )
    student = torch.load(tmp_path / 'run' / 'student.pth', weights_only=True)['state_dict']
    start = torch.load(tmp_path / 'run' / 'student_start.pth', weights_only=True)['state_dict']
    # A plain student, and trained.
    assert all(
        key.split('.')[0] in ('backbone', 'neck', 'head', 'rpn_head', 'roi_head') for key in student
    )
    assert any(not torch.equal(student[key], start[key]) for key in student)
