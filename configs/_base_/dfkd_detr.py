# What the data-free runs of every small DETR share: images and optimiser are those of all small
# detectors; a DETR's own are the student's shape and the heads.
_base_ = './dfkd_detector.py'
model = dict(
    # Under half of the teacher's parameters: 4 of 6 blocks, 3 of 5 heads, half of the decoder's layers
    # and of the hidden units; the decoder's width stays.
    student=dict(
        _delete_=True,
        type='mmdfkd.Shrunk',
        width=0.6,
        depth=0.67,
        mlp=0.5,
        head=0.5,
        decoder=0.5,
        init='inherit'),
    heads=[
        # What the decoder reads, which of it becomes a query, and what it says at the teacher's queries
        # and at the student's own. All queries count alike: a second one of an object has to be silent.
        dict(type='mmdfkd.EncoderMemoryHead'),
        dict(type='mmdfkd.RPNResponseHead'),
        dict(type='mmdfkd.QueryAlignedHead', fresh=False, floor=1.0),
        dict(type='mmdfkd.StudentQueryHead'),
    ])
# Heads and rate by mAP on training images of the digits (docs/notes/detr.md).
optim_wrapper = dict(optimizer=dict(lr=5e-4))
