"""Base models to analyse and to fine-tune: each a `Trainable` of `woodshed.contracts`."""
