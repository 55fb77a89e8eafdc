# MNIST as an image folder: put it at data/mnist as {train,test}/<class>/<image>.png.
data_root = '{{ fileDirname }}/../../data/mnist/'
classes = ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
image_size = 28

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size),
    dict(type='PackInputs'),
]
val_dataloader = dict(
    batch_size=200,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix='test',
        metainfo=dict(classes=classes),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator
