# Procedural images from a teacher-scored pool.
_base_ = 'dfkd_vit.py'
model = dict(source=dict(_delete_=True, **_base_.pooled))
