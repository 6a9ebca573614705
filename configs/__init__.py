"""Shipped configurations: one YAML file a thing to run."""
