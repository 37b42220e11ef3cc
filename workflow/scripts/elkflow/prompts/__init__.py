"""Stage 2: prompts, rendered from templates."""
