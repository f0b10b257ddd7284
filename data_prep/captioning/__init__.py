"""Difference captions written by a language model from what is known in words: an edit, or two images' captions."""
