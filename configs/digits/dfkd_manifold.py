# The row manifold of tools/benchmarks/detectors.py: the main job with manifold distillation of blocks and pyramid beside it.
_base_ = '../manifold/manifold_vitdet_digits.py'
