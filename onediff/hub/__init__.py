"""The Hugging Face hub: downloads of models that a configuration names, and exports for transformers."""
