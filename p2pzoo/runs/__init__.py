"""What a run leaves: its folder, numbers, findings, report."""
