"""Which samples to train on."""
