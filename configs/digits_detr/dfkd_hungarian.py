# The main job by matched queries (DETRDistill) instead of aligned ones (KD-DETR).
_base_ = '../dfkd_detr.py'
model = dict(
    heads=[
        dict(type='mmdfkd.EncoderMemoryHead'),
        dict(type='mmdfkd.RPNResponseHead'),
        dict(type='mmdfkd.HungarianQueryHead'),
    ])
