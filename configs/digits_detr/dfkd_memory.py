# The main job by the encoder's memory alone: what the decoder reads, and nothing that it says.
_base_ = '../dfkd_detr.py'
model = dict(heads=[dict(type='mmdfkd.EncoderMemoryHead')])
