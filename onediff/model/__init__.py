"""The model: vision tower, delta module, projector, language model."""
