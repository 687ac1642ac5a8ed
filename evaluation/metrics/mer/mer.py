"""`evaluate.load("evaluation/metrics/mer")`: the mixed error rate as an `evaluate` module."""

from nest_hf.metrics import MixedErrorRate

__all__ = ["MixedErrorRate"]
