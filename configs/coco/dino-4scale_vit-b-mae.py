# DINO with a ViTDet-B for its backbone: mmdet's DINO otherwise. A teacher. There is no published
# checkpoint under these names; train it as mmdet trains DINO, from MAE's weights:
#   python tools/train.py configs/coco/dino-4scale_vit-b-mae.py
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
custom_imports = dict(imports=['mmdfkd'], allow_failed_imports=False)

model = dict(
    # 1,024 px hold 64 x 64 tokens.
    data_preprocessor=dict(pad_size_divisor=64),
    backbone=dict(
        _delete_=True,
        type='mmdfkd.ViTDet',
        # Windows of 14 x 14 tokens; blocks 2, 5, 8 and 11 attend over the whole image.
        arch='base',
        img_size=1024,
        patch_size=16,
        window_size=14,
        use_rel_pos=True,
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth')),
    # Strides 8, 16, 32 and 64, as of DINO's four scales.
    neck=dict(
        _delete_=True,
        type='mmdfkd.SimpleFPN',
        in_channels=768,
        out_channels=256,
        scale_factors=(2, 1, 0.5),
        num_outs=4))
# DINO's optimiser; ViTDet's layer decay (Li et al., ECCV 2022).
optim_wrapper = dict(
    constructor='mmdfkd.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, decay_rate=0.7))
