"""Training: from prepared data to events and a model bundle."""
