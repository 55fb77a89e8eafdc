"""Pure loss functions: tensors in, a scalar out; the teacher's side never carries gradient."""

from .box import box_delta_loss
from .co_advise import co_advise
from .dist import dist
from .distillation_token import distillation_token
from .dkd import dkd
from .hard_label import hard_label, label_cross_entropy
from .hidden_relation import hidden_relation
from .kl import bce_with_soft_targets, binary_kl, kl_divergence
from .manifold import (
    ManifoldTerms,
    inter_image,
    intra_image,
    manifold,
    manifold_terms,
    random_sampled,
)
from .mimic import cosine_distance, masked_mimic
from .nkd import nkd
from .noise_adaptation import noise_adapted_nll, noise_matrix
from .pkd import pkd
from .qkv_relation import qkv_relation, split_qkv
from .reduce import weighted_mean
from .rkd import rkd_angle, rkd_distance
from .self_similarity import token_self_similarity
from .sparse_label import SparseLabels, dense_labels, sparse_label_ce, top_k_labels
from .standardization import standardize_logits, with_standardized_logits
from .tokens import merge_patches, patch_tokens

__all__ = [
    'ManifoldTerms',
    'SparseLabels',
    'bce_with_soft_targets',
    'binary_kl',
    'box_delta_loss',
    'co_advise',
    'cosine_distance',
    'dense_labels',
    'dist',
    'distillation_token',
    'dkd',
    'hard_label',
    'hidden_relation',
    'inter_image',
    'intra_image',
    'kl_divergence',
    'label_cross_entropy',
    'manifold',
    'manifold_terms',
    'masked_mimic',
    'merge_patches',
    'nkd',
    'noise_adapted_nll',
    'noise_matrix',
    'patch_tokens',
    'pkd',
    'qkv_relation',
    'random_sampled',
    'rkd_angle',
    'rkd_distance',
    'sparse_label_ce',
    'split_qkv',
    'standardize_logits',
    'token_self_similarity',
    'top_k_labels',
    'weighted_mean',
    'with_standardized_logits',
]
