"""Weights from trainer to sampler: a staging buffer that both map, filled bucket by bucket."""
