"""Published configs of every family, unchanged, as teacher and as student of a whole run."""

import gc
import json

import pytest
import torch
import toy
from mmdet.datasets import CocoDataset
from tiny_runs import ROOT

DETR = (
    dict(type='mmdfkd.EncoderMemoryHead'),
    dict(type='mmdfkd.QueryAlignedHead', fresh=False),
    dict(type='mmdfkd.HungarianQueryHead'),
)
TWO_STAGE = (
    dict(type='mmdfkd.PyramidHead'),
    dict(type='mmdfkd.RPNResponseHead'),
    dict(type='mmdfkd.RoIResponseHead'),
)
MASKS = (*TWO_STAGE, dict(type='mmdfkd.MaskResponseHead'))
ONE_STAGE = (dict(type='mmdfkd.PyramidHead'), dict(type='mmdfkd.DenseResponseHead'))
#: Config, heads, edge of the images in pixels and, where it is another, the student's config.
#: DINO chooses 900 queries among its tokens.
#: ViTDet's configs are this project's own; the large one is in test_configs/test_coco.py, smaller.
PUBLISHED = dict(
    detr=('mmdet::detr/detr_r18_8xb2-500e_coco.py', DETR, 64),
    conditional=('mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py', DETR, 64),
    dab=('mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py', DETR, 64),
    deformable=('mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', DETR[:2], 64),
    # A matching of 900 queries, and their own pass of the decoder, take most of a step.
    dino=('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', DETR[:2], 224),
    faster=('mmdet::faster_rcnn/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py', TWO_STAGE, 64),
    mask=('mmdet::mask_rcnn/mask-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py', MASKS, 64),
    cascade=('mmdet::cascade_rcnn/cascade-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py', TWO_STAGE, 64),
    vitdet=(str(ROOT / 'configs/digits/vitdet_digits.py'), TWO_STAGE, 64),
    vitdet_b=(str(ROOT / 'configs/coco/vitdet_mask-rcnn_vit-b-mae_lsj-100e.py'), MASKS, 64),
    retina=('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', ONE_STAGE, 64),
    fcos=(
        'mmdet::fcos/fcos_r18_fpn_gn-head-center-normbbox-centeronreg-giou_8xb8-amp-lsj-200e_coco.py',
        ONE_STAGE,
        64,
    ),
    gfl=('mmdet::gfl/gfl_r50_fpn_1x_coco.py', ONE_STAGE, 64),
    # Heads behind a stage of the backbone, and no pyramid.
    c4=('mmdet::faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco.py', TWO_STAGE[1:], 64),
    smaller_faster=(
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        TWO_STAGE,
        64,
        'mmdet::faster_rcnn/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py',
    ),
    smaller_retina=(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        ONE_STAGE,
        64,
        'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    ),
    rtmdet=('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', ONE_STAGE, 64),
)


@pytest.fixture(autouse=True)
def _room():
    """Networks of published size: one at a time in memory."""
    yield
    gc.collect()


def coco_loader(folder, size: int, names: tuple[str, ...]) -> dict:
    """A tiny set with these classes."""
    toy.write_coco(folder, count=1)
    path = folder / 'annotations.json'
    content = json.loads(path.read_text())
    content['categories'] = [dict(id=i, name=name) for i, name in enumerate(names)]
    path.write_text(json.dumps(content))
    loader = toy.coco_loader(folder)
    loader['dataset']['metainfo'] = dict(classes=names)
    loader['dataset']['pipeline'][1]['scale'] = (size, size)
    return loader


# Every kind of detector is left: a small ViTDet, and two-stage ones with a pyramid.
SLOW = ('vitdet_b', 'c4')


@pytest.mark.parametrize(
    'kind', [pytest.param(k, marks=pytest.mark.slow if k in SLOW else ()) for k in PUBLISHED]
)
def test_two_steps_and_a_test(kind, tmp_path):
    config, heads, size, *smaller = PUBLISHED[kind]
    student = smaller[0] if smaller else config
    torch.manual_seed(0)
    weights = tmp_path / 'teacher.pth'
    weights.touch()
    names = tuple('0123456789') if 'digits' in config else CocoDataset.METAINFO['classes']
    loader = coco_loader(tmp_path / 'data', size, names)
    cfg = toy.run_config(
        tmp_path,
        model_teacher=dict(config=config, checkpoint=str(weights)),
        model_student=dict(config=student, init=str(tmp_path / 'student.pth')),
        model_heads=list(heads),
        model_image_size=size,
        # No layer is fitted that needs more.
        model_inheritance=dict(images=1),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-4)),
        param_scheduler=None,
        val_dataloader=loader,
        test_dataloader=loader,
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', interval=-1, by_epoch=False, save_last=False),
        ),
        custom_hooks=[dict(type='mmdfkd.DistillHook')],
    )
    cfg['train_dataloader']['batch_size'] = 1
    cfg['train_dataloader']['dataset']['image_size'] = size
    cfg['train_dataloader']['dataset']['metainfo'] = None
    runner = toy.runner_of(cfg)
    distiller = runner.model
    # As published files: the weights of both networks, which are random so far. Not init_weights():
    # where norms are frozen it leaves every residual branch without a say.
    net = distiller.student.net
    torch.save(dict(meta={}, state_dict=distiller.teacher.net.state_dict()), weights)
    torch.save(dict(state_dict=net.state_dict()), tmp_path / 'student.pth')
    # RTMDet has SyncBN as published, which runs on a GPU alone.
    if not torch.cuda.is_available():
        both = (*net.modules(), *distiller.teacher.net.modules())
        assert not any(isinstance(module, torch.nn.SyncBatchNorm) for module in both)
    before = toy.start_of(distiller)
    runner.train()
    assert distiller.teacher.loaded
    trained = dict(net.named_parameters())
    # A query's content is zero where it enters the decoder: what reads that is not moved.
    still = [
        n
        for n, p in before.items()
        if torch.equal(p, trained[n]) and not n.startswith('decoder.layers.0.self_attn')
    ]
    assert before and still == []
    # The test of the plain student gives what its validation gave.
    tested, seen = runner.test(), runner.message_hub.log_scalars
    assert {'val/time', 'test/time'} <= set(seen)
    assert tested.get('coco/bbox_mAP', -1) == (
        seen['val/coco/bbox_mAP'].current() if 'val/coco/bbox_mAP' in seen else -1
    )
