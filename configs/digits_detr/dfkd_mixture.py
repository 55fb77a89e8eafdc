# Procedural images, and scenes with objects among them.
_base_ = '../dfkd_detr.py'
model = dict(source=dict(_delete_=True, **_base_.mixture))
