"""Pure loss functions: tensors in, a scalar out; the teacher's side never carries gradient."""

from .attention_consistency import attention_consistency, attention_uniformity, patch_attention
from .attention_probe import attention_probe, class_gram_row
from .attention_rows import attention_rows, qkv_heads
from .box import box_delta_loss
from .channel_map import channel_map_mimic, to_student_channels
from .co_advise import co_advise
from .cross_architecture import deceiver_loss, discriminator_loss, partially_cross_attention
from .cwd import cwd
from .dense import dense_box_loss, localization_distillation, quality_focal
from .dist import dist
from .distillation_token import distillation_token
from .dkd import dkd
from .fgd import attention_masks, box_places, fgd_focal
from .hard_label import hard_label, label_cross_entropy
from .head_attention import head_attention, ssim
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
from .mgd import mgd
from .mimic import cosine_distance, masked_mimic
from .nkd import nkd
from .noise_adaptation import noise_adapted_nll, noise_matrix
from .pkd import pkd
from .qkv_relation import qkv_relation, split_qkv
from .query import (
    foreground,
    generalized_iou,
    query_box_loss,
    query_class_loss,
    query_cost,
)
from .random_mask import random_mask
from .recalibration import feature_recalibration
from .reduce import weighted_mean
from .rkd import rkd_angle, rkd_distance
from .self_similarity import token_self_similarity
from .simreg import simreg
from .sparse_label import SparseLabels, dense_labels, sparse_label_ce, top_k_labels
from .standardization import standardize_logits, with_standardized_logits
from .target_aware import target_aware, target_aware_features
from .tokens import merge_patches, patch_tokens
from .vitkd import vitkd_generation, vitkd_mimic

__all__ = [
    'ManifoldTerms',
    'SparseLabels',
    'attention_consistency',
    'attention_masks',
    'attention_probe',
    'attention_rows',
    'attention_uniformity',
    'bce_with_soft_targets',
    'binary_kl',
    'box_delta_loss',
    'box_places',
    'channel_map_mimic',
    'class_gram_row',
    'co_advise',
    'cosine_distance',
    'cwd',
    'deceiver_loss',
    'dense_box_loss',
    'dense_labels',
    'discriminator_loss',
    'dist',
    'distillation_token',
    'dkd',
    'feature_recalibration',
    'fgd_focal',
    'foreground',
    'generalized_iou',
    'hard_label',
    'head_attention',
    'hidden_relation',
    'inter_image',
    'intra_image',
    'kl_divergence',
    'label_cross_entropy',
    'localization_distillation',
    'manifold',
    'manifold_terms',
    'masked_mimic',
    'merge_patches',
    'mgd',
    'nkd',
    'noise_adapted_nll',
    'noise_matrix',
    'partially_cross_attention',
    'patch_attention',
    'patch_tokens',
    'pkd',
    'qkv_heads',
    'qkv_relation',
    'quality_focal',
    'query_box_loss',
    'query_class_loss',
    'query_cost',
    'random_mask',
    'random_sampled',
    'rkd_angle',
    'rkd_distance',
    'simreg',
    'sparse_label_ce',
    'split_qkv',
    'ssim',
    'standardize_logits',
    'target_aware',
    'target_aware_features',
    'to_student_channels',
    'token_self_similarity',
    'top_k_labels',
    'vitkd_generation',
    'vitkd_mimic',
    'weighted_mean',
    'with_standardized_logits',
]
