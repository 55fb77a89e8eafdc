# As dfkd_features_first.py, and in that part every block also follows its teacher's blocks on its own.
_base_ = './dfkd_features_first.py'
model = dict(
    heads=[
        *_base_.model.heads,
        dict(
            type='mmdfkd.BlockHead',
            schedule=dict(begin=0, end=int(0.3 * _base_.max_iters), start=1.0, stop=0.0)),
    ])
