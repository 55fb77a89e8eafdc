"""The second main job: `configs/dfkd_detr.py` with its committed teacher, two steps of it."""

import json

import torch
from mmengine.config import Config, DictAction
from mmengine.runner import Runner
from tiny_runs import FEW_IMAGES, NO_VALIDATION, ROOT, TWO_STEPS

FAST = (*TWO_STEPS, *FEW_IMAGES['scenes'], *NO_VALIDATION, 'model.source.steps=2')


def test_two_steps_of_the_main_job(tmp_path):
    cfg = Config.fromfile(ROOT / 'configs' / 'dfkd_detr.py')
    pairs = (option.split('=', 1) for option in FAST)
    cfg.merge_from_dict({key: DictAction._parse_iterable(value) for key, value in pairs})
    # Formatting the text of a config takes most of a tiny run.
    cfg = Config(cfg.to_dict(), format_python_code=False)
    cfg.work_dir = str(tmp_path)
    cfg.log_level = 'ERROR'
    Runner.from_cfg(cfg).train()
    run = json.loads((tmp_path / 'run.json').read_text())
    assert (run['steps'], run['train_images_read'], run['data_free']) == (2, 0, True)
    start, student = (
        torch.load(tmp_path / f'{name}.pth', weights_only=True)['state_dict']
        for name in ('student_start', 'student')
    )
    # All six blocks, three of four decoder layers; every part is reached by a distill head.
    kept = {key.split('.')[2] for key in student if key.startswith('backbone.blocks.')}
    assert len(kept) == 6 and 'decoder.layers.2.norms.0.weight' in student
    assert 'decoder.layers.3.norms.0.weight' not in student
    moved = {key for key in start if not torch.equal(start[key], student[key])}
    for part in ('backbone.blocks.5', 'neck', 'encoder.layers.0', 'decoder.layers.2', 'bbox_head'):
        assert any(key.startswith(part) for key in moved), part
