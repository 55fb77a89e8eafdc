"""To the toolbox the distiller is its student; what does not fit is refused when it is built."""

import copy

import pytest
import torch
import toy
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import get_state_dict, load_state_dict

from mmdfkd.utils.key_report import CheckpointMismatchError


@pytest.fixture
def distiller(tmp_path):
    return MODELS.build(toy.run_config(tmp_path)['model'])


def test_its_weights_are_the_plain_students(distiller):
    """By torch's own state dict and by mmengine's, which does not call it."""
    net = distiller.student.net
    for state in (distiller.state_dict(), get_state_dict(distiller)):
        assert set(state) == set(net.state_dict())
        assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())


def test_loads_plain_weights_and_keeps_its_heads(distiller):
    heads = {k: v.clone() for k, v in distiller.student.heads.state_dict().items()}
    plain = {k: torch.full_like(v, 2) for k, v in distiller.student.net.state_dict().items()}
    load_state_dict(distiller, dict(plain), strict=False)
    assert all(v.eq(2).all() for v in distiller.student.net.state_dict().values())
    after = distiller.student.heads.state_dict()
    assert heads and all(torch.equal(heads[k], after[k]) for k in heads)


@pytest.mark.parametrize('strict', [True, False])
def test_loading_is_strict_whatever_the_toolbox_says(distiller, strict):
    state = distiller.state_dict()
    first = next(iter(state))
    before = state[first].clone()
    del state[list(state)[-1]]
    state[first] = state[first] + 1
    with pytest.raises(CheckpointMismatchError, match='missing'):
        load_state_dict(distiller, state, strict=strict)
    assert torch.equal(distiller.state_dict()[first], before)


def test_a_top_level_preprocessor_of_the_run_is_the_students(tmp_path):
    """The Runner hands it over; inputs in training and in testing must agree."""
    pre = toy.preprocessor(mean=[1.0, 2.0, 3.0], bgr_to_rgb=False)
    cfg = toy.run_config(tmp_path, model_data_preprocessor=pre)
    distiller = MODELS.build(cfg['model'])
    assert distiller.data_preprocessor.mean.flatten().tolist() == [1, 2, 3]
    assert distiller.data_preprocessor is distiller.student.net.data_preprocessor
    assert distiller.student.adapter.normalizer.mean.flatten().tolist() == [1, 2, 3]
    assert distiller.student.adapter.normalizer.order == 'bgr'
    assert distiller.student_cfg.model.data_preprocessor.mean == [1, 2, 3]


def test_other_classes_are_refused(tmp_path):
    student = dict(config=toy.whole(toy.resnet_model(classes=4)))
    with pytest.raises(ValueError, match='teacher has 3 classes and the student 4'):
        MODELS.build(toy.run_config(tmp_path, model_student=student)['model'])


def test_another_family_is_refused(tmp_path):
    student = dict(config=toy.whole(toy.classifier_model(classes=3), 'mmpretrain'))
    with pytest.raises(ValueError, match='teacher is a two-stage network.*student a classifier'):
        MODELS.build(toy.run_config(tmp_path, model_student=student)['model'])


@pytest.mark.parametrize(
    ('student', 'message'),
    [
        (dict(neck=1.0), None),
        (dict(embed_dims=64, head_dims=8), "embed_dims is 64, more than the teacher's"),
        (dict(num_layers=9, global_indices=(3, 8)), "more than the teacher's"),
        (dict(head_dims=4), 'attention heads are 4 channels wide'),
    ],
)
def test_what_cannot_be_inherited_is_refused_when_it_is_built(tmp_path, student, message):
    model = copy.deepcopy(toy.run_config(tmp_path)['model'])
    model['student'] = dict(type='mmdfkd.Shrunk', width=0.5, depth=1.0, init='inherit')
    if message is None:
        assert MODELS.build(model).init == 'inherit'
        return
    cfg = toy.detector_model()
    cfg['backbone']['arch'].update(student)
    cfg['neck']['in_channels'] = cfg['backbone']['arch']['embed_dims']
    model['student'] = dict(config=toy.whole(cfg), init='inherit')
    with pytest.raises(ValueError, match=message):
        MODELS.build(model)


@pytest.mark.parametrize('images', [4, 0, 'abc', True, 8.0])
def test_too_few_images_to_inherit_on_are_refused_when_it_is_built(tmp_path, images):
    model = toy.run_config(tmp_path)['model']
    model['inheritance'] = dict(images=images)
    model['student'] = dict(model['student'], init='inherit')
    with pytest.raises(ValueError, match=f'inheritance.images={images!r} must.* at least 8'):
        MODELS.build(model)


@pytest.mark.parametrize('name', ['teacher', 'student'])
def test_a_network_that_is_no_mapping_is_refused(tmp_path, name):
    model = dict(toy.run_config(tmp_path)['model'], **{name: 'vit.py'})
    with pytest.raises(TypeError, match=f"model.{name} is a dict.* not 'vit.py'"):
        MODELS.build(model)


def test_another_runs_state_is_refused_by_name(distiller):
    distiller.seed, distiller.image_size = 1, (64, 64)
    state = distiller.distill_state()
    heads = state['heads']
    name = next(iter(heads))
    for other in ({k: v for k, v in heads.items() if k != name}, heads | {name: torch.ones(3)}):
        with pytest.raises(ValueError, match=rf'other heads, or another student.*{name}'):
            distiller.resume(dict(state, heads=other))
    with pytest.raises(ValueError, match=r'another source than the config names.*ring'):
        distiller.resume(dict(state, source=dict(ring=torch.ones(3))))
    distiller.resume(state)


def test_predicts_as_the_plain_student(distiller):
    net = toy.randomise(distiller.student.net, 0)
    distiller.eval()
    image = (toy.images(1)[0] * 255).round().byte().flip(0)
    from mmdet.structures import DetDataSample

    meta = dict(img_shape=(48, 48), ori_shape=(48, 48), scale_factor=(1.0, 1.0))

    def data():
        return dict(inputs=[image], data_samples=[DetDataSample(metainfo=dict(meta))])

    with torch.no_grad():
        own, plain = distiller.val_step(data())[0], net.test_step(data())[0]
    assert len(plain.pred_instances) > 0
    assert torch.equal(own.pred_instances.bboxes, plain.pred_instances.bboxes)
    assert torch.equal(own.pred_instances.scores, plain.pred_instances.scores)


def test_needs_its_hook(distiller):
    with pytest.raises(RuntimeError, match='mmdfkd.DistillHook'):
        distiller.init_weights()
    with pytest.raises(RuntimeError, match='mmdfkd.DistillHook'):
        distiller.train_step(dict(g=[0]), None)
