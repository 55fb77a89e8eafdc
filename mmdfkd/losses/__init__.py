"""Pure loss functions: tensors in, a scalar out; the teacher's side never carries gradient."""

from .box import box_delta_loss
from .kl import bce_with_soft_targets, binary_kl, kl_divergence
from .mimic import cosine_distance, masked_mimic
from .pkd import pkd
from .reduce import weighted_mean

__all__ = [
    'bce_with_soft_targets',
    'binary_kl',
    'box_delta_loss',
    'cosine_distance',
    'kl_divergence',
    'masked_mimic',
    'pkd',
    'weighted_mean',
]
