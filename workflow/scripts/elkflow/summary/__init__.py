"""Stage 8: base against tuned models, and the verdict."""
