"""From a model and a plan to a bundle."""
