# Data-free distillation of DINO R50 into DINO R18 on a node of 8 GPUs.
#   bash tools/dist_train.sh configs/coco/dfkd_dino-r50_to_dino-r18_coco.py 8
# COCO is read in validation and testing only. See README.md for the checkpoint and the costs.
_base_ = './dfkd_detr-r50_to_detr-r18_coco.py'

# 1.44 M images, as many as the usual 12 epochs of COCO: 45,000 x 8 GPUs x 4.
max_iters = 45000

model = dict(
    teacher=dict(
        config='mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
        checkpoint='checkpoints/dino-4scale_r50_8xb2-12e_coco_20221202_182705-55b2bba2.pth'),
    student=dict(config='{{ fileDirname }}/dino-4scale_r18_coco.py'),
    # DINO's queries start from boxes, which mean the same to both. The encoder's proposals are those
    # of a two-stage DETR. A matching of 900 queries is left out: the student's own content is
    # trained by its own loss on the teacher's detections.
    heads=[
        dict(type='mmdfkd.EncoderMemoryHead'),
        dict(type='mmdfkd.RPNResponseHead'),
        dict(type='mmdfkd.QueryAlignedHead'),
        dict(type='mmdfkd.PseudoLabelHead', threshold=0.4, loss_weight=0.2, on_empty='lower'),
    ],
    # 900 queries are chosen among the tokens of the four levels.
    image_size=256)

train_dataloader = dict(batch_size=4)
train_cfg = dict(max_iters=max_iters, val_interval=5000)
# DINO's optimiser (Zhang et al., ICLR 2023), for twice its batch.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=500, end=max_iters, T_max=max_iters - 500, eta_min=1e-6),
]
default_hooks = dict(checkpoint=dict(interval=5000))
auto_scale_lr = dict(enable=False, base_batch_size=32)
