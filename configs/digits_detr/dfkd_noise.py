# The floor: Gaussian noise instead of images; the rest is the main job.
_base_ = '../dfkd_detr.py'
model = dict(source=dict(_delete_=True, type='mmdfkd.RenderedSource'))
train_dataloader = dict(
    num_workers=1, persistent_workers=True, dataset=dict(renderer=_base_.noise))
