# Procedural images, and inverted ones among them.
_base_ = 'dfkd_vit.py'
model = dict(source=dict(_delete_=True, **_base_.mixture))
