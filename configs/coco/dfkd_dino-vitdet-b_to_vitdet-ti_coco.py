# Data-free distillation of DINO with ViTDet-B into DINO with ViTDet-Ti on a node of 8 GPUs.
#   bash tools/dist_train.sh configs/coco/dfkd_dino-vitdet-b_to_vitdet-ti_coco.py 8
_base_ = ['dfkd_dino-vitdet-b_to_vitdet-s_coco.py']

# ViT-Ti: 192 channels, 3 heads of 64, 12 blocks.
model = dict(student=dict(width=0.25, mlp=0.25))
