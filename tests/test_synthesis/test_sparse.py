"""Transformers on a part of their patches, and when patches leave."""

import numpy as np
import pytest
import torch
from prior_nets import teacher

from mmdfkd.adapters import Targets
from mmdfkd.registry import MODELS, TASK_UTILS
from mmdfkd.synthesis.pass_count import counted
from mmdfkd.synthesis.priors.context import SynthesisContext
from mmdfkd.synthesis.sparse import (
    dense_only,
    encode_patches,
    patch_energy,
    patch_grid,
    pixels_of,
    split_patches,
)
from mmdfkd.synthesis.views import InversionViews

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
STILL = dict(zoom=(1, 1), shift=0.0, contrast=0.0, brightness=0.0, noise=0.0)


def every(count=16, batch=3):
    return torch.arange(count).repeat(batch, 1)


def some(count, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor(np.stack([rng.permutation(16)[:count] for _ in range(batch)]))


def mode(kind, **kwargs):
    return TASK_UTILS.build(dict(type=f'mmdfkd.{kind}', **kwargs))


class TestForward:
    @pytest.mark.parametrize('kind', ['vit', 'deit'])
    def test_all_patches_are_the_dense_pass(self, kind):
        net = teacher(kind)
        taps = ('backbone.layers.3.attn.qkv',)
        dense, sparse = net.encode(IMAGES, taps), encode_patches(net, IMAGES, every(), taps)
        torch.testing.assert_close(
            net.answer(sparse).logits, net.answer(dense).logits, rtol=0, atol=1e-6
        )
        torch.testing.assert_close(sparse.taps[taps[0]], dense.taps[taps[0]], rtol=0, atol=1e-5)
        assert dense.kept is None and torch.equal(sparse.kept, every())

    @pytest.mark.parametrize('kind', ['vit', 'deit'])
    def test_some_patches_are_a_pass_on_their_tokens(self, kind):
        """Image by image: embed, add positions, pick rows, run the blocks."""
        net, kept = teacher(kind), some(5)
        found = net.answer(encode_patches(net, IMAGES, kept)).logits
        backbone = net.net.backbone
        prefix = [backbone.cls_token] + ([backbone.dist_token] if kind == 'deit' else [])
        rows = []
        for image, mine in zip(IMAGES, kept, strict=True):
            tokens, _ = backbone.patch_embed(net.normalizer(image[None]))
            tokens = torch.cat([*prefix, tokens], 1)[0] + backbone.pos_embed[0]
            chosen = [*range(len(prefix)), *(int(number) + len(prefix) for number in mine)]
            x = torch.stack([tokens[i] for i in chosen])[None]
            for layer in backbone.layers:
                x = layer(x)
            x = backbone.ln1(x)
            rows.append(net.net.head(((x[:, 0], x[:, 1]) if kind == 'deit' else x[:, 0],)))
        torch.testing.assert_close(found, torch.cat(rows), rtol=0, atol=1e-5)
        assert not torch.allclose(found, net.answer(net.encode(IMAGES)).logits, atol=1e-3)

    def test_gradients_stay_in_the_kept_patches_and_no_hook_is_left(self):
        net, kept = teacher('vit'), some(5)
        images = IMAGES.clone().requires_grad_()
        net.answer(encode_patches(net, images, kept)).logits.sum().backward()
        inside = pixels_of(kept, (4, 4), (16, 16))
        assert inside.sum(dim=(1, 2, 3)).tolist() == [5 * 16] * 3
        moved = images.grad.abs().sum(1, keepdim=True) > 0
        assert torch.equal(moved, inside)
        assert not any(m._forward_pre_hooks for m in net.net.modules())

    def test_passes_are_counted_by_their_tokens(self):
        net = teacher('vit')
        with counted(net.net, (16, 16)) as count:
            net.encode(IMAGES)
            encode_patches(net, IMAGES.clone().requires_grad_(), some(5))
            net.encode(IMAGES[..., :8, :8])
        assert (count.forward, count.steps, count.total) == (6, 3, 9)
        assert count.dense == pytest.approx(3 * (17 + 6 + 5) / 17)
        cnn = teacher('resnet')
        with counted(cnn.net, (16, 16)) as count:
            cnn.encode(IMAGES[..., :8, :8])
        assert count.dense == pytest.approx(3 / 4)

    @pytest.mark.parametrize('kind', ['resnet', 'swin', 'vitdet'])
    def test_who_cannot(self, kind):
        assert 'as a list of tokens' in dense_only(teacher(kind)) or kind == 'vitdet'
        assert dense_only(teacher(kind)) is not None
        assert dense_only(teacher('deit')) is None

    def test_images_that_patches_do_not_cover(self):
        with pytest.raises(ValueError, match='18 x 16 px are no whole number'):
            patch_grid(teacher('vit'), (18, 16))


@pytest.mark.parametrize(
    'prior', ['AttentionPrior', 'AttentionFocusPrior', 'InterHeadPrior', 'PatchSimilarityPrior']
)
def test_attention_terms_on_patches(prior):
    """Of all patches the dense values, in whichever order; of some, finite and others."""
    net, term = teacher('vit'), MODELS.build(dict(type=f'mmdfkd.{prior}'))
    taps = term.taps(net)

    def value(kept):
        ctx = SynthesisContext(IMAGES, Targets(), net, taps=taps)
        if kept is not None:
            ctx.teacher_memory = encode_patches(net, IMAGES, kept, taps)
        return term(ctx)

    dense = value(None)
    torch.testing.assert_close(value(every()), dense, rtol=1e-4, atol=1e-5)
    if prior != 'InterHeadPrior':  # it looks at 16 evenly spread queries, here at all
        torch.testing.assert_close(value(some(16)), dense, rtol=1e-4, atol=1e-5)
    few = value(some(3))
    assert few.shape == (3,) and few.isfinite().all()
    assert not torch.allclose(few, dense, rtol=1e-2)


class TestImportance:
    def test_energy_of_patches(self):
        gradient = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))
        found = patch_energy(gradient, (2, 3))
        for b, row, column in [(0, 0, 0), (1, 1, 2), (0, 1, 0)]:
            patch = gradient[b, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert found[b, 3 * row + column] == pytest.approx(float(patch.square().mean()))

    def test_split(self):
        kept = torch.tensor([[1, 4, 6, 9], [0, 2, 3, 5]])
        scores = torch.tensor([[0.1, 0.9, 0.3, 0.9], [1.0, 1.0, 1.0, 2.0]])
        chosen, others = split_patches(kept, scores, 2)
        assert chosen.tolist() == [[4, 9], [0, 5]] and others.tolist() == [[1, 6], [2, 3]]

    def test_attention_of_the_last_block(self):
        """Rows of the softmax, written out with the layer's own weights."""
        net, kept = teacher('vit'), some(6)
        sparse = mode('PatchDropping')
        taps = sparse.taps(net)
        ctx = SynthesisContext(IMAGES, Targets(), net, taps=taps)
        ctx.teacher_memory = encode_patches(net, IMAGES, kept, taps)
        qkv = ctx.teacher_memory.taps[taps[0]].view(3, 7, 3, 3, 8)
        scores = torch.einsum('bhd,bnhd->bhn', qkv[:, 0, 0], qkv[:, 1:, 1]) / 8**0.5
        wanted = scores.softmax(-1).mean(1)
        torch.testing.assert_close(sparse.scores(ctx, IMAGES, kept), wanted)
        by_gradient = mode('PatchDropping', importance='gradient')
        assert by_gradient.taps(net) == ()
        found = by_gradient.scores(ctx, IMAGES, kept)
        assert torch.equal(found, patch_energy(IMAGES, (4, 4)).gather(1, kept))


class TestSchedules:
    def test_the_published_dropping_costs_a_quarter(self):
        published = mode('PatchDropping', at=(0.0125, 0.025, 0.05, 0.075))
        events = published.events(196, 4000)
        assert events == {50: 137, 100: 96, 200: 67, 300: 47}
        assert published.mean_share(196, 4000) == pytest.approx(0.264, abs=2e-3)

    def test_short_runs(self):
        """At least one step and one patch; what falls on one step counts once."""
        events = mode('PatchDropping').events(4, 10)
        assert events == {1: 2, 2: 1, 3: 1}
        assert mode('PatchDropping').events(16, 1) == {}
        assert mode('PatchDropping').watched(events, 0)
        assert not mode('PatchDropping').watched(events, 3)
        assert not mode('PatchDropping', window=2).watched({5: 1}, 2)

    @pytest.mark.parametrize('count', [2, 4, 7])
    def test_rebirth(self, count):
        sparse = mode('PatchRebirth', images=count)
        events = sparse.events(196, 700)
        assert list(events) == [700 * k // count for k in range(1, count + 1)]
        assert sum(events.values()) == 196 and max(events.values()) - min(events.values()) <= 1
        assert sparse.mean_share(196, 700) == pytest.approx((count + 1) / (2 * count), abs=5e-3)

    @pytest.mark.parametrize(
        ('kind', 'wrong', 'match'),
        [
            ('PatchDropping', dict(at=()), 'at has'),
            ('PatchDropping', dict(at=(0.5, 0.2)), 'at has'),
            ('PatchDropping', dict(at=(0.5, 1.0)), 'at has'),
            ('PatchDropping', dict(share=1.0), 'share'),
            ('PatchDropping', dict(importance='size'), 'importance'),
            ('PatchDropping', dict(window=0), 'window'),
            ('PatchRebirth', dict(dropped='black'), 'dropped'),
            ('PatchRebirth', dict(images=1), 'images'),
        ],
    )
    def test_bad_arguments(self, kind, wrong, match):
        with pytest.raises(ValueError, match=f'{kind}: .*{match}'):
            mode(kind, **wrong)

    def test_too_few_patches(self):
        with pytest.raises(ValueError, match='as many patches and steps'):
            mode('PatchRebirth', images=4).events(3, 100)


class TestViews:
    def rngs(self, *serials):
        return [np.random.default_rng(serial) for serial in serials]

    def test_patches_stay_patches(self):
        """Where a patch is said to be, it is: rolled, or mirrored with its image."""
        views = InversionViews(flip=0.5, roll=3, **STILL)
        kept = some(6)
        seen = set()
        for first in range(0, 12, 3):
            images, at = views.of_patches(
                IMAGES, self.rngs(first, first + 1, first + 2), kept, (4, 4)
            )
            for b in range(3):
                for number, place in zip(kept[b].tolist(), at[b].tolist(), strict=True):
                    mine, there = (
                        source[b].unfold(1, 4, 4).unfold(2, 4, 4)[:, n // 4, n % 4]
                        for source, n in ((IMAGES, number), (images, place))
                    )
                    same = [torch.allclose(there, own, atol=1e-4) for own in (mine, mine.flip(-1))]
                    assert any(same)
                    seen.add(same.index(True))
        assert seen == {0, 1}

    def test_boxes_go_with_a_flip(self):
        images = torch.zeros(1, 3, 8, 16)
        images[..., 2:4, 1:5] = 1
        views, (boxes,) = InversionViews(flip=1.0, **STILL)(
            images, self.rngs(0), [torch.tensor([[1.0, 2.0, 5.0, 4.0]])]
        )
        assert boxes.tolist() == [[11.0, 2.0, 15.0, 4.0]]
        torch.testing.assert_close(views, images.flip(-1), rtol=0, atol=1e-4)

    def test_a_view_is_its_own_images(self):
        views = InversionViews(flip=0.5)
        whole = views(IMAGES, self.rngs(4, 5, 6))[0]
        part = views(IMAGES[1:], self.rngs(5, 6))[0]
        torch.testing.assert_close(whole[1:], part, rtol=0, atol=1e-6)
        assert not torch.allclose(whole[1:], views(IMAGES[1:], self.rngs(7, 8))[0], atol=0.01)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match='flip'):
            InversionViews(flip=2)
        with pytest.raises(ValueError, match='roll'):
            InversionViews(roll=-1)
