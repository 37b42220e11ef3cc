"""Tests that run the workflow itself."""
