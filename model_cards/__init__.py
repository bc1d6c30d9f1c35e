"""The cards of the zoo's checkpoints and the tool that builds them; run in the clone, not installed."""
