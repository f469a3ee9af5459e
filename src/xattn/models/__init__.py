"""Networks: layers, the one decoder, encoders, their state, and loading them from checkpoints."""
