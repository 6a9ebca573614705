"""Routers: gate x selection x balance x combine."""
