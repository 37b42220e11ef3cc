"""Stage 7: evaluation by lm-evaluation-harness."""
