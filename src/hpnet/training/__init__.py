"""Training: how weights are learnt."""
