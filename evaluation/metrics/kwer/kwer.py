"""`evaluate.load("evaluation/metrics/kwer", keywords=[...])`: the keyword error rate as an `evaluate` module."""

from nest_hf.metrics import KeywordErrorRate

__all__ = ["KeywordErrorRate"]
