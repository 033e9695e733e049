"""The conversation of `splitpoint chat`: messages, slash commands, line editing, saved files."""
