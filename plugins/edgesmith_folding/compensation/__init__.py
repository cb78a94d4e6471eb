"""Makes up in closed form for what a removed run of blocks did."""
