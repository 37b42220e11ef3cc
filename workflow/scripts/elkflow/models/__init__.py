"""Stage 0: checkpoints, and the single place where text becomes token ids."""
