"""A training run: its steps, gradients, evaluation, state and results."""
