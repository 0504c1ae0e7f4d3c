"""What may be written into the files of commands: words, tables, the runner, and what comes of a line."""
