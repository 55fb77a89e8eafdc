# What the data-free runs of every small detector share, whatever its set and image size: the student's
# shape, the images and how they are drawn, the heads, the optimiser. A run adds teacher and steps.
procedural = dict(type='mmdfkd.ProceduralRenderer')
pool_size = 2048
pooled = dict(type='mmdfkd.PooledSource', renderer=procedural, pool_size=pool_size)
# The rivals' sources, in the same words for every set.
noise = dict(type='mmdfkd.NoiseRenderer')
refined = dict(
    type='mmdfkd.RefinedSource', source=pooled, every=20, batch=16, steps=8, share=0.25)
# Objects: a set of scenes made once, drawn alone or among procedural images.
inverted = dict(
    type='mmdfkd.LayoutInversionSource', source=pooled, images=128, steps=20, share=1.0)
mixture = dict(
    type='mmdfkd.LayoutInversionSource', source=pooled, images=128, steps=20, share=0.5)

model = dict(
    type='mmdfkd.DataFreeDistiller',
    # Under 40 % of the teacher's parameters; docs/notes/spine.md has its rivals.
    student=dict(
        type='mmdfkd.Shrunk', width=0.7, depth=0.67, mlp=0.6, neck=0.75, head=0.6, init='inherit'),
    source=inverted,
    heads=[
        dict(type='mmdfkd.PyramidHead'),
        dict(type='mmdfkd.RPNResponseHead'),
        dict(type='mmdfkd.RoIResponseHead'),
    ])
train_dataloader = dict(
    num_workers=0,
    sampler=dict(type='mmdfkd.GlobalIndexSampler'),
    dataset=dict(type='mmdfkd.SyntheticDataset'))
# Rate, and scenes alone, by agreement with the teacher on other scenes (docs/notes/layout_inversion.md).
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.),
    clip_grad=dict(max_norm=5.0))
