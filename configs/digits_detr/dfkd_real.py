# The ceiling, not data-free: the teacher's training images without their labels.
_base_ = '../dfkd_detr.py'
model = dict(data_free=False, image_size=128, source=dict(_delete_=True, type='mmdfkd.DatasetSource', order='bgr'))
train_dataloader = dict(
    _delete_=True,
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset',
        data_root=_base_.data_root,
        metainfo=dict(classes=_base_.classes),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(128, 128), keep_ratio=True),
            dict(type='PackDetInputs'),
        ]))
