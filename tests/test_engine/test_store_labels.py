"""Labels are stored once and replayed without the teacher, to the same student."""

import copy
import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import toy
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from mmdfkd.datasets import SeededDataset
from mmdfkd.distillers.stored_labels import StoredLabels
from mmdfkd.engine.store_labels import store_labels
from mmdfkd.losses import sparse_label_ce
from mmdfkd.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
CLASSES, TOP, STEPS, BATCH = 5, 3, 3, 4


PHOTOS = 5


def photos(folder):
    """A folder of images of several sizes, and the dataset that augments them; no labels."""
    for i in range(PHOTOS):
        image = toy.images(1, 40 + 4 * i, seed=i)[0]
        path = folder / 'photos' / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        assert cv2.imwrite(str(path), pixels[..., ::-1])
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='RandomResizedCrop', scale=32),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4),
        dict(type='PackInputs'),
    ]
    dataset = dict(
        type='CustomDataset',
        data_prefix=str(folder / 'photos'),
        with_label=False,
        pipeline=pipeline,
    )
    return dict(type='mmdfkd.SeededDataset', dataset=dataset)


def config(folder, name, teacher, real=False, **head):
    """A classifier's run, its steps in the place of ``toy``'s detector's.

    On procedural images, or on augmented ones of a folder: more samples than it has images.
    """
    cfg = toy.run_config(folder)
    model = toy.classifier_model(classes=CLASSES)
    cfg.update(default_scope='mmpretrain', work_dir=str(folder / name))
    cfg['model'].update(
        teacher=dict(config=toy.whole(model, 'mmpretrain'), **teacher),
        student=dict(config=toy.whole(model, 'mmpretrain'), init='random'),
        heads=[dict(type='mmdfkd.LogitHead', loss=dict(type='top_k', k=TOP), **head)],
        image_size=32,
    )
    # Adam takes the sign of gradients that are nearly zero, so that roundings would show.
    cfg['optim_wrapper']['optimizer'] = dict(type='SGD', lr=0.1)
    cfg['train_dataloader'].update(batch_size=BATCH)
    cfg['train_dataloader']['dataset'].update(image_size=32, metainfo=None)
    if real:
        cfg['train_dataloader']['dataset'] = photos(folder)
        cfg['model'].update(source=dict(type='mmdfkd.DatasetSource'), data_free=False)
    cfg['train_cfg'] = dict(type='IterBasedTrainLoop', max_iters=STEPS)
    for split in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            cfg.pop(f'{split}_{part}')
    return cfg


def call_tool(*arguments):
    tool = runpy.run_path(str(ROOT / 'tools' / 'store_labels.py'))
    tool['main']([str(argument) for argument in arguments])


def stored(folder, real):
    """Labels written by the tool, which is given the config of an ordinary run."""
    net = toy.build(toy.classifier_model(classes=CLASSES), seed=3, scope='mmpretrain')
    torch.save(net.state_dict(), folder / 'classifier.pth')
    cfg = config(folder, 'live', dict(checkpoint=str(folder / 'classifier.pth')), real)
    path = toy.write_config(cfg, folder / 'live.py')
    call_tool(path, folder / 'labels.pth', '--top-k', TOP)
    return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """With labels of procedural images."""
    return stored(tmp_path_factory.mktemp('stored'), False)


def trained(cfg):
    toy.runner_of(cfg).train()
    path = Path(cfg['work_dir']) / 'student.pth'
    return torch.load(path, weights_only=True)['state_dict']


def test_what_is_stored(folder):
    content = torch.load(folder / 'labels.pth', weights_only=True)
    tensors = content['state_dict']
    assert tensors['classes'].shape == tensors['probabilities'].shape == (STEPS * BATCH, TOP)
    assert tensors['classes'].dtype == torch.int16
    assert tensors['probabilities'].dtype == torch.float16
    assert content['meta'] == dict(stored_labels=1, seed=3, num_classes=CLASSES)


def test_a_file_that_is_there_is_kept(folder, tmp_path):
    path = toy.write_config(
        config(tmp_path, 'live', dict(checkpoint=str(folder / 'classifier.pth'))),
        tmp_path / 'live.py',
    )
    out = tmp_path / 'labels.pth'
    out.write_bytes(b'weights')
    with pytest.raises(ValueError, match=r'labels\.pth exists; give --overwrite'):
        call_tool(path, out)
    assert out.read_bytes() == b'weights'
    call_tool(path, out, '--num', 2, '--overwrite')
    assert len(StoredLabels.read(out)) == 2


def test_where_it_is_written_is_tried_before_the_pass(folder, tmp_path, monkeypatch):
    cfg = Config(config(folder, 'live', dict(checkpoint=str(folder / 'classifier.pth'))))

    def ask(*_, **__):
        raise AssertionError('The teacher was asked.')

    with monkeypatch.context() as patch:
        patch.setattr('mmdfkd.engine.store_labels.Synthesis.of', ask)
        (tmp_path / 'file').write_text('')
        for out in (tmp_path / 'file' / 'labels.pth', tmp_path, tmp_path / ('x' * 250)):
            with pytest.raises(OSError, match='cannot be written'):
                store_labels(cfg, out)
    assert [path.name for path in tmp_path.iterdir()] == ['file']
    store_labels(cfg, tmp_path / 'new' / 'folder' / 'labels.pth', num=1, say=lambda _: None)
    assert [p.name for p in (tmp_path / 'new' / 'folder').iterdir()] == ['labels.pth']


def test_epochs_do_not_tell_the_number_of_samples(folder, tmp_path):
    cfg = config(folder, 'live', dict(checkpoint=str(folder / 'classifier.pth')))
    cfg['train_cfg'] = dict(by_epoch=True, max_epochs=2)
    with pytest.raises(ValueError, match=r'no train_cfg\.max_iters.*--num'):
        store_labels(Config(cfg), tmp_path / 'labels.pth')
    assert len(store_labels(Config(cfg), tmp_path / 'labels.pth', num=2)) == 2


@pytest.mark.parametrize('real', [False, True])
def test_replaying_gives_the_same_student(folder, tmp_path, real):
    """But for the halves in which probabilities are kept."""
    folder = stored(tmp_path, real) if real else folder
    live = trained(config(folder, 'live', dict(checkpoint=str(folder / 'classifier.pth')), real))
    (folder / 'classifier.pth').rename(folder / 'gone.pth')
    try:
        cfg = config(folder, 'replay', dict(labels=str(folder / 'labels.pth')), real)
        if real:
            # Each pass augments anew, in a process of its own as in this one.
            sums = StoredLabels.read(folder / 'labels.pth')._parts[0][2]
            assert len(set(sums.tolist())) == STEPS * BATCH > PHOTOS
            cfg['train_dataloader']['num_workers'] = 1
        # Those that ask a teacher about images have none here, and let the run be.
        watching = ('mmdfkd.SyntheticQualityHook', 'mmdfkd.SyntheticVisHook')
        cfg['custom_hooks'] = [*cfg['custom_hooks'], *(dict(type=name) for name in watching)]
        replayed = trained(cfg)
    finally:
        (folder / 'gone.pth').rename(folder / 'classifier.pth')
    start = torch.load(folder / 'live' / 'student_start.pth', weights_only=True)['state_dict']
    moved = max(float((live[k] - v).abs().max()) for k, v in start.items())
    apart = max(float((live[k] - v).abs().max()) for k, v in replayed.items())
    assert moved > 1e-4 and apart < 0.02 * moved
    if real:
        report = json.loads((folder / 'replay' / 'run.json').read_text())
        assert not report['data_free'] and report['train_images_read'] > 0
    wrong = config(folder, 'wrong', dict(labels=str(folder / 'labels.pth')), real)
    with pytest.raises(ValueError, match='stored for the seed 3'):
        toy.runner_of(dict(wrong, randomness=dict(seed=4))).train()


def test_too_few_are_told_before_the_first_step(folder, tmp_path):
    cfg = config(folder, 'longer', dict(labels=str(folder / 'labels.pth')))
    cfg = dict(cfg, train_cfg=dict(cfg['train_cfg'], max_iters=STEPS + 1), work_dir=str(tmp_path))
    runner = toy.runner_of(cfg)
    wanted = (STEPS + 1) * BATCH
    with pytest.raises(ValueError, match=f'{STEPS * BATCH} samples, and the run wants {wanted}'):
        runner.train()
    assert runner.iter == 0


def test_an_image_that_was_exchanged_is_noticed(tmp_path):
    stored(tmp_path, True)
    cfg = config(tmp_path, 'replay', dict(labels=str(tmp_path / 'labels.pth')), True)
    for path in (tmp_path / 'photos').glob('*.png'):
        assert cv2.imwrite(str(path), 255 - cv2.imread(str(path)))
    with pytest.raises(ValueError, match='is another image than the one that its label'):
        toy.runner_of(cfg).train()


def test_the_logits_stand_for_the_stored_distribution(tmp_path):
    torch.manual_seed(0)
    images, logits = torch.rand(4, 3, 8, 8), torch.randn(4, 6) * 3
    labels = StoredLabels(seed=1, num_classes=6)
    labels.add(images[:2], logits[:2], 2)
    labels.add(images[2:], logits[2:], 2)
    labels.save(tmp_path / 'labels.pth')
    stored = StoredLabels.read(tmp_path / 'labels.pth')
    assert len(stored) == 4
    seen = stored.observe(images[[2, 0]], [2, 0]).response.logits
    for row, g in enumerate((2, 0)):
        p = logits[g].double().softmax(-1)
        kept = p.topk(2)
        expected = torch.full((6,), float((1 - kept.values.sum()) / 4), dtype=torch.double)
        expected[kept.indices] = kept.values
        torch.testing.assert_close(seen[row].double().exp(), expected, rtol=2e-3, atol=1e-4)
    student = torch.randn(2, 6)
    by_hand = -(seen.exp() * student.log_softmax(-1)).sum(-1).mean()
    from mmdfkd.losses import top_k_labels

    torch.testing.assert_close(sparse_label_ce(student, top_k_labels(seen, 2)), by_hand)
    with pytest.raises(ValueError, match='Sample 1 is another image'):
        stored.observe(images[[2]], [1])
    with pytest.raises(ValueError, match='wants sample 4'):
        stored.observe(images[[2]], [4])
    stored.check_count(4)
    with pytest.raises(ValueError, match='for 4 samples, and the run wants 5: .* --num 5'):
        stored.check_count(5)
    torch.save(dict(state_dict=dict(weight=images)), tmp_path / 'net.pth')
    with pytest.raises(ValueError, match='no stored labels'):
        StoredLabels.read(tmp_path / 'net.pth')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(student=dict(init='inherit')), 'no weights to inherit'),
        (dict(heads=[dict(type='mmdfkd.FeatureHead')]), 'FeatureHead reads more of the teacher'),
        (dict(teacher=dict(checkpoint='x.pth')), 'either a checkpoint'),
    ],
)
def test_what_cannot_be_replayed_is_refused(folder, change, message):
    cfg = config(folder, 'refused', dict(labels=str(folder / 'labels.pth')))
    model = copy.deepcopy(cfg['model'])
    for key, value in change.items():
        model[key] = {**model[key], **value} if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message):
        toy.runner_of(dict(cfg, model=model))


POOL = dict(
    type='mmdfkd.PooledSource',
    renderer=dict(type='mmdfkd.NoiseRenderer'),
    pool_size=4,
    num_workers=0,
)


def test_images_that_the_teacher_chooses_cannot_be_stored_or_replayed(folder, tmp_path):
    rendered = dict(type='mmdfkd.RenderedSource')
    for source in (POOL, dict(type='mmdfkd.MixtureSource', sources=[rendered, POOL])):
        live = config(folder, 'live', dict(checkpoint=str(folder / 'classifier.pth')))
        live['model']['source'] = source
        with pytest.raises(ValueError, match='makes or chooses its images with the teacher'):
            store_labels(Config(live), tmp_path / 'labels.pth')
        assert not (tmp_path / 'labels.pth').exists()
        replay = config(folder, 'refused', dict(labels=str(folder / 'labels.pth')))
        replay['model']['source'] = source
        with pytest.raises(ValueError, match='which is not run where its labels are stored'):
            toy.runner_of(replay)
    alone = MODELS.build(dict(POOL, balance=False))
    assert alone.self_contained
    assert not MODELS.build(
        dict(POOL, balance=False, renderer=[POOL['renderer']] * 2)
    ).self_contained


@DATASETS.register_module()
class NoisyCounts(Dataset):
    """Sample ``i`` is ``i`` and what every global generator says."""

    metainfo = dict(classes=('a',))

    def __len__(self):
        return 5

    def __getitem__(self, i):
        import random

        return dict(i=i, noise=(random.random(), np.random.rand(), float(torch.rand(()))))


def test_a_seeded_dataset_is_a_function_of_seed_and_index():
    data = SeededDataset(dict(type='NoisyCounts'), seed=2)
    torch.manual_seed(7)
    first = [data[g] for g in range(15)]
    after = float(torch.rand(()))
    torch.manual_seed(7)
    assert float(torch.rand(())) == after
    again = SeededDataset(dict(type='NoisyCounts'), seed=2)
    assert [again[g] for g in (13, 4, 9)] == [first[g] for g in (13, 4, 9)]
    # Each pass has all samples, in an order of its own, augmented anew.
    passes = [[item['i'] for item in first[k : k + 5]] for k in (0, 5, 10)]
    assert all(sorted(one) == list(range(5)) for one in passes) and len(set(map(tuple, passes))) > 1
    assert len({item['noise'] for item in first}) == 15
    assert first[0]['g'] == 0 and len(data) == 5 and data.metainfo['classes'] == ('a',)
    other = SeededDataset(dict(type='NoisyCounts'), seed=3)
    assert [other[g] for g in range(5)] != first[:5]
