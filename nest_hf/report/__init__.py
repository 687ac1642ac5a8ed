"""Reports to look at: scores of recognisers and curves of training, each as one HTML file that needs no network."""

from .runs import build_runs_report
from .score_files import read_scores
from .scores import build_report

__all__ = ["build_report", "build_runs_report", "read_scores"]
