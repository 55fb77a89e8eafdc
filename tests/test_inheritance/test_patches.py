import pytest
import torch
import torch.nn.functional as F
from networks import build, classifier_config, smooth_images

from mmdfkd.inheritance import inherit, shrink_config
from mmdfkd.inheritance.patches import resize_matrix, resize_patch_embedding, resize_tokens

IMAGES = smooth_images(48, 32)


@pytest.mark.parametrize('new', [(8, 8), (6, 10)])
def test_larger_patches_are_embedded_as_the_smaller_ones(new):
    torch.manual_seed(0)
    weight, patch = torch.randn(5, 3, 4, 4).double(), torch.randn(7, 3, 4, 4).double()
    own = resize_patch_embedding(weight, new)
    bigger = (patch.flatten(2) @ resize_matrix((4, 4), new).t()).unflatten(-1, new)
    torch.testing.assert_close(F.conv2d(bigger, own), F.conv2d(patch, weight))


def test_smaller_patches_are_embedded_as_nearly_as_possible():
    torch.manual_seed(0)
    weight, patch = torch.randn(5, 3, 8, 8).double(), torch.randn(4000, 3, 8, 8).double()
    matrix = resize_matrix((8, 8), (4, 4))
    own = resize_patch_embedding(weight, (4, 4))
    assert own.shape == (5, 3, 4, 4)
    smaller = (patch.flatten(2) @ matrix.t()).flatten(1)
    best = torch.linalg.lstsq(smaller, patch.flatten(1) @ weight.flatten(1).t()).solution

    def error(w):
        return float((smaller @ w - patch.flatten(1) @ weight.flatten(1).t()).square().mean())

    # Least squares on white patches; plain resizing of the weights is far from it.
    assert error(own.flatten(1).t()) < 1.02 * error(best)
    plain = (weight.flatten(2) @ matrix.t()).flatten(1)
    assert error(own.flatten(1).t()) < 0.9 * error(plain.t())


def test_resizing_is_that_of_torch():
    image = torch.rand(1, 1, 8, 8).double()
    mine = (resize_matrix((8, 8), (3, 5)) @ image.flatten()).view(1, 1, 3, 5)
    theirs = F.interpolate(image, (3, 5), mode='bilinear', antialias=True)
    torch.testing.assert_close(mine, theirs)


def test_tokens_keep_their_prefix():
    tokens = torch.rand(2, 1 + 6, 3)
    resized = resize_tokens(tokens, 1, (2, 3), (4, 6))
    assert resized.shape == (2, 25, 3) and torch.equal(resized[:, :1], tokens[:, :1])
    torch.testing.assert_close(resized[:, 1:].mean(1), tokens[:, 1:].mean(1), atol=1e-5, rtol=0)
    assert resize_tokens(tokens, 1, (2, 3), (2, 3)) is tokens


def logits(adapter, images):
    with torch.no_grad():
        return adapter.answer(adapter.encode(images), None).logits


def test_a_student_of_larger_patches_sees_enlarged_images_as_its_teacher():
    """Nothing cut, patch by patch the same content: equal outputs."""
    cfg = classifier_config()
    teacher = build(cfg)
    model = shrink_config(cfg, 1, 1, patch_size=16)
    assert model.backbone.patch_size == 16 and model.backbone.img_size == 32
    model.backbone.img_size = 64
    student = build(cfg, model, seed=7)
    inherit(teacher, student, IMAGES, 'select')
    patches = F.unfold(IMAGES[:4], 8, stride=8).view(4, 3, 64, 16)
    bigger = torch.einsum('bcpn,qp->bcqn', patches, resize_matrix((8, 8), (16, 16)))
    bigger = F.fold(bigger.flatten(1, 2), 64, 16, stride=16)
    torch.testing.assert_close(
        logits(student, bigger), logits(teacher, IMAGES[:4]), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize('patch', [4, 16])
def test_another_patch_size_is_inherited_and_refitted(patch):
    cfg = classifier_config()
    teacher = build(cfg)
    kl = {}
    for start in ('none', 'block'):
        model = shrink_config(cfg, 0.75, 0.8, patch_size=patch)
        student = build(cfg, model, seed=7)
        assert student.net.backbone.patch_resolution == (32 // patch, 32 // patch)
        kl[start] = inherit(teacher, student, IMAGES, refit=start).agreement['kl']
    assert kl['block'] < kl['none']


def test_refused():
    cfg = classifier_config()
    with pytest.raises(ValueError, match='patch_size=0'):
        shrink_config(cfg, patch_size=0)
    from networks import detector_config

    with pytest.raises(ValueError, match='ViTDet, whose windows'):
        shrink_config(detector_config(), patch_size=16)
    model = shrink_config(cfg)
    model.backbone.update(patch_size=4, patch_cfg=dict(stride=2))
    with pytest.raises(ValueError, match='overlaps'):
        inherit(build(cfg), build(cfg, model), IMAGES)
