"""Stage 1: labelled rows, dealt to disjoint splits."""
