"""A set made by the tool is an ordinary one, and the same however often the call was killed."""

import importlib.util
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
import toy
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, DefaultScope
from source_runs import NAMES, POOL, REFINED, classifier_run, detector_run
from tiny_runs import ROOT

from mmdfkd.adapters import Normalizer, build_adapter
from mmdfkd.engine import image_sets
from mmdfkd.engine.image_sets import class_folders
from mmdfkd.engine.synthesize import synthesize
from mmdfkd.registry import MODELS


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('synthesize')


@pytest.fixture(scope='module')
def tool():
    path = ROOT / 'tools' / 'synthesize.py'
    spec = importlib.util.spec_from_file_location('synthesize_tool', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _files(folder):
    paths = sorted(p for p in folder.rglob('*') if p.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _one_step(model, scope, dataset):
    """Whether a training step on a set moves a network, by the toolbox's own classes."""
    with DefaultScope.overwrite_default_scope(scope):
        dataset = DATASETS.build(dataset)
        net = toy.plain(Config(dict(model=model)).model, scope).train()
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    wrapper = OptimWrapper(torch.optim.SGD(net.parameters(), lr=0.1))
    batch = pseudo_collate([dataset[i] for i in range(len(dataset))])
    log = net.train_step(batch, wrapper)
    assert torch.isfinite(log['loss'])
    assert any(not torch.equal(value, before[name]) for name, value in net.named_parameters())
    return dataset


@pytest.fixture(scope='module')
def classes(folder, tool):
    """Seven images of a pool: more than two batches of three."""
    config = classifier_run(folder, POOL)
    tool.main([str(config), str(folder / 'classes'), '--num', '7', '--topk', '3'])
    return folder / 'classes'


def test_an_image_folder(folder, classes):
    labels = json.loads((classes / 'labels.json').read_text())
    assert labels['classes'] == list(NAMES) and labels['info']['images'] == 7
    assert sorted(p.name for p in classes.iterdir() if p.is_dir()) == list(NAMES)
    assert not (folder / 'classes.unfinished').exists()
    net = toy.build(toy.classifier_model(), scope='mmpretrain')
    state = torch.load(folder / 'classifier.pth', weights_only=False)['state_dict']
    net.load_state_dict(state)
    adapter = build_adapter(net, Normalizer(toy.MEAN, toy.STD, 'rgb'))
    assert sorted(name[-10:] for name in labels['images']) == [f'{i:06d}.png' for i in range(7)]
    for name, answer in labels['images'].items():
        pixels = cv2.imread(str(classes / name))[..., ::-1].transpose(2, 0, 1).copy()
        votes = adapter.class_votes(adapter.encode(torch.from_numpy(pixels)[None].float() / 255))
        expected, order = votes[0].topk(3)
        assert answer['labels'] == order.tolist()
        assert name.split('/')[0] == NAMES[order[0]]
        np.testing.assert_allclose(answer['probabilities'], expected, atol=1e-5)


def test_mmpretrain_trains_on_it(classes):
    dataset = _one_step(
        toy.classifier_model(),
        'mmpretrain',
        dict(
            type='CustomDataset',
            data_root=str(classes),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
        ),
    )
    assert dataset.metainfo['classes'] == NAMES and len(dataset) == 7


def test_a_run_draws_from_it(folder, classes):
    """As from any folder that somebody has: the teacher says what is seen in each image."""
    net = toy.build(toy.classifier_model(), scope='mmpretrain')
    net.load_state_dict(torch.load(folder / 'classifier.pth', weights_only=False)['state_dict'])
    teacher = build_adapter(net, Normalizer(toy.MEAN, toy.STD, 'rgb'))
    cfg = dict(type='mmdfkd.FolderSource', root=str(classes), filter=dict(duplicates=None))
    source = MODELS.build(dict(cfg, augment=None))
    source.folder = folder / 'run'
    pixels = {
        str(path.relative_to(classes)): cv2.imread(str(path))[..., ::-1].transpose(2, 0, 1)
        for path in classes.glob('*/*.png')
    }
    size = next(iter(pixels.values())).shape[1:]
    source.prepare(teacher, seed=0, image_size=size, device='cpu')
    source.fill(teacher)
    made = json.loads((classes / 'labels.json').read_text())
    assert sorted(source.names) == sorted(made['images'])
    first = {name: NAMES.index(name.split('/')[0]) for name in source.names}
    assert source.labels.tolist() == [first[name] for name in source.names]
    images, _ = source.draw([dict(g=g) for g in range(5)])
    known = {image.tobytes() for image in pixels.values()}
    assert {image.mul(255).round().byte().numpy().tobytes() for image in images} <= known


_TRAIN = dict(
    rpn=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
        sampler=dict(type='RandomSampler', num=16, pos_fraction=0.5, add_gt_as_proposals=False),
        allowed_border=-1,
        pos_weight=-1,
    ),
    rpn_proposal=dict(
        nms_pre=20, max_per_img=10, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0
    ),
    rcnn=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
        sampler=dict(type='RandomSampler', num=16, pos_fraction=0.5),
        pos_weight=-1,
    ),
)


@pytest.fixture(scope='module')
def boxes(folder, tool):
    config = detector_run(folder)
    tool.main([str(config), str(folder / 'boxes'), '--num', '3', '--threshold', '0.2'])
    return folder / 'boxes'


def test_a_coco_set(folder, boxes):
    content = json.loads((boxes / 'annotations' / 'instances.json').read_text())
    assert [one['name'] for one in content['categories']] == list(toy.CLASSES)
    assert [one['file_name'] for one in content['images']] == [f'{i:06d}.png' for i in range(3)]
    adapter = build_adapter(
        toy.build(toy.detector_model()),
        Normalizer.from_config(Config(toy.whole(toy.detector_model()))),
    )
    total = 0
    for image in content['images']:
        pixels = cv2.imread(str(boxes / 'images' / image['file_name']))
        assert pixels.shape[:2] == (image['height'], image['width']) == (toy.SIZE, toy.SIZE)
        tensor = torch.from_numpy(pixels[..., ::-1].transpose(2, 0, 1).copy())[None].float() / 255
        (seen,) = adapter.detect(adapter.encode(tensor))
        own = [one for one in content['annotations'] if one['image_id'] == image['id']]
        keep = (seen.scores >= 0.2) & ((seen.bboxes[:, 2:] - seen.bboxes[:, :2]).amin(1) >= 1)
        assert [one['category_id'] for one in own] == (seen.labels[keep] + 1).tolist()
        for one, (x0, y0, x1, y1) in zip(own, seen.bboxes[keep].tolist(), strict=True):
            np.testing.assert_allclose(one['bbox'], [x0, y0, x1 - x0, y1 - y0], atol=0.02)
            assert one['score'] >= 0.2 and one['area'] > 0
        total += len(own)
    assert total > 0


def test_mmdet_trains_on_it(boxes):
    dataset = _one_step(
        dict(toy.resnet_model(), train_cfg=_TRAIN),
        'mmdet',
        dict(
            type='CocoDataset',
            data_root=str(boxes),
            metainfo=dict(classes=toy.CLASSES),
            ann_file='annotations/instances.json',
            data_prefix=dict(img='images/'),
            filter_cfg=dict(filter_empty_gt=True),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True),
                dict(type='PackDetInputs'),
            ],
        ),
    )
    assert 1 <= len(dataset) <= 3


class Killed(BaseException):
    """Nothing catches it."""


@pytest.mark.parametrize('source', [POOL, REFINED], ids=['pool', 'refined'])
def test_a_killed_call_ends_with_the_same_files(tmp_path, monkeypatch, source):
    """Killed at the first image, within a batch and behind one; the source's state goes on."""
    config = Config.fromfile(classifier_run(tmp_path, source))
    told = []

    def make(out, **settings):
        return synthesize(config, out, 7, save_seconds=0.0, say=told.append, **settings)

    make(tmp_path / 'whole')
    out = tmp_path / 'again'
    save, written = image_sets.save_image, []

    def killing(path, image):
        if len(written) in stops:
            stops.remove(len(written))
            raise Killed
        written.append(path.name)
        save(path, image)

    stops = [0, 4, 7]
    with monkeypatch.context() as patch:
        patch.setattr(image_sets, 'save_image', killing)
        for _ in range(3):
            with pytest.raises(Killed):
                make(out, resume=out.exists())
        # A line that the disk has half of.
        with (tmp_path / 'again.unfinished' / 'records.jsonl').open('a') as stream:
            stream.write('{"file": "')
        make(out, resume=True)
    assert _files(out) == _files(tmp_path / 'whole')
    assert not (tmp_path / 'again.unfinished').exists()
    # What was finished was not made again: two batches, of which one was cut.
    assert any('Going on behind image 3' in line for line in told)
    assert written.count('000000.png') == 1

    # A finished set is left alone, and can be added to.
    assert make(out, resume=True)['images'] == 7 and 'is complete' in told[-1]
    shutil.copytree(out, tmp_path / 'more')
    synthesize(config, tmp_path / 'more', 8, resume=True, say=told.append)
    more, images = _files(tmp_path / 'more'), _files(out)
    assert len(more) == len(images) + 1
    assert all(more[name] == images[name] for name in images if name.endswith('.png'))


def test_two_sets_are_never_mixed(folder, classes, tool):
    config = str(folder / 'classes.py')
    with pytest.raises(RuntimeError, match='holds a set already.*--resume'):
        tool.main([config, str(classes)])
    with pytest.raises(ValueError, match='other settings: seed 3, now 4. Use those'):
        tool.main([config, str(classes), '--resume', '--topk', '3', '--seed', '4'])


def test_a_set_is_of_one_teacher_and_one_dataset(tmp_path):
    """Also where the file has the same name."""
    config = Config.fromfile(classifier_run(tmp_path, POOL))
    out = tmp_path / 'set'
    synthesize(config, out, 3, topk=2)
    facts = json.loads((out / 'synthesis.json').read_text())
    for change, name in (
        (dict(renderer=dict(type='mmdfkd.NoiseRenderer')), 'dataset'),
        (dict(metainfo=dict(classes=[*NAMES[:4], 'fox'])), 'dataset'),
    ):
        other = config.copy()
        other.train_dataloader.dataset.update(change)
        with pytest.raises(ValueError, match=f'begun with other settings: {name} '):
            synthesize(other, out, 3, topk=2, resume=True)
    checkpoint = tmp_path / 'classifier.pth'
    kept = checkpoint.read_bytes()
    net = toy.build(toy.classifier_model(), seed=5, scope='mmpretrain')
    torch.save(dict(state_dict=net.state_dict()), checkpoint)
    with pytest.raises(ValueError, match='begun with other settings: teacher_sha256 '):
        synthesize(config, out, 3, topk=2, resume=True)
    checkpoint.write_bytes(kept)
    # One that was made before all of it was written down.
    for name in ('teacher_sha256', 'dataset', 'classes'):
        del facts[name]
    (out / 'synthesis.json').write_text(json.dumps(facts))
    assert synthesize(config, out, 3, topk=2, resume=True)['images'] == 3
    # Everything else it has to say.
    del facts['topk']
    (out / 'synthesis.json').write_text(json.dumps(facts))
    with pytest.raises(ValueError, match='other settings: topk None, now 2'):
        synthesize(config, out, 3, topk=2, resume=True)


@pytest.mark.parametrize('kind', ['classes', 'boxes'])
def test_images_that_no_record_names_are_deleted(tmp_path, monkeypatch, kind):
    """A killed call's, of which another machine says another class."""
    run = classifier_run(tmp_path, POOL) if kind == 'classes' else detector_run(tmp_path)
    config, out = Config.fromfile(run), tmp_path / 'set'
    with monkeypatch.context() as patch:
        patch.setattr(image_sets, 'save_image', lambda path, image: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            synthesize(config, out, 3)
    mine = out / ('bee' if kind == 'classes' else 'images') / 'mine.png'
    for path in (mine, mine.with_name('000009.png')):
        path.write_text('x')
    synthesize(config, out, 3, resume=True)
    numbers = sorted(p.stem for p in out.rglob('*.png') if p != mine)
    assert numbers == ['000000', '000001', '000002'] and mine.exists()


def test_files_of_somebody_else_are_not_gone_on_with(tmp_path):
    config = Config.fromfile(classifier_run(tmp_path, POOL))
    (tmp_path / 'set' / 'bee').mkdir(parents=True)
    (tmp_path / 'set' / 'bee' / '000000.png').write_text('mine')
    with pytest.raises(RuntimeError, match='holds files, but no set that --resume could'):
        synthesize(config, tmp_path / 'set', 3, resume=True)
    assert (tmp_path / 'set' / 'bee' / '000000.png').read_text() == 'mine'
    assert sorted(p.name for p in tmp_path.glob('set*')) == ['set']


def test_the_folder_that_one_is_in(tmp_path, monkeypatch):
    config = Config.fromfile(classifier_run(tmp_path, POOL))
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    assert synthesize(config, '.', 3)['images'] == 3
    assert (tmp_path / 'here' / 'synthesis.json').is_file()


def test_bad_input(folder, tool, tmp_path):
    plain = toy.write_config(toy.whole(toy.detector_model()), tmp_path / 'plain.py')
    with pytest.raises(TypeError, match='has no source of images: its model is a FasterRCNN'):
        tool.main([str(plain), str(tmp_path / 'out')])
    config = str(classifier_run(folder, POOL))
    with pytest.raises(ValueError, match='num must be at least 1, got 0'):
        tool.main([config, str(tmp_path / 'out'), '--num', '0'])
    with pytest.raises(ValueError, match='threshold is from 0 to 1, got 3'):
        tool.main([config, str(tmp_path / 'out'), '--threshold', '3'])
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('split', ['training', 'validation', 'test'])
def test_other_class_counts_are_refused(tmp_path, split):
    """As training refuses them; folders would be named by numbers otherwise."""
    config = Config.fromfile(classifier_run(tmp_path, POOL))
    if split == 'training':
        config.train_dataloader.dataset.metainfo.classes = NAMES[:3]
    else:
        # Says nothing itself; the kind has a hundred classes.
        loader = dict(validation='val_dataloader', test='test_dataloader')[split]
        config[loader] = dict(dataset=dict(type='CIFAR100'))
    with pytest.raises(ValueError, match=f'has 5 classes and the {split} dataset (3|100): '):
        synthesize(config, tmp_path / 'out', 3)
    assert [path.name for path in tmp_path.glob('out*')] == []


def test_folders_are_in_the_order_of_the_classes():
    assert class_folders(('0', '1', '2')) == ['0', '1', '2']
    assert class_folders(('b', 'a')) == ['0_b', '1_a']
    names = [str(i) for i in range(11)]
    folders = class_folders(names)
    assert folders == sorted(folders) and folders[10] == '10_10' and folders[2] == '02_2'
    odd = class_folders(('a/b', '..', 'a/b'))
    assert odd == sorted(set(odd)) and not any('/' in name or name == '..' for name in odd)
