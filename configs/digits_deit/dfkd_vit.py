# configs/dfkd_deit.py with the student of the other small classifiers: half of the teacher's parameters.
#   python tools/train.py configs/digits_deit/dfkd_vit.py --work-dir work_dirs/dfkd_vit_digits
_base_ = '../dfkd_deit.py'
model = dict(student=dict(width=0.75, depth=0.84, mlp=0.8))
