"""Training of the deployed graph: weights, objective, data, loop and checkpoints."""
