"""Teachers, their masked variants and the pool that runs them."""
