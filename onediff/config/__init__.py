"""Configuration: typed sections for every part, YAML composed from small files, overrides from the command line.

The ground floor: it imports nothing of the parts that it configures. `run` puts the sections together.
"""
