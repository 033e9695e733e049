"""Training of a draft head for the cloud: EAGLE's form, distilled on the model's own answers."""
