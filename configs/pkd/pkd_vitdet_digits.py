# PKD: levels of the pyramid up to scale and offset (Cao et al., NeurIPS 2022); the weight of MMRazor.
#   python tools/train.py configs/pkd/pkd_vitdet_digits.py
_base_ = '../dfkd_vitdet.py'
model = dict(
    heads=[
        # 6 for each of three levels.
        dict(type='mmdfkd.PyramidHead', mode='pkd', loss_weight=18.0),
        dict(type='mmdfkd.RPNResponseHead'),
        dict(type='mmdfkd.RoIResponseHead'),
    ])
