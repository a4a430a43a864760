"""Training and evaluation: configuration, trainer, hooks, processes."""
