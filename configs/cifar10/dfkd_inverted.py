# Images in which the teacher sees each class, made from procedural ones by steps on their pixels.
_base_ = 'dfkd_vit.py'
model = dict(source=dict(_delete_=True, **_base_.inverted))
