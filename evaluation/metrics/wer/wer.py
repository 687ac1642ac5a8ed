"""`evaluate.load("evaluation/metrics/wer", segmenter="jieba")`: the word error rate as an `evaluate` module."""

from nest_hf.metrics import WordErrorRate

__all__ = ["WordErrorRate"]
