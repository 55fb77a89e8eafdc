# Data-free distillation of DETR R101 into DETR R18 on a node of 8 GPUs.
#   bash tools/dist_train.sh configs/coco/dfkd_detr-r101_to_detr-r18_coco.py 8
# COCO is read in validation and testing only. See README.md for the checkpoint and the costs.
_base_ = './dfkd_detr-r50_to_detr-r18_coco.py'

model = dict(
    teacher=dict(
        config='mmdet::detr/detr_r101_8xb2-500e_coco.py',
        # The authors' weights under mmdet's names: tools/model_converters/detr_checkpoint.py.
        checkpoint='checkpoints/detr_r101_8xb2-500e_coco.pth'))
