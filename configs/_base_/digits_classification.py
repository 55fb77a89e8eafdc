# The embedded classification set: single handwritten digits of 32 px.
# Written by tools/dataset_converters/digits_classification.py.
data_root = '{{ fileDirname }}/../../data/digits_classification/'
classes = ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=32),
    dict(type='PackInputs'),
]
val_dataloader = dict(
    batch_size=100,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix='val',
        metainfo=dict(classes=classes),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator
