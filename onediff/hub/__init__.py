"""The Hugging Face hub: weights that a configuration names, and exports as models that others can load."""
