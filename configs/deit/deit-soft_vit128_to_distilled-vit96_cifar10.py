# DeiT: the class token learns labels, the distillation token the teacher (Touvron et al., ICML 2021); soft.
#   python tools/train.py configs/deit/deit-soft_vit128_to_distilled-vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    student=dict(
        _delete_=True, config='{{ fileDirname }}/distilled-vit96_cifar10.py', init='random'),
    heads=[dict(type='mmdfkd.DistillationTokenHead', mode='soft', alpha=0.5, temperature=3.0)])
