"""What a configuration names on the Hugging Face hub: which files that is, whether they are here, and bringing them."""
