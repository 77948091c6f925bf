"""Evaluation: how weights are judged."""
