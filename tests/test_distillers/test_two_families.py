"""Teacher and student of different families of detectors, in whole runs."""

import pytest
import torch
import toy
from mmengine.registry import DefaultScope

from mmdfkd.registry import MODELS

PSEUDO = dict(type='mmdfkd.PseudoLabelHead', threshold=0.05)
BOXES = dict(type='mmdfkd.BoxResponseHead')
IOU = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.3)
RANDOM = dict(type='RandomSampler', num=16, pos_fraction=0.5, add_gt_as_proposals=False)
TRAIN = dict(
    rpn=dict(assigner=IOU, sampler=RANDOM, allowed_border=-1, pos_weight=-1),
    rpn_proposal=dict(nms_pre=60, max_per_img=12, nms=dict(type='nms', iou_threshold=0.7)),
    rcnn=dict(assigner=IOU, sampler=dict(RANDOM, add_gt_as_proposals=True), pos_weight=-1),
)


def one_stage(kind):
    model = toy.one_stage_model(kind)
    model['data_preprocessor']['pad_size_divisor'] = 16
    return model


PAIRS = dict(
    vitdet_to_fcos=(
        toy.detector_model(),
        one_stage('fcos'),
        (
            PSEUDO,
            dict(type='mmdfkd.PyramidHead'),
            dict(type='mmdfkd.FGDHead'),
            dict(type='mmdfkd.ManifoldHead', levels=[1], taps_student=(), random_weight=0.0),
        ),
    ),
    detr_to_retina=(toy.detr_model('deformable'), one_stage('retina'), (PSEUDO, BOXES)),
    gfl_to_vitdet=(one_stage('gfl'), dict(toy.detector_model(), train_cfg=TRAIN), (PSEUDO, BOXES)),
    vitdet_to_detr=(toy.detector_model(), toy.detr_model('detr'), (PSEUDO, BOXES)),
)
FAMILIES = dict(
    vitdet_to_fcos=('two-stage', 'one-stage'),
    detr_to_retina=('DETR-like', 'one-stage'),
    gfl_to_vitdet=('one-stage', 'two-stage'),
    vitdet_to_detr=('two-stage', 'DETR-like'),
)


def run_of(folder, pair):
    model, student, heads = PAIRS[pair]
    net = toy.build(model)
    torch.save(dict(meta={}, state_dict=net.state_dict()), folder / 'teacher.pth')
    toy.write_coco(folder / 'data', None)
    torch.save(dict(state_dict=toy.build(student, 1).state_dict()), folder / 'student.pth')
    return toy.run_config(
        folder,
        model_teacher=dict(config=toy.whole(model), checkpoint=str(folder / 'teacher.pth')),
        model_student=dict(config=toy.whole(student), init=str(folder / 'student.pth')),
        model_heads=list(heads),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3)),
        param_scheduler=None,
    )


@pytest.mark.parametrize('pair', PAIRS)
def test_two_steps_and_a_test(pair, tmp_path):
    runner = toy.runner_of(run_of(tmp_path, pair))
    distiller = runner.model
    families = distiller.teacher.adapter.family, distiller.student.adapter.family
    assert families == FAMILIES[pair]
    if pair == 'vitdet_to_fcos':
        # Strides 4, 8 and 16 beside 8 to 128.
        assert distiller.student.heads[1].pairs == ((0, 1), (1, 2))
    before = toy.start_of(distiller)
    runner.train()
    logged = runner.message_hub.log_scalars
    assert 'val/time' in logged and logged['train/loss_pseudo'].current() > 0
    if BOXES in PAIRS[pair][2]:
        assert all(logged[f'train/loss_box_{x}'].current() > 0 for x in ('cls', 'l1', 'giou'))
    trained = dict(distiller.student.net.named_parameters())
    # FCOS scales each level; one where no detection lies is not moved.
    still = [n for n, p in before.items() if torch.equal(p, trained[n]) and '.scales.' not in n]
    assert before and still == []
    assert all(p.grad is None for p in distiller.teacher.net.parameters())


def test_what_does_not_go_together_is_named(tmp_path):
    cfg = run_of(tmp_path, 'detr_to_retina')['model']

    def built(**changes):
        with DefaultScope.overwrite_default_scope('mmdet'):
            return MODELS.build(dict(cfg, **changes))

    strict = [PSEUDO, dict(type='mmdfkd.RoIResponseHead'), dict(type='mmdfkd.QueryAlignedHead')]
    with pytest.raises(
        ValueError,
        match=r'DETR-like network and the student a one-stage.*RoIResponseHead, QueryAlignedHead '
        r'compares.*PseudoLabelHead',
    ):
        built(heads=strict)
    with pytest.raises(ValueError, match='inherits from its own family'):
        built(student=dict(cfg['student'], init='inherit'))
    classifier = toy.whole(toy.classifier_model(classes=3), 'mmpretrain')
    with pytest.raises(ValueError, match='both must be detectors'):
        built(student=dict(config=classifier, init='random'))
    other = toy.one_stage_model('retina', classes=5)
    with pytest.raises(ValueError, match='has 3 classes and the student 5: set num_classes'):
        built(student=dict(config=toy.whole(other), init='random'))
