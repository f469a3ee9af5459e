"""A corpus whose passages were encoded once, and answers that attend over those they need."""
