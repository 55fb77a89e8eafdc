# What the data-free runs of every small classifier share, whatever its set: the student's shape, the
# images and how they are drawn, the heads, the optimiser. A run adds teacher and steps.
batch_size = 16
procedural = dict(type='mmdfkd.ProceduralRenderer')
# The teacher says how often each kind of image is drawn.
pooled = dict(
    type='mmdfkd.PooledSource',
    renderer=[
        procedural,
        *(dict(type='mmdfkd.GlyphRenderer', ground=ground) for ground in ('dark', 'light', 'any')),
    ],
    pool_size=8192)
# The rivals' sources, in the same words for every set.
noise = dict(type='mmdfkd.NoiseRenderer')
refined = dict(
    type='mmdfkd.RefinedSource', source=pooled, every=80, batch=32, steps=8, share=0.25)
# A set of images made once from procedural ones, drawn alone or among these.
inverted = dict(
    type='mmdfkd.PixelInversionSource', source=pooled, images=320, steps=24, checks=3, share=1.0)
mixture = dict(
    type='mmdfkd.PixelInversionSource', source=pooled, images=320, steps=24, checks=3, share=0.5)
# Methods with a generator: one step of it to a step of the student, on as many images.
generator = dict(type='mmdfkd.PresetGeneratorSource', preset='dfkt', batch=batch_size)
dafl = dict(type='mmdfkd.PresetGeneratorSource', preset='dafl', batch=batch_size)

model = dict(
    type='mmdfkd.DataFreeDistiller',
    # Half of the teacher's parameters: every block, 3 of 4 heads and thin MLPs. Fewer blocks start
    # further from the teacher (docs/notes/classifiers.md).
    student=dict(type='mmdfkd.Shrunk', width=0.75, depth=1, mlp=0.56, init='inherit'),
    # The best of the sources by a signal without data (docs/notes/classifiers.md).
    source=pooled,
    heads=[
        dict(type='mmdfkd.LogitHead'),
        # Every block's tokens: what a random student learns slowest is to see, and answers alone do
        # not say it.
        dict(
            type='mmdfkd.FeatureHead',
            taps_student=[f'backbone.layers.{i}' for i in range(6)],
            loss_weight=2.0),
    ])
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=0,
    # Said here because mmpretrain's own tool has other defaults.
    persistent_workers=False,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='mmdfkd.GlobalIndexSampler'),
    dataset=dict(type='mmdfkd.SyntheticDataset'))
optim_wrapper = dict(
    type='OptimWrapper',
    # For an inherited student; a random one takes four times as much.
    optimizer=dict(type='AdamW', lr=2.5e-4, betas=(0.9, 0.99), weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.),
    clip_grad=dict(max_norm=5.0))
