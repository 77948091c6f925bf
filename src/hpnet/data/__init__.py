"""Data: photos and part labels come in here, and nothing of the network is known here."""
