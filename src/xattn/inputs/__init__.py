"""Raw inputs to model inputs: text, audio."""
