"""Relation heads and the further response heads: on known content, and on tiny networks."""

import mmdfkd  # noqa: F401  isort: skip (mends torchvision before mmpretrain imports it)
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmdfkd import losses as L
from mmdfkd.adapters import Memory, Normalizer, Observation, Response, Targets, build_adapter
from mmdfkd.adapters.taps import tapped
from mmdfkd.heads import (
    DistillationTokenHead,
    LogitHead,
    ManifoldHead,
    Needs,
    NoiseAdaptedHead,
    QKVRelationHead,
    RKDHead,
    SelfSimilarityHead,
)
from mmdfkd.registry import MODELS

IMAGES = torch.zeros(2, 3, 32, 32)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def seen(taps=None, feature=None, logits=None, size=(32, 32)):
    response = None if logits is None else Response(logits=logits)
    return Observation(Memory((feature,), size, taps or {}), None, response)


def width(value):
    return value.shape[-1]


def run(head, student, teacher, targets=None):
    head.build_aligners(
        *(
            {'neck': [0], **{k: width(v) for k, v in o.memory.taps.items()}}
            for o in (student, teacher)
        )
    )
    return head(student, teacher, targets or Targets(), IMAGES)


def tokens(prefix, grid, dims, batch=3):
    return torch.randn(batch, prefix + grid[0] * grid[1], dims)


# --- relation heads on known content --------------------------------------------------------------


def test_manifold_is_the_mean_over_pairs_without_prefix_tokens():
    s = {'a': tokens(2, (4, 4), 6), 'b': tokens(2, (4, 4), 6)}
    t = {'x': tokens(1, (4, 4), 9), 'y': tokens(1, (4, 4), 9)}
    head = ManifoldHead(taps_student=['a', 'b'], taps_teacher=['x', 'y'], prefix_tokens=(2, 1))
    assert head.needs == Needs(taps_student=('a', 'b'), taps_teacher=('x', 'y'))
    found = run(head, seen(s), seen(t))
    pairs = [(s[i][:, 2:], t[j][:, 1:]) for i, j in ('ax', 'by')]
    intra = 4 * sum(L.intra_image(*p) for p in pairs) / 2
    inter = 0.1 * sum(L.inter_image(*p) for p in pairs) / 2
    everything = 0.2 * sum(L.random_sampled(*p, 48) for p in pairs) / 2  # 48 patches: all
    assert set(found) == {f'loss_manifold_{k}' for k in ('intra', 'inter', 'random')}
    assert torch.isclose(found['loss_manifold_intra'], intra)
    assert torch.isclose(found['loss_manifold_inter'], inter)
    assert torch.isclose(found['loss_manifold_random'], everything)


def test_manifold_with_prefix_and_single_terms():
    s, t = {'a': tokens(2, (4, 4), 6)}, {'a': tokens(1, (4, 4), 9)}
    options = {'inter_weight': 0, 'random_weight': 0, 'prefix_tokens': (2, 1)}
    found = run(ManifoldHead(taps_student=['a'], with_prefix=True, **options), seen(s), seen(t))
    own = torch.cat([s['a'][:, :1], s['a'][:, 2:]], 1)  # the class token, not the second
    assert set(found) == {'loss_manifold_intra'}
    assert torch.isclose(found['loss_manifold_intra'], 4 * L.intra_image(own, t['a']))


def test_manifold_of_unequal_grids_resizes_the_student_or_merges_both():
    s, t = {'a': tokens(1, (2, 4), 6)}, {'a': torch.randn(3, 4, 8, 9)}
    options = {'inter_weight': 0, 'random_weight': 0, 'prefix_tokens': (1, 0)}
    views = seen(s, size=(16, 32)), seen(t, size=(16, 32))
    patches_t = t['a'].flatten(1, 2)
    maps = s['a'][:, 1:].transpose(1, 2).unflatten(2, (2, 4))
    own = F.interpolate(maps, size=(4, 8), mode='bilinear').flatten(2).transpose(1, 2)
    found = run(ManifoldHead(taps_student=['a'], **options), *views)
    assert torch.isclose(found['loss_manifold_intra'], 4 * L.intra_image(own, patches_t))


def test_merging_brings_unequal_grids_together_without_resizing():
    s, t = {'a': tokens(1, (4, 4), 6)}, {'a': tokens(0, (8, 8), 9)}
    options = {'inter_weight': 0, 'random_weight': 0, 'prefix_tokens': (1, 0)}
    found = run(ManifoldHead(taps_student=['a'], merge=2, **options), seen(s), seen(t))
    merged = (
        L.merge_patches(s['a'][:, 1:], (4, 4), (2, 2)),
        L.merge_patches(t['a'], (8, 8), (2, 2)),
    )
    assert torch.isclose(found['loss_manifold_intra'], 4 * L.intra_image(*merged))


def test_qkv_relation_of_tokens_and_of_windows():
    s, t = {'q': tokens(2, (4, 4), 12)}, {'q': tokens(1, (4, 4), 24)}
    head = QKVRelationHead(taps_student=['q'], prefix_tokens=(2, 1), relation_heads=2)
    own = torch.cat([s['q'][:, :1], s['q'][:, 2:]], 1)
    expected = L.qkv_relation(L.split_qkv(own), L.split_qkv(t['q']), 2)
    assert torch.isclose(run(head, seen(s), seen(t))['loss_qkv'], expected)
    # Windows of Swin fill no grid of the image's proportions.
    s, t = {'q': torch.randn(8, 49, 12)}, {'q': torch.randn(8, 49, 24)}
    head = QKVRelationHead(taps_student=['q'], prefix_tokens=0)
    expected = L.qkv_relation(L.split_qkv(s['q']), L.split_qkv(t['q']))
    views = seen(s, size=(56, 112)), seen(t, size=(56, 112))
    assert torch.isclose(run(head, *views)['loss_qkv'], expected)


def test_similarity_and_rkd():
    s, t = {'a': tokens(1, (4, 4), 6)}, {'a': tokens(1, (4, 4), 9)}
    patches = s['a'][:, 1:], t['a'][:, 1:]
    found = run(SelfSimilarityHead(taps_student=['a'], temperature=0.3), seen(s), seen(t))
    assert torch.isclose(found['loss_similarity'], L.token_self_similarity(*patches, 0.3))
    for pool in ('mean', 'prefix'):
        pooled = [
            x.mean(1) if pool == 'mean' else y['a'][:, 0]
            for x, y in zip(patches, (s, t), strict=True)
        ]
        found = run(RKDHead(taps_student=['a'], pool=pool), seen(s), seen(t))
        assert torch.isclose(found['loss_rkd_distance'], 25 * L.rkd_distance(*pooled))
        assert torch.isclose(found['loss_rkd_angle'], 50 * L.rkd_angle(*pooled))


def test_rkd_of_vectors_and_of_a_distilled_pair():
    own, other = torch.randn(4, 6), (torch.randn(4, 9), torch.randn(4, 9))
    found = run(RKDHead(), seen(feature=own), seen(feature=other))
    assert torch.isclose(found['loss_rkd_distance'], 25 * L.rkd_distance(own, other[0]))


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: ManifoldHead(taps_student=['a', 'b'], taps_teacher=['x']), 'as many'),
        (lambda: ManifoldHead(taps_student=['a'], levels=[0]), 'one kind'),
        (lambda: ManifoldHead(intra_weight=0, inter_weight=0, random_weight=0), 'zero'),
        (lambda: ManifoldHead(taps_student=['a'], merge=2, with_prefix=True), 'merged'),
        (lambda: QKVRelationHead(), 'without attention'),
        (lambda: QKVRelationHead(taps_student=['a'], relation_heads=0), 'relation_heads'),
        (lambda: RKDHead(pool='max'), 'pool'),
        (lambda: LogitHead(loss='mse'), 'dkd'),
        (lambda: LogitHead(loss={'type': 'dkd', 'gamma': 1}), 'alpha'),
        (lambda: LogitHead(temperature=2.0, loss='hard'), 'no temperature'),
        (lambda: NoiseAdaptedHead(4, 1.2), 'share'),
        (lambda: NoiseAdaptedHead(1, 0.9), 'two classes'),
        (lambda: DistillationTokenHead(mode='warm'), 'hard'),
        (lambda: DistillationTokenHead(labels='own'), 'target'),
        (lambda: DistillationTokenHead().bind(nn.Identity(), nn.Identity()), 'DeiTClsHead'),
        (lambda: run(ManifoldHead(), *[seen(feature=torch.zeros(2, 3))] * 2), 'tap blocks'),
        (
            lambda: run(ManifoldHead(taps_student=['a']), *[seen({'a': tokens(0, (4, 4), 6)})] * 2),
            'no grid',
        ),
        (
            lambda: run(ManifoldHead(taps_student=['a']), *[seen({'a': torch.zeros(2, 1, 6)})] * 2),
            'no grid',
        ),
        (
            lambda: run(
                ManifoldHead(taps_student=['a'], merge=3), *[seen({'a': tokens(1, (4, 4), 6)})] * 2
            ),
            'divisors',
        ),
        (
            lambda: run(
                QKVRelationHead(taps_student=['q']),
                seen({'q': torch.zeros(2, 17, 7)}),
                seen({'q': torch.zeros(2, 17, 6)}),
            ),
            'side by side',
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_relation_head_that_knows_no_widths():
    view = seen({'a': tokens(1, (4, 4), 6)})
    with pytest.raises(RuntimeError, match='build_aligners'):
        ManifoldHead(taps_student=['a'])(view, view, Targets(), IMAGES)


# --- response heads -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'key', 'expected'),
    [
        ({}, 'kl', lambda s, t, y: L.kl_divergence(s, t, 4.0)),
        ({'loss': 'kl', 'temperature': 3}, 'kl', lambda s, t, y: L.kl_divergence(s, t, 3.0)),
        ({'loss': 'hard'}, 'hard', lambda s, t, y: L.hard_label(s, t)),
        ({'loss': 'dkd'}, 'dkd', lambda s, t, y: L.dkd(s, t, y)),
        (
            {'loss': {'type': 'dkd', 'beta': 0.5}, 'temperature': 1},
            'dkd',
            lambda s, t, y: L.dkd(s, t, y, beta=0.5, temperature=1),
        ),
        ({'loss': 'nkd'}, 'nkd', lambda s, t, y: L.nkd(s, t, y)),
        ({'loss': 'dist', 'temperature': 2}, 'dist', lambda s, t, y: L.dist(s, t, temperature=2)),
        (
            {'loss': {'type': 'top_k', 'k': 2}},
            'top_k',
            lambda s, t, y: L.sparse_label_ce(s, L.top_k_labels(t, 2)),
        ),
        (
            {'standardize': True},
            'kl',
            lambda s, t, y: L.with_standardized_logits(L.kl_divergence, s, t, temperature=2.0),
        ),
        (
            {'loss': 'dkd', 'standardize': True},
            'dkd',
            lambda s, t, y: L.with_standardized_logits(L.dkd, s, t, labels=y),
        ),
    ],
)
@pytest.mark.parametrize('hard_labels', ['teacher', 'target'])
def test_logit_losses_by_name(options, key, expected, hard_labels):
    s, t, y = torch.randn(4, 5), torch.randn(4, 5), torch.randint(5, (4,))
    head = LogitHead(hard_labels=hard_labels, ce_weight=0.5, **options)
    found = run(head, seen(logits=s), seen(logits=t), Targets(labels=y))
    labels = t.argmax(-1) if hard_labels == 'teacher' else y
    assert set(found) == {f'loss_{key}', 'loss_ce'}
    assert torch.isclose(found[f'loss_{key}'], expected(s, t, labels))
    assert torch.isclose(found['loss_ce'], 0.5 * F.cross_entropy(s, labels))


def test_noise_adapted_head_learns_its_confusions():
    s, t = torch.randn(6, 4), torch.randn(6, 4)
    head = NoiseAdaptedHead(4, 0.8)
    found = run(head, seen(logits=s), seen(logits=t))['loss_noise']
    noise = torch.full((4, 4), 0.2 / 3) + (0.8 - 0.2 / 3) * torch.eye(4)
    expected = -(s.softmax(-1) @ noise).gather(1, t.argmax(-1)[:, None]).log().mean()
    assert torch.isclose(found, expected)
    found.backward()
    assert head.scores.grad.any()
    with pytest.raises(ValueError, match='5 classes'):
        run(head, seen(logits=s), seen(logits=torch.randn(6, 5)))


# --- on networks ----------------------------------------------------------------------------------

NORMALIZER = Normalizer([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], 'rgb')


def classifier(backbone, head, dims, depth):
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS as CLASSIFIERS
    from mmpretrain.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    arch = {
        'embed_dims': dims,
        'num_layers': depth,
        'num_heads': 2,
        'feedforward_channels': dims,
    }
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        net = CLASSIFIERS.build(
            {
                'type': 'ImageClassifier',
                'backbone': {'type': backbone, 'arch': arch, 'img_size': 32, 'patch_size': 8},
                'head': {'type': head, 'num_classes': 5, 'in_channels': dims},
            }
        )
    return build_adapter(net, NORMALIZER)


def test_a_distilled_student_and_a_deeper_wider_teacher():
    """Unequal widths, depths and prefix tokens through mmpretrain's own networks."""
    student = classifier('DistilledVisionTransformer', 'DeiTClsHead', 8, 2)
    teacher = classifier('VisionTransformer', 'VisionTransformerClsHead', 12, 3)
    nn.init.normal_(student.net.head.layers.head_dist.weight)
    nn.init.normal_(teacher.net.head.layers.head.weight)
    own, other = [f'backbone.layers.{i}' for i in (0, 1)], [f'backbone.layers.{i}' for i in (0, 2)]
    blocks = {'taps_student': own, 'taps_teacher': other}
    qkv = {side: [f'{x}.attn.qkv' for x in names] for side, names in blocks.items()}
    prefix = {'prefix_tokens': (2, 1)}
    heads = [
        DistillationTokenHead(mode='soft', temperature=2.0),
        ManifoldHead(**blocks, **prefix),
        QKVRelationHead(**qkv, **prefix),
        SelfSimilarityHead(**blocks, **prefix),
        RKDHead(),
    ]
    images = torch.rand(4, 3, 32, 32)
    theirs = teacher.observe(images, [t for h in heads for t in h.needs.taps_teacher])
    mine = Observation(student.encode(images, [t for h in heads for t in h.needs.taps_student]))
    found = {}
    for head in heads:
        head.bind(student.net, teacher.net)
        head.build_aligners(
            *(
                {'neck': [0], **{k: width(v) for k, v in o.memory.taps.items()}}
                for o in (mine, theirs)
            )
        )
        found.update(head(mine, theirs, Targets(), images))
        assert not list(head.parameters())
    assert all(v.ndim == 0 and torch.isfinite(v) and v > 0 for v in found.values()), found
    sum(found.values()).backward()
    assert [n for n, p in student.net.named_parameters() if p.grad is None] == []
    assert all(p.grad is None for p in teacher.net.parameters())
    class_token, token = mine.memory.feats[-1]
    layers, answer = student.net.head.layers, theirs.response.logits
    expected = L.distillation_token(
        layers.head(class_token), layers.head_dist(token), answer, mode='soft', temperature=2.0
    )
    assert torch.isclose(found['loss_token'], expected)


def test_blocks_of_two_vitdets():
    """Maps with the channels last, windows and whole images; no box head is needed."""

    def backbone(dims, depth):
        return MODELS.build(
            {
                'type': 'mmdfkd.ViTDet',
                'arch': {
                    'embed_dims': dims,
                    'num_layers': depth,
                    'num_heads': 2,
                    'feedforward_channels': dims,
                    'global_indices': (depth - 1,),
                },
                'img_size': 64,
                'patch_size': 8,
                'window_size': 4,
            }
        )

    nets = backbone(12, 2), backbone(16, 3)
    sides = {'taps_student': (0, 1), 'taps_teacher': (0, 2)}
    blocks = {side: [f'blocks.{i}' for i in index] for side, index in sides.items()}
    qkv = {side: [f'{x}.attn.qkv' for x in names] for side, names in blocks.items()}
    heads = [
        ManifoldHead(**blocks, merge=4),
        QKVRelationHead(**qkv),
    ]
    views = []
    for net, side in zip(nets, sides, strict=True):
        with tapped(net, [t for h in heads for t in getattr(h.needs, side)]) as caught:
            feats = net(torch.rand(2, 3, 64, 64))
        views.append(Observation(Memory(tuple(feats), (64, 64), caught)))
    for head in heads:
        found = run(head, *views)
        assert all(torch.isfinite(v) and v > 0 for v in found.values())
        sum(found.values()).backward(retain_graph=True)
    assert nets[0].blocks[0].attn.qkv.weight.grad.any()
    assert all(p.grad is None for p in nets[1].parameters())
