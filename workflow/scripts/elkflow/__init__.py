"""Probe rewards, PPO on them, and the evidence that they worked."""
