"""What must survive a crash: runs, checkpoints, arriving updates, journals, rosters, the audit log."""
