"""The transforms room."""
