# What the data-free runs of every small DETR share: images and optimiser are those of all small
# detectors; a DETR's own are the student's shape and the heads.
_base_ = './dfkd_detector.py'
model = dict(
    # Under half of the teacher's parameters: every block, thin (2 of 5 heads), three quarters of the
    # decoder's layers, three fifths of the hidden units of encoder and decoder, whose width stays.
    # The neck's convolutions have 40 channels between them: a thin backbone fills no more, and at 256
    # the second of them was a sixth of the student (docs/notes/detr.md).
    student=dict(
        _delete_=True,
        type='mmdfkd.Shrunk',
        width=0.4,
        depth=1.0,
        mlp=0.4,
        neck=0.16,
        head=0.6,
        decoder=0.75,
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
