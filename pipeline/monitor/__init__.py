"""What a run reports: events, journal, progress, predictions."""
