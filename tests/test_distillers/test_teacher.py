"""A teacher is loaded whole or not at all, and nothing of the run can change it."""

import copy
import os

import pytest
import torch
import toy
from mmengine.registry import MODELS

from mmdfkd.adapters import build_adapter
from mmdfkd.distillers import DataFreeDistiller, Teacher
from mmdfkd.distillers.stored_labels import StoredLabels
from mmdfkd.utils.checkpoint import CheckpointError, UnsafeCheckpointError
from mmdfkd.utils.key_report import CheckpointMismatchError


def _teacher(path, model=None, **settings):
    return Teacher(toy.whole(model or toy.detector_model()), str(path), **settings)


def _save(path, state):
    torch.save(dict(state_dict=state), path)
    return path


@pytest.fixture(scope='module')
def state():
    return toy.build(toy.detector_model()).state_dict()


def test_answers_only_with_its_weights(tmp_path, state):
    teacher = _teacher(_save(tmp_path / 't.pth', state))
    with pytest.raises(RuntimeError, match='not loaded'):
        teacher.observe(toy.images(1), (), True)
    teacher.load()
    expected = build_adapter(toy.build(toy.detector_model()), teacher.adapter.normalizer)
    own = teacher.observe(toy.images(1), (), True).response.logits
    assert torch.equal(own, expected.observe(toy.images(1)).response.logits)
    assert not teacher.net.training
    assert not any(p.requires_grad for p in teacher.net.parameters())
    assert copy.deepcopy(teacher) is teacher


def test_no_initialisation_of_its_config_is_carried_out(tmp_path):
    model = toy.resnet_model()
    net = toy.build(model)
    teacher = _teacher(_save(tmp_path / 't.pth', net.state_dict()), model)
    assert 'Pretrained' not in str([getattr(m, 'init_cfg', '') for m in teacher.net.modules()])


def test_nothing_is_recomputed_in_it(tmp_path):
    """It has no backward of its own, and gradients to the pixels could not be had."""
    model = toy.resnet_model()
    model['backbone'].update(depth=50, base_channels=4, with_cp=True)
    model['neck']['in_channels'] = [16, 32, 64]
    teacher = _teacher(tmp_path / 't.pth', model)
    assert toy.build(model).backbone.layer3[0].with_cp
    assert not any(getattr(m, 'with_cp', False) for m in teacher.net.modules())
    pixels = toy.images(1).requires_grad_()
    total = sum(f.square().mean() for f in teacher.adapter.encode(pixels).feats)
    assert torch.autograd.grad(total, pixels)[0].any()


def test_missing_unexpected_and_mismatched_keys_are_named(tmp_path, state):
    other = toy.build(toy.detector_model(classes=4)).state_dict()
    partial = {k: v for k, v in state.items() if not k.startswith('neck.')}
    extra = dict(state, **{'backbone.rope': torch.ones(1)})
    cases = [
        (partial, 'neck'),
        (extra, r'backbone\.rope'),
        (other, r'roi_head\.bbox_head\.fc_cls\.weight'),
        ({k: v for k, v in state.items() if k.startswith('backbone')}, 'roi_head'),
    ]
    for i, (content, name) in enumerate(cases):
        teacher = _teacher(_save(tmp_path / f'{i}.pth', content))
        before = {k: v.clone() for k, v in teacher.net.state_dict().items()}
        with pytest.raises(CheckpointMismatchError, match=name):
            teacher.load()
        assert not teacher.loaded
        after = teacher.net.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        _teacher(tmp_path / 'nowhere.pth').load()
    (tmp_path / 'text.pth').write_text('hello')
    with pytest.raises(CheckpointError, match='text.pth'):
        _teacher(tmp_path / 'text.pth').load()


def test_stored_labels_of_other_classes(tmp_path):
    config = toy.whole(toy.classifier_model(classes=5), 'mmpretrain')
    for classes in (4, 5):
        labels = StoredLabels(0, classes)
        labels.add(toy.images(2, 32), torch.randn(2, classes), 2)
        labels.save(tmp_path / f'{classes}.pth')
    teacher = Teacher(config, labels=str(tmp_path / '4.pth'))
    with pytest.raises(ValueError, match='4.pth are of 4 classes, the teacher has 5'):
        teacher.load()
    Teacher(config, labels=str(tmp_path / '5.pth')).load()


class Malicious:
    """Runs a command where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_malicious_file_runs_nothing(tmp_path, state):
    mark = tmp_path / 'was_run'
    torch.save(dict(state_dict=state, meta=Malicious(mark)), tmp_path / 'bad.pth')
    with pytest.raises(UnsafeCheckpointError, match='mkdir'):
        _teacher(tmp_path / 'bad.pth').load()
    assert not mark.exists()


def test_the_loaders_order_can_be_set(tmp_path):
    pre = toy.preprocessor(bgr_to_rgb=False)
    model = dict(toy.detector_model(), data_preprocessor=pre)
    assert _teacher(tmp_path / 't.pth', model).adapter.normalizer.order == 'bgr'
    rgb = _teacher(tmp_path / 't.pth', model, input_order='rgb')
    assert rgb.adapter.normalizer.order == 'rgb'


def test_a_derived_student_is_fed_as_its_teacher(tmp_path):
    cfg = toy.run_config(tmp_path)
    plain = MODELS.build(cfg['model'])
    orders = dict(rgb='bgr', bgr='rgb')
    own = plain.teacher.adapter.normalizer.order
    assert plain.student.adapter.normalizer.order == own
    for order in orders:
        cfg['model']['teacher']['input_order'] = order
        built = MODELS.build(cfg['model'])
        networks = (built.teacher, built.student)
        assert len({n.adapter.normalizer.order for n in networks}) == 1
        assert built.student_input_order == order


@pytest.fixture(scope='module')
def distiller(tmp_path_factory) -> DataFreeDistiller:
    cfg = toy.run_config(tmp_path_factory.mktemp('teacher'))
    distiller = MODELS.build(cfg['model'])
    distiller.teacher.load()
    return distiller


def test_is_no_part_of_the_distiller(distiller):
    own = {id(p) for p in distiller.parameters()} | {id(b) for b in distiller.buffers()}
    assert not own & {id(p) for p in distiller.teacher.net.parameters()}
    assert not any(m is distiller.teacher.net for m in distiller.modules())
    assert set(distiller.state_dict()) == set(distiller.student.net.state_dict())


def test_training_mode_and_initialisation_do_not_reach_it(distiller):
    before = {k: v.clone() for k, v in distiller.teacher.net.state_dict().items()}
    distiller.train()
    assert not any(m.training for m in distiller.teacher.net.modules())
    distiller.requires_grad_(True)
    assert not any(p.requires_grad for p in distiller.teacher.net.parameters())
    distiller.student.net.init_weights()
    super(DataFreeDistiller, distiller).init_weights()
    after = distiller.teacher.net.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_deep_copies_share_it_and_own_their_student(distiller):
    twin = copy.deepcopy(distiller)
    assert twin.teacher is distiller.teacher
    assert twin.student.adapter.net is twin.student.net is not distiller.student.net
    twin.load_state_dict({k: v + 1 for k, v in distiller.state_dict().items()})
    key = next(iter(distiller.state_dict()))
    assert torch.equal(twin.state_dict()[key], distiller.state_dict()[key] + 1)


def test_follows_device_and_precision(distiller):
    weight = next(distiller.teacher.net.parameters())
    for cast, dtype in (('double', torch.float64), ('half', torch.float16), ('float', torch.float)):
        getattr(distiller, cast)()
        assert weight.dtype == next(distiller.student.parameters()).dtype == dtype
    distiller.to('meta')
    assert next(distiller.teacher.net.parameters()).device.type == 'meta'
