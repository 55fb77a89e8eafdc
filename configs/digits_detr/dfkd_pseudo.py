# The main job by pseudo labels alone: the student's own loss on the teacher's detections.
_base_ = '../dfkd_detr.py'
model = dict(heads=[dict(type='mmdfkd.PseudoLabelHead')])
