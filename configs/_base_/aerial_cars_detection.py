# Vehicles seen from drones, 320 px tiles: put the set, with its `annotations` and `images`, anywhere, and
#   python tools/dataset_converters/tile_coco.py <folder of the set> data/aerial_cars_tiles --merge vehicle
# One class: 2,688 of its 2,844 training boxes are cars, 5 are trucks.
data_root = '{{ fileDirname }}/../../data/aerial_cars_tiles/'
classes = ('vehicle', )
image_scale = (320, 320)

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='images/'),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + 'annotations/instances_val.json',
    metric='bbox')
test_evaluator = val_evaluator
