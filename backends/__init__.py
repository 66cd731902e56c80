"""Roads out of the IR: one folder each. `kir.backend` holds the table of targets."""
