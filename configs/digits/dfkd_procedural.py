# Procedural images from a teacher-scored pool, without refinement.
_base_ = '../dfkd_vitdet.py'
model = dict(
    source=dict(
        _delete_=True, type='mmdfkd.PooledSource', renderer=_base_.procedural, pool_size=_base_.pool_size))
