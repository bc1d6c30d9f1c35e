"""One module per tab: NAME, and build(context), which holds components and wiring and calls the engine."""
