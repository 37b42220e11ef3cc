"""Stage 0: checkpoints, and the one place where text becomes token ids."""
