# Data-free distillation of DINO with ViTDet-B into DINO with ViTDet-S on a node of 8 GPUs.
#   bash tools/dist_train.sh configs/coco/dfkd_dino-vitdet-b_to_vitdet-s_coco.py 8
# COCO is read in validation and testing only. See README.md for the checkpoint and the costs.
_base_ = './dfkd_dino-r50_to_dino-r18_coco.py'

image_size = (768, 1024)

model = dict(
    teacher=dict(
        config='{{ fileDirname }}/dino-4scale_vit-b-mae.py',
        # Not published: of the teacher's own training.
        checkpoint='checkpoints/dino-4scale_vit-b-mae.pth'),
    # ViT-S: 384 channels, 6 heads of 64, 12 blocks. Pyramid, encoder and decoder keep their widths
    # and layers.
    student=dict(
        _delete_=True,
        type='mmdfkd.Shrunk',
        width=0.5,
        depth=1.0,
        mlp=0.5,
        head=1.0,
        decoder=1.0,
        init='inherit'),
    inheritance=dict(images=128),
    source=dict(pool_size=4096, batch_size=4),
    # The pyramid, and the heads of all inherited DETRs (configs/_base_/dfkd_detr.py): the student's own
    # queries are asked of the teacher, too, and all count alike (docs/notes/detr.md).
    heads=[
        dict(type='mmdfkd.PyramidHead', floor=1.0),
        dict(type='mmdfkd.EncoderMemoryHead'),
        dict(type='mmdfkd.RPNResponseHead'),
        dict(type='mmdfkd.QueryAlignedHead', fresh=False, floor=1.0),
        dict(type='mmdfkd.StudentQueryHead'),
    ])
train_dataloader = dict(batch_size=4, dataset=dict(image_size=image_size))
