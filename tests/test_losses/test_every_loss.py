"""What every loss of the room keeps to: no teacher gradient, finite in halves, smooth where it is.

Their equations are in the other files; a loss that is added has to be added to the table here.
"""

import pytest
import torch

from mmdfkd import losses
from mmdfkd.losses import attention_rows, noise_matrix, qkv_heads, top_k_labels

# What the room gives beside losses: parts of them, measures, and what prepares their inputs.
PARTS = {
    'ManifoldTerms', 'SparseLabels', 'attention_masks', 'attention_rows', 'attention_uniformity',
    'box_places', 'class_gram_row', 'dense_labels', 'foreground', 'generalized_iou',
    'merge_patches', 'noise_matrix', 'patch_attention', 'patch_tokens', 'qkv_heads', 'query_cost',
    'random_mask', 'split_qkv', 'ssim', 'standardize_logits', 'target_aware_features',
    'to_student_channels', 'top_k_labels', 'weighted_mean',
}  # fmt: skip


def rows(tokens):
    """Attention of two heads, of their first tokens."""
    query, key, _ = qkv_heads(tokens, 2)
    return attention_rows(query, key)


def maps(tokens):
    return tokens.transpose(1, 2).unflatten(2, (2, 3))


def corners(tokens):
    """Boxes of some extent, xyxy."""
    corner = tokens[..., :2]
    return torch.cat([corner, corner + 1 + tokens[..., 2:4].sigmoid()], -1)


def centres(tokens):
    return tokens[..., :4].sigmoid()


def ones(tokens):
    return torch.ones(tokens.shape[:-1])


def swapped(tokens, k):
    return (torch.arange(tokens.shape[1]) % k == 0)[:, None].expand(tokens.shape)


# Each of tokens [2, 6, 12] of the student and of the teacher.
CASES = {
    'attention_consistency': lambda f, s, t: f(rows(s), rows(t)),
    'attention_probe': lambda f, s, t: f(s, t),
    'bce_with_soft_targets': lambda f, s, t: f(s, t),
    'binary_kl': lambda f, s, t: f(s, t),
    'box_delta_loss': lambda f, s, t: f(s[0], t[0], t[0, :, :3].sigmoid()),
    'channel_map_mimic': lambda f, s, t: f(s[..., :5], t, torch.tensor([0, 3, 4, 8, 11])),
    'co_advise': lambda f, s, t: f(s[0], [2 * s[0], s[1]], [t[0], t[1]]),
    'cosine_distance': lambda f, s, t: f(s, t, dim=-1),
    'cwd': lambda f, s, t: f(maps(s), maps(t)),
    'deceiver_loss': lambda f, s, t: f(s),
    'dense_box_loss': lambda f, s, t: f(corners(s), corners(t), ones(s)),
    # Both sides' logits train the discriminator, by design: the features are detached before it.
    'discriminator_loss': lambda f, s, t: f(t.detach(), s),
    'dist': lambda f, s, t: f(s[0], t[0]),
    'distillation_token': lambda f, s, t: f(s[0], s[1], t[0], mode='soft'),
    'dkd': lambda f, s, t: f(s[0], t[0]),
    'feature_recalibration': lambda f, s, t: f([s, 2 * s], [t, t[..., :12]], True),
    'fgd_focal': lambda f, s, t: sum(
        f(maps(s), maps(t), torch.full((2, 2, 3), 0.1), torch.full((2, 2, 3), 0.2))
    ),
    'hard_label': lambda f, s, t: f(s, t),
    'head_attention': lambda f, s, t: f(rows(s), rows(t)),
    'hidden_relation': lambda f, s, t: f(s, t[..., :9]),
    'inter_image': lambda f, s, t: f(s, t[..., :9]),
    'intra_image': lambda f, s, t: f(s, t[..., :9]),
    'kl_divergence': lambda f, s, t: f(s, t),
    'label_cross_entropy': lambda f, s, t: f(s, t.float().softmax(-1)),
    'localization_distillation': lambda f, s, t: f(
        s.unflatten(-1, (4, 3)), t.unflatten(-1, (4, 3)), ones(s)
    ),
    'manifold': lambda f, s, t: f(s, t[:, 1:, :9], prefix_tokens=(2, 1)),
    'manifold_terms': lambda f, s, t: sum(f(s, t[:, 1:, :9], prefix_tokens=(2, 1))),
    'masked_mimic': lambda f, s, t: f(s, t, dim=-1),
    'mgd': lambda f, s, t: f(maps(s), maps(t)),
    'nkd': lambda f, s, t: f(s[0], t[0]),
    'noise_adapted_nll': lambda f, s, t: f(
        s[0], t[0].argmax(-1), noise_matrix(torch.zeros(12, 11), 0.9)
    ),
    'partially_cross_attention': lambda f, s, t: f(
        (s, 2 * s, s), (t, t, 2 * t), [swapped(s, k) for k in (2, 3, 2)]
    ),
    'pkd': lambda f, s, t: f(maps(s), maps(t)),
    'qkv_relation': lambda f, s, t: f((s, s, 2 * s), (t[..., :9], t[..., :9], t[..., :9])),
    'quality_focal': lambda f, s, t: f(s, t),
    'query_box_loss': lambda f, s, t: sum(f(centres(s), centres(t), ones(s))),
    'query_class_loss': lambda f, s, t: f(s, t, ones(s), True),
    'random_sampled': lambda f, s, t: f(s, t[..., :9], indices=torch.arange(7)),
    'rkd_angle': lambda f, s, t: f(s[0], t[0, :, :9]),
    'rkd_distance': lambda f, s, t: f(s[0], t[0, :, :9]),
    'simreg': lambda f, s, t: f(s, t),
    'sparse_label_ce': lambda f, s, t: f(s[0], top_k_labels(t[0], 4)),
    'target_aware': lambda f, s, t: f(s, 2 * s, t[:, :4], scale=0.1),
    'token_self_similarity': lambda f, s, t: f(s, t[..., :9]),
    'vitkd_generation': lambda f, s, t: f(s, t, swapped(s, 2)[..., 0]),
    'vitkd_mimic': lambda f, s, t: f(s, t),
    'with_standardized_logits': lambda f, s, t: f(losses.kl_divergence, s[0], t[0]),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def run(name, student, teacher):
    return CASES[name](getattr(losses, name), student, teacher)


def test_the_table_is_whole():
    assert set(CASES) | PARTS == set(losses.__all__)
    assert not set(CASES) & PARTS


@pytest.mark.parametrize('name', CASES)
def test_gradient_goes_to_the_student_alone(name):
    s, t = (torch.randn(2, 6, 12, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = run(name, s, t)
    assert loss.dim() == 0
    loss.backward()
    assert s.grad.any()
    assert t.grad is None


@pytest.mark.parametrize('name', CASES)
def test_gradient_is_that_of_the_value(name):
    """At random places every one of them is smooth."""
    s = torch.randn(2, 6, 12, dtype=torch.float64, requires_grad=True)
    t = torch.randn(2, 6, 12, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: run(name, x, t), (s,), fast_mode=True)


@pytest.mark.parametrize('name', CASES)
def test_bfloat16_is_finite_and_not_rounded_further(name):
    s, t = (20 * torch.randn(2, 6, 12).bfloat16() for _ in range(2))
    s.requires_grad_()
    loss = run(name, s, t)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    (grad,) = torch.autograd.grad(loss, s)
    assert torch.isfinite(grad).all()
