# Data-free distillation of DETR R50 into DETR R18 on a node of 8 GPUs.
#   bash tools/dist_train.sh configs/coco/dfkd_detr-r50_to_detr-r18_coco.py 8
# COCO is read in validation and testing only. See README.md for the checkpoint and the costs.
_base_ = [
    '../_base_/runtime.py', '../_base_/dfkd_runtime.py', '../_base_/coco_detection_800.py'
]
default_scope = 'mmdet'

# 4.3 M images: DETRs learn slowly, also from a teacher. 67,500 x 8 GPUs x 8.
max_iters = 67500
# Whole cells of stride 32, of the sides that DETR is trained and tested at.
image_size = (608, 800)
procedural = dict(type='mmdfkd.ProceduralRenderer')

model = dict(
    type='mmdfkd.DataFreeDistiller',
    teacher=dict(
        config='mmdet::detr/detr_r50_8xb2-150e_coco.py',
        checkpoint='checkpoints/detr_r50_8xb2-150e_coco_20221023_153551-436d03e8.pth'),
    # The whole published student; its backbone starts at ImageNet's weights, which the report says.
    student=dict(config='mmdet::detr/detr_r18_8xb2-500e_coco.py', init='config'),
    source=dict(
        type='mmdfkd.PooledSource',
        renderer=procedural,
        pool_size=8192,
        max_bytes=12 << 30,
        batch_size=16,
        num_workers=8),
    # Both decoders are 256 wide and read a grid of stride 32: they are asked the same queries. The
    # student's own queries are trained by the matched ones and by the teacher's detections.
    heads=[
        dict(type='mmdfkd.EncoderMemoryHead'),
        dict(type='mmdfkd.QueryAlignedHead'),
        dict(type='mmdfkd.HungarianQueryHead'),
        dict(type='mmdfkd.PseudoLabelHead', threshold=0.5, loss_weight=0.2, on_empty='lower'),
    ],
    image_size=128)

train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='mmdfkd.GlobalIndexSampler'),
    dataset=dict(type='mmdfkd.SyntheticDataset', image_size=image_size))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=7500)
# DETR's optimiser (Carion et al., ECCV 2020), for four times its batch.
optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.2))),
    clip_grad=dict(max_norm=0.1))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=500, end=max_iters, T_max=max_iters - 500, eta_min=1e-6),
]
default_hooks = dict(checkpoint=dict(interval=7500))
auto_scale_lr = dict(enable=False, base_batch_size=64)
