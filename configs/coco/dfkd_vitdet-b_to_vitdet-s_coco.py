# Data-free distillation of ViTDet-B into ViTDet-S on a node of 8 GPUs.
#   bash tools/dist_train.sh configs/coco/dfkd_vitdet-b_to_vitdet-s_coco.py 8
# COCO is read in validation and testing only. See README.md for the checkpoint and the costs.
_base_ = [
    '../_base_/runtime.py', '../_base_/dfkd_runtime.py', '../_base_/coco_instance_1024.py'
]
default_scope = 'mmdet'

# 1.44 M images, as many as the usual 12 epochs of COCO: 45,000 x 8 GPUs x 4.
max_iters = 45000
image_size = 1024
procedural = dict(type='mmdfkd.ProceduralRenderer')

model = dict(
    type='mmdfkd.DataFreeDistiller',
    teacher=dict(
        config='{{ fileDirname }}/vitdet_mask-rcnn_vit-b-mae_lsj-100e.py',
        checkpoint='checkpoints/vitdet_mask-rcnn_vit-b-mae_lsj-100e_20230328_153519-e15fe294.pth'),
    # ViT-S: 384 channels, 6 heads of 64, 12 blocks. Pyramid and heads keep the teacher's widths: the
    # pyramids are compared without a layer between, and every head starts as the teacher's own.
    student=dict(
        type='mmdfkd.Shrunk', width=0.5, depth=1.0, mlp=0.5, neck=1.0, head=1.0, init='inherit'),
    inheritance=dict(images=128),
    # 12 GiB of host memory in each process.
    source=dict(
        type='mmdfkd.PooledSource',
        renderer=procedural,
        pool_size=4096,
        max_bytes=12 << 30,
        batch_size=4,
        num_workers=8),
    heads=[
        dict(type='mmdfkd.PyramidHead'),
        dict(type='mmdfkd.RPNResponseHead'),
        dict(type='mmdfkd.RoIResponseHead'),
        dict(type='mmdfkd.MaskResponseHead'),
    ])

train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='mmdfkd.GlobalIndexSampler'),
    dataset=dict(type='mmdfkd.SyntheticDataset', image_size=image_size))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=5000)
# ViTDet's optimiser (Li et al., ECCV 2022). No layer decay: every block of the student is new.
optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=500, end=max_iters, T_max=max_iters - 500, eta_min=1e-6),
]
default_hooks = dict(checkpoint=dict(interval=5000))
auto_scale_lr = dict(enable=False, base_batch_size=32)
