"""Difference captions that a language model writes from texts: an edit instruction, or the captions of both images."""
