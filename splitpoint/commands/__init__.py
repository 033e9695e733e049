"""The subcommands of `splitpoint`, one file each."""
