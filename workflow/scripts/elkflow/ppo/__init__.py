"""Stage 6: fine-tuning on the reward."""
