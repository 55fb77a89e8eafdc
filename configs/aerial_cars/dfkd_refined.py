# Procedural images, a share of them refined through teacher and student.
_base_ = '../dfkt/drone_detr.py'
model = dict(source=dict(_delete_=True, **_base_.refined))
