# SiT (Zong et al., ECCV 2022): a ViT that merges its patches learns from its unslimmed self, data-free.
#   python tools/train.py configs/sit/sit_vit128_to_sit128_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    # Patches are given back their number, which is the image's: networks are traced at its size, too.
    image_size=_base_.image_size,
    student=dict(_delete_=True, config='{{ fileDirname }}/sit128_cifar10.py', init='inherit'),
    heads=[
        # CE + 2 KL at temperature 1, as released; the labels are the teacher's decisions.
        dict(type='mmdfkd.LogitHead', temperature=1.0, ce_weight=0.5, loss_weight=2.0),
        # Published weight 2, of mean squares; here shares of the teacher's energy.
        dict(type='mmdfkd.RecalibrationHead', loss_weight=2.0),
    ])
