"""The measurements of scripts/bench: one module per subcommand, found by itself; `common` and `main` serve them all."""
