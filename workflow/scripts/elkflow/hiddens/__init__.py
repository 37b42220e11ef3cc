"""Stage 3: hidden states of contrast pairs."""
