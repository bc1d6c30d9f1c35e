"""Looking inside a generator: what its attention could see (`receptive`), and what it does look at."""
