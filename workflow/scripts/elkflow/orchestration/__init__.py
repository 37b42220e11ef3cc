"""What only the Snakefile and the rules use."""
