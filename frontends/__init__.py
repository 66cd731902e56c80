"""Roads into the IR."""
