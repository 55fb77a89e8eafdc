# What the runs of single methods on CIFAR-10 share: the main run's, but for a student that is shallower
# than its teacher, too, so that methods have to say which blocks go together.
_base_ = '../cifar10/dfkd_vit.py'
model = dict(
    # Just under half of the teacher's parameters: 3 of 4 heads, 5 of 6 blocks.
    student=dict(width=0.75, depth=0.84, mlp=0.8))
