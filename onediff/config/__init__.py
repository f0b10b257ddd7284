"""Configuration: a typed section for each part, YAML composed from small files, and command-line overrides.

This package imports none of the parts that it configures. `run` combines the sections.
"""
