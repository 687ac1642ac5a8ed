"""`evaluate.load("evaluation/metrics/cer")`: the character error rate as an `evaluate` module."""

from nest_hf.metrics import CharacterErrorRate

__all__ = ["CharacterErrorRate"]
