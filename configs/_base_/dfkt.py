# "Optimizing Vision Transformers with Data-Free Knowledge Transfer" (arXiv 2408.05952) in our reading, for
# every small classifier: what is the paper's and what is ours is in configs/dfkt/README.md.
batch_size = 64
model = dict(
    type='mmdfkd.DataFreeDistiller',
    # A student of half the teacher's parameters that starts from nothing, as the paper's.
    student=dict(type='mmdfkd.Shrunk', width=0.75, depth=1, mlp=0.56, init='random'),
    # Stage A: L_G = L_adv + lambda L_attention, one step of the generator to a step of the student.
    source=dict(
        type='mmdfkd.GeneratorSource',
        generator=dict(type='mmdfkd.TransformerGenerator'),
        priors=[
            # L_adv with the teacher as a fixed discriminator: DAFL's terms and weights for CIFAR-10.
            dict(type='mmdfkd.ClassPrior', weight=0.05, mode='self'),
            dict(type='mmdfkd.InformationEntropyPrior', weight=5.0),
            # lambda L_attention: the class token looks at few patches.
            dict(type='mmdfkd.AttentionFocusPrior', weight=0.5),
        ],
        labelled=False,
        batch=batch_size,
        optimizer=dict(type='Adam', lr=1e-3, betas=(0.5, 0.999))),
    # Stage B: L_KD + L_CE + L_patch. Temperature and last weight are Attention Probe's; the labels of
    # L_CE are the teacher's decisions.
    heads=[
        dict(type='mmdfkd.LogitHead', temperature=4.0, ce_weight=1.0, hard_labels='teacher'),
        # After a third, two thirds and all of the blocks, there and here: 4, 8 and 12 of 12.
        dict(
            type='mmdfkd.ProbeHead',
            taps_student=['backbone.layers.1', 'backbone.layers.3', 'backbone.layers.5'],
            loss_weight=0.8),
    ])
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='mmdfkd.GlobalIndexSampler'),
    dataset=dict(type='mmdfkd.SyntheticDataset'))
# The rate of our random students, for the other rows.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.99), weight_decay=0.025),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.),
    clip_grad=dict(max_norm=5.0))
