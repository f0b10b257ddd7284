"""The model: vision tower, delta module, projector and language model."""
