"""Training and evaluating models on labelled images."""
