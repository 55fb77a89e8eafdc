"""A run that cannot be right stops before its first step and leaves nothing behind."""

import copy
import json

import pytest
import torch
import toy
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from mmdfkd.heads.base import DistillHead
from mmdfkd.registry import MODELS
from mmdfkd.utils.data_audit import DataAudit
from mmdfkd.utils.key_report import CheckpointMismatchError


@MODELS.register_module()
class FailingHead(DistillHead):
    """Not a number from a step on."""

    def __init__(self, at: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.at = at

    def losses(self, student, teacher, targets, images) -> dict[str, Tensor]:
        value = student.memory.feats[0].mean()
        return dict(loss_failing=value * float('nan') if self.iteration >= self.at else value)


@HOOKS.register_module()
class WatchHook(Hook):
    """Keeps what each step looked like."""

    def __init__(self):
        self.images, self.noise, self.weights = [], [], []

    def before_train(self, runner):
        teacher = runner.model.teacher.net
        self.teacher = {k: v.clone() for k, v in teacher.state_dict().items()}
        draw = runner.model.source.draw

        def watched(items):
            images, targets = draw(items)
            self.images.append(images.clone())
            return images, targets

        runner.model.source.draw = watched

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.noise.append(torch.rand(3))
        assert not any(m.training for m in runner.model.teacher.net.modules())
        assert runner.model.student.net.training
        self.weights.append({k: v.clone() for k, v in runner.model.state_dict().items()})


def _checkpoints(folder):
    return sorted(p.name for p in folder.glob('run*/*.pth'))


def assert_refused(cfg, error, match, folder):
    with pytest.raises(error, match=match):
        toy.runner_of(cfg).train()
    assert _checkpoints(folder) == []


def test_a_sound_run(tmp_path):
    """Fresh images and noise in every step; the teacher untouched; the file plain."""
    cfg = toy.run_config(tmp_path)
    cfg['model']['student']['init'] = 'inherit'
    cfg['custom_hooks'].append(dict(type='WatchHook'))
    runner = toy.runner_of(cfg)
    groups = runner.build_optim_wrapper(cfg['optim_wrapper']).param_groups
    optimised = {id(p) for group in groups for p in group['params']}
    assert not optimised & {id(p) for p in runner.model.teacher.net.parameters()}
    assert {id(p) for p in runner.model.student.heads.parameters()} <= optimised
    runner.train()
    watch = next(h for h in runner.hooks if isinstance(h, WatchHook))
    steps = watch.images[:6]
    for kept in (steps, watch.noise):
        assert len(kept) == 6
        assert not any(torch.equal(a, b) for i, a in enumerate(kept) for b in kept[:i])
    teacher = runner.model.teacher.net.state_dict()
    assert all(torch.equal(watch.teacher[k], teacher[k]) for k in teacher)
    first, last = watch.weights[0], runner.model.state_dict()
    moved = [k for k, v in last.items() if not torch.equal(v, first[k])]
    assert len(moved) > 0.9 * len(first)

    content = torch.load(tmp_path / 'run' / 'iter_6.pth', weights_only=False)
    assert {'state_dict', 'dfkd_state', 'optimizer', 'meta'} <= set(content)
    assert {'heads', 'source', 'seed', 'threads', 'images_read'} <= set(content['dfkd_state'])
    model = Config.fromfile(tmp_path / 'run' / 'student_config.py').model
    toy.plain(model).load_state_dict(content['state_dict'], strict=True)
    facts = json.loads((tmp_path / 'run' / 'run.json').read_text())
    assert facts['train_images_read'] == 0 and facts['data_free'] and facts['steps'] == 6


@pytest.mark.parametrize('case', ['missing', 'partial', 'other', 'malicious'])
def test_a_teacher_that_cannot_be_loaded(tmp_path, case):
    cfg = toy.run_config(tmp_path)
    path = tmp_path / 'teacher.pth'
    state = torch.load(path)['state_dict']
    if case == 'missing':
        path.unlink()
        error, match = FileNotFoundError, r'teacher\.pth'
    elif case == 'partial':
        torch.save({k: v for k, v in state.items() if 'rpn' not in k}, path)
        error, match = CheckpointMismatchError, 'rpn_head'
    elif case == 'other':
        torch.save(toy.build(toy.detector_model(dims=16)).state_dict(), path)
        error, match = CheckpointMismatchError, 'width of 16 in the file'
    else:
        torch.save(dict(state_dict=state, meta=print), path)
        error, match = RuntimeError, 'print'
    assert_refused(cfg, error, match, tmp_path)


def test_a_real_dataset_is_refused(tmp_path):
    cfg = toy.run_config(tmp_path)
    cfg['train_dataloader'] = dict(toy.coco_loader(tmp_path / 'data'), batch_size=2)
    assert_refused(cfg, ValueError, 'CocoDataset, which reads real images', tmp_path)


def test_a_real_dataset_is_counted_where_it_is_allowed(tmp_path):
    """The ceiling, in workers; validation's images do not count."""
    cfg = toy.run_config(tmp_path, model_data_free=False)
    cfg['model'].update(source=dict(type='mmdfkd.DatasetSource'), image_size=64)
    loader = toy.coco_loader(tmp_path / 'data', workers=1)
    loader['sampler'] = dict(type='InfiniteSampler')
    loader['batch_size'] = 2
    cfg['train_dataloader'] = loader
    cfg['train_cfg'] = dict(cfg['train_cfg'], val_interval=2)
    runner = toy.runner_of(cfg)
    runner.train()
    # Inherited at the size of the images, not at the size of the trace.
    assert runner.model.image_size == (48, 48)
    facts = json.loads((tmp_path / 'run' / 'run.json').read_text())
    assert not facts['data_free']
    # One is opened for its size; a worker is up to two batches ahead.
    assert 13 <= facts['train_images_read'] <= 13 + 6


def test_other_classes_in_the_datasets(tmp_path):
    cfg = toy.run_config(tmp_path)
    cfg['train_dataloader']['dataset']['metainfo'] = dict(classes=('a', 'b'))
    assert_refused(cfg, ValueError, 'training dataset 2', tmp_path)
    cfg = toy.run_config(tmp_path)
    cfg['val_dataloader']['dataset']['metainfo'] = dict(classes=('disc', 'square'))
    assert_refused(cfg, ValueError, 'validation dataset 2', tmp_path)
    # As many and the same, but the teacher numbers them in another order.
    cfg = toy.run_config(tmp_path)
    teacher = dict(toy.whole(toy.detector_model()))
    meta = dict(classes=toy.CLASSES[::-1])
    teacher['test_dataloader'] = dict(dataset=dict(type='CocoDataset', metainfo=meta))
    cfg['model']['teacher']['config'] = teacher
    assert_refused(cfg, ValueError, "classes in another order: class 0 is 'disc'", tmp_path)
    # In the test set alone, which the run does not build.
    cfg = toy.run_config(tmp_path, val_dataloader=None, val_evaluator=None, val_cfg=None)
    cfg['model']['teacher']['config'] = dict(toy.whole(toy.detector_model()))
    cfg['model']['teacher']['config']['test_dataloader'] = copy.deepcopy(cfg['test_dataloader'])
    cfg['test_dataloader']['dataset']['metainfo'] = meta
    assert_refused(cfg, ValueError, "the test dataset has the teacher's classes in an", tmp_path)


def test_an_image_size_that_a_network_cannot_take(tmp_path):
    model = toy.classifier_model(classes=3)
    # Does not pad what is smaller than a patch.
    model['backbone']['patch_cfg'] = dict(padding=0)
    path = tmp_path / 'classifier.pth'
    cfg = toy.run_config(tmp_path)
    torch.save(toy.build(model, scope='mmpretrain').state_dict(), path)
    cfg['model'].update(
        teacher=dict(config=toy.whole(model, 'mmpretrain'), checkpoint=str(path)),
        heads=[dict(type='mmdfkd.LogitHead')],
        image_size=32,
    )
    cfg['train_dataloader']['dataset']['image_size'] = 4
    assert_refused(cfg, ValueError, r'teacher cannot take images of \(4, 4\) px', tmp_path)


def test_not_a_number_stops_before_the_update(tmp_path):
    cfg = toy.run_config(tmp_path)
    cfg['model']['heads'].append(dict(type='mmdfkd.FailingHead', at=4))
    runner = toy.runner_of(cfg)
    with pytest.raises(FloatingPointError, match=r'loss_failing = nan at iteration 4.*--resume'):
        runner.train()
    assert _checkpoints(tmp_path) == ['iter_3.pth', 'student_start.pth']
    saved = torch.load(tmp_path / 'run' / 'iter_3.pth', weights_only=False)['state_dict']
    now = runner.model.state_dict()
    assert all(v.isfinite().all() for v in [*saved.values(), *now.values()])


def test_another_runs_directory(tmp_path):
    """In tools that know nothing of it: refused, replaced when told so, spared when that fails."""
    cfg = toy.run_config(tmp_path)
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'iter_9.pth').write_text('precious')
    with pytest.raises(RuntimeError, match='holds checkpoints of another run'):
        toy.runner_of(cfg).train()
    assert (run / 'iter_9.pth').read_text() == 'precious'

    teacher = (tmp_path / 'teacher.pth').rename(tmp_path / 'away.pth')
    with pytest.raises(FileNotFoundError):
        toy.runner_of(dict(cfg, overwrite=True)).train()
    assert (run / 'iter_9.pth').read_text() == 'precious'

    teacher = teacher.rename(run / 'iter_8.pth')
    inside = dict(toy.run_config(tmp_path, overwrite=True))
    inside['model']['teacher']['checkpoint'] = str(teacher)
    with pytest.raises(RuntimeError, match='would delete .*iter_8.pth'):
        toy.runner_of(inside).train()
    assert (run / 'iter_9.pth').exists() and teacher.exists()

    # Not by a name that a run gives.
    inside['model']['teacher']['checkpoint'] = str(teacher.rename(run / 'teacher.pth'))
    toy.runner_of(inside).train()
    assert 'iter_9.pth' not in _checkpoints(tmp_path)
    assert {'student.pth', 'teacher.pth'} <= set(_checkpoints(tmp_path))


def test_the_count_survives_a_resume(tmp_path):
    cfg = toy.run_config(tmp_path)
    toy.runner_of(cfg).train()
    path = tmp_path / 'run' / 'iter_3.pth'
    content = torch.load(path, weights_only=False)
    content['dfkd_state']['images_read'] = 5
    torch.save(content, path)
    resumed = dict(cfg, work_dir=str(tmp_path / 'run2'), load_from=str(path), resume=True)
    toy.runner_of(resumed).train()
    facts = json.loads((tmp_path / 'run2' / 'run.json').read_text())
    assert facts['train_images_read'] == 5 == DataAudit.install_once().images_read
