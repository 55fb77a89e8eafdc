# Procedural images from a teacher-scored pool, without refinement.
_base_ = '../dfkd_detr.py'
model = dict(source=dict(_delete_=True, **_base_.pooled))
