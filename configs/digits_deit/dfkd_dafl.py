# DAFL: a convolutional generator beside the student, its teacher the discriminator.
_base_ = 'dfkd_vit.py'
# A generator starts at a quarter of the image.
base = _base_.image_size // 4
model = dict(source=dict(_delete_=True, **_base_.dafl, generator=dict(base=base)))
