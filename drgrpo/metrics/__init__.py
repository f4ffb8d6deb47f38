"""Numbers for tracking: of a step's sample table and of an evaluation."""

from drgrpo.metrics.evaluation import EvaluationSummary, evaluation_metrics, paired_difference
from drgrpo.metrics.samples import sample_metrics

__all__ = ["EvaluationSummary", "evaluation_metrics", "paired_difference", "sample_metrics"]
