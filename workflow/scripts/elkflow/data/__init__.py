"""Stage 1: labelled rows, assigned to disjoint splits."""
