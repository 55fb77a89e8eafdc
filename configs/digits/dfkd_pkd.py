# The row PKD of tools/benchmarks/detectors.py: the main job with PKD in the place of the weighted errors of the pyramid.
_base_ = '../pkd/pkd_vitdet_digits.py'
