# SimKD: the teacher's classifier, and one loss on the feature before it (Chen et al., CVPR 2022).
#   python tools/train.py configs/simkd/simkd_vit128_to_simkd-vit88_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    student=dict(
        _delete_=True, config='{{ fileDirname }}/simkd-vit88_cifar10.py', init='config'),
    heads=[dict(type='mmdfkd.FeatureHead', align='never')])
