"""Datasets and models on the hub."""
