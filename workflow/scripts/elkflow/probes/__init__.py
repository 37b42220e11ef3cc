"""Stage 4: truth probes."""
