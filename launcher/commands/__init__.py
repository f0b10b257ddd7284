"""The subcommands of `onediff launch`, one module each."""
