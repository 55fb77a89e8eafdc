# Procedural images, a share of them refined through teacher and student.
_base_ = '../dfkd_vitdet.py'
model = dict(
    source=dict(
        _delete_=True,
        type='mmdfkd.RefinedSource',
        source=dict(
            type='mmdfkd.PooledSource', renderer=_base_.procedural, pool_size=_base_.pool_size),
        every=20,
        batch=16,
        steps=8,
        share=0.25))
