"""The config's sections, one module a stage, so that a stage depends on its own settings only."""
