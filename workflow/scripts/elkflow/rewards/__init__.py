"""Stage 5: reward models, and reward tables."""
