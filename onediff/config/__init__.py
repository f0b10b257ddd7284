"""Configuration: typed sections, YAML composed from small files, overrides from the command line.

Each part keeps its own section beside the code that it configures; `tree` puts them together.
"""
