"""Jobs: states, storage and life cycle."""
