# Scenes with objects alone: layout inversion of the teacher.
_base_ = '../dfkd_detr.py'
model = dict(source=dict(_delete_=True, **_base_.inverted))
