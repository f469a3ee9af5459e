"""Making models: grafts, their training, and where cross-attention pays."""
