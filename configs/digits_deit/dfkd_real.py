# The ceiling, not data-free: the teacher's training images without their labels.
_base_ = 'dfkd_vit.py'
model = dict(data_free=False, image_size=_base_.image_size, source=dict(_delete_=True, type='mmdfkd.DatasetSource', order='bgr'))
train_dataloader = dict(
    _delete_=True,
    batch_size=_base_.batch_size,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root=_base_.data_root,
        data_prefix='train',
        metainfo=dict(classes=_base_.classes),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=_base_.image_size),
            dict(type='PackInputs'),
        ]))
