"""Gates: what scores the teachers for an instance."""
