"""The objectives room."""
