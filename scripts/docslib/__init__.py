"""docslib: makes docs/reference.md from the tables that the mount and the command line are made of."""
