"""Values, layouts, randomness and errors: what every layer speaks of."""
