"""The shipped sources work for any set: one class of large objects, eighty classes, any shape."""

import copy
import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import toy
from mmengine.config import Config

from mmdfkd.distillers import build_network
from mmdfkd.synthesis import ReplayBank

ROOT = Path(__file__).resolve().parents[2]
#: Classes, height and width, and the anchors' sizes on the three levels.
SETS = dict(large=(1, (96, 96), (58, 70, 86)), many=(80, (64, 96), (12, 24, 48)))
#: What every run of the benchmarks has, and nothing about any set.
BASE = Config.fromfile(ROOT / 'configs' / '_base_' / 'dfkd_detector.py')


def detector(name: str) -> dict:
    classes, _, sizes = SETS[name]
    model = toy.detector_model(classes=classes)
    model['rpn_head']['anchor_generator'] = dict(
        type='AnchorGenerator',
        strides=[4, 8, 16],
        base_sizes=list(sizes),
        scales=[1.0],
        ratios=[0.5, 1.0],
    )
    return model


def source(kind: str) -> dict:
    """As shipped, with less of everything."""
    cfg = copy.deepcopy(BASE[kind].to_dict())
    inner = cfg.get('source', cfg)
    inner.update(pool_size=12, num_workers=0)
    if kind == 'refined':
        cfg.update(batch=4, steps=3)
    if kind in ('inverted', 'mixture'):
        cfg.update(images=6, batch=3, starts=10)
    return cfg


def write_set(folder: Path, classes: int, size: tuple[int, int]) -> None:
    """Three images with a box each, the last without."""
    rng = np.random.default_rng(0)
    (folder / 'val').mkdir(parents=True)
    content = dict(images=[], annotations=[])
    content['categories'] = [dict(id=i + 1, name=f'class{i}') for i in range(classes)]
    height, width = size
    for i in range(3):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / 'val' / f'{i}.png'), image)
        content['images'].append(dict(id=i, file_name=f'{i}.png', width=width, height=height))
        if i < 2:
            content['annotations'].append(
                dict(
                    id=i + 1,
                    image_id=i,
                    category_id=classes if i else 1,
                    bbox=[5, 5, 0.8 * width, 0.8 * height],
                    area=0.64 * width * height,
                    iscrowd=0,
                )
            )
    (folder / 'annotations.json').write_text(json.dumps(content))


def run_config(folder: Path, name: str, kind: str, steps: int = 2) -> dict:
    """A whole run; the set and the teacher lie in ``folder``."""
    classes, size, _ = SETS[name]
    checkpoint = folder / 'teacher.pth'
    if not (folder / 'data').exists():
        write_set(folder / 'data', classes, size)
    cfg = toy.run_config(folder)
    names = tuple(f'class{i}' for i in range(classes))
    cfg['model'] = dict(
        BASE.model.to_dict(),
        teacher=dict(config=toy.whole(detector(name)), checkpoint=str(checkpoint)),
        source=source(kind),
        inheritance=dict(images=9),
    )
    cfg['train_dataloader'] = dict(
        BASE.train_dataloader.to_dict(),
        batch_size=2,
        dataset=dict(type='mmdfkd.SyntheticDataset', image_size=size, metainfo=dict(classes=names)),
    )
    cfg['optim_wrapper'] = BASE.optim_wrapper.to_dict()
    cfg['train_cfg']['max_iters'] = steps
    cfg['test_dataloader']['dataset']['metainfo'] = dict(classes=names)
    cfg['test_dataloader']['dataset']['pipeline'][1]['scale'] = size[::-1]
    for key in ('val_cfg', 'val_dataloader', 'val_evaluator'):
        cfg[key] = None
    cfg['work_dir'] = str(folder / kind)
    return cfg


def train(cfg: dict) -> Path:
    toy.runner_of(cfg).train()
    return Path(cfg['work_dir'])


@pytest.fixture(scope='module', params=list(SETS))
def place(request, tmp_path_factory):
    """Name of a set and its folder; runs are kept in it."""
    folder = tmp_path_factory.mktemp(request.param)
    net = toy.build(detector(request.param))
    with torch.no_grad():
        # Decided answers among eighty classes too.
        net.roi_head.bbox_head.fc_cls.weight *= 4
    torch.save(dict(meta={}, state_dict=net.state_dict()), folder / 'teacher.pth')
    return request.param, folder


@pytest.mark.parametrize('kind', ['pooled', 'refined', 'mixture'])
def test_trains_and_exports(place, kind):
    name, folder = place
    classes, size, anchors = SETS[name]
    run = train(run_config(folder, name, kind, steps=3 if kind == 'mixture' else 2))
    facts = json.loads((run / 'run.json').read_text())
    assert facts['train_images_read'] == 0
    student = torch.load(run / 'student.pth', weights_only=True)['state_dict']
    start = torch.load(run / 'student_start.pth', weights_only=True)['state_dict']
    assert len(student['roi_head.bbox_head.fc_cls.bias']) == classes + 1
    assert all(value.isfinite().all() for value in student.values())
    assert any(not torch.equal(value, start[key]) for key, value in student.items())
    if kind == 'mixture':
        bank = ReplayBank(size, 6, run / 'synthetic')
        bank.restore(ReplayBank.latest_index(run / 'synthetic'))
        images, targets, _ = bank.take(bank.ids)
        assert images.shape == (6, 3, *size) and images.flatten(1).std(1).min() > 0.02
        boxes, labels = torch.cat(targets.boxes), torch.cat(targets.box_labels)
        side = boxes[:, 2:] - boxes[:, :2]
        # No object of this set is smaller than half its smallest anchor.
        assert side.min() > 0.49 * anchors[0]
        assert (boxes >= 0).all() and (boxes[:, 2:] <= torch.tensor(size[::-1])).all()
        assert labels.unique().numel() >= min(classes, 4) and labels.max() < classes


def test_report(place):
    """Of the mixture: every figure is there, whatever the classes and the shape of the images."""
    name, folder = place
    cfg = run_config(folder, name, 'mixture')
    spec = importlib.util.spec_from_file_location('report_of_any', ROOT / 'tools' / 'report.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    if not (folder / 'mixture' / 'student.pth').exists():
        train(cfg)
    path = toy.write_config(cfg, folder / 'mixture.py')
    tool.main([str(path), '--work-dir', str(folder / 'mixture')])
    report = json.loads((folder / 'mixture' / 'report' / 'report.json').read_text())
    for who in ('teacher', 'student'):
        assert 0 <= report[who]['bbox_mAP'] <= 1 and report[who]['flops'] > 0
    for picture in ('synthetic.png', 'detections.png'):
        assert (folder / 'mixture' / 'report' / picture).is_file()


@pytest.fixture(scope='module')
def blind(tmp_path_factory):
    """Fresh weights: every class has a probability of 1 / 81 everywhere."""
    folder = tmp_path_factory.mktemp('blind')
    torch.manual_seed(0)
    net = build_network(Config(toy.whole(detector('many'))))
    net.init_weights()
    torch.save(dict(meta={}, state_dict=net.state_dict()), folder / 'teacher.pth')
    return folder


class TestATeacherThatSeesNothing:
    @pytest.mark.parametrize('kind', ['pooled', 'refined'])
    def test_draws_uniformly(self, blind, kind):
        """No class is covered, so the pool has none to prefer."""
        runner = toy.runner_of(run_config(blind, 'many', kind))
        runner.train()
        pool = getattr(runner.model.source, 'source', runner.model.source)
        assert not len(pool.covered) and pool.votes.shape[0] == 80
        assert (blind / kind / 'student.pth').is_file()

    def test_has_no_layouts_to_invert(self, blind):
        """One message, before the first step."""
        cfg = run_config(blind, 'many', 'mixture')
        cfg['model']['source']['steps'] = 2
        with pytest.raises(ValueError, match=r'detects not one object in 6 images.*64 x 96 px'):
            train(cfg)
        assert not list((blind / 'mixture').glob('iter_*.pth'))
