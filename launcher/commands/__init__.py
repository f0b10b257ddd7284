"""`onediff launch …`: one module a subcommand."""
