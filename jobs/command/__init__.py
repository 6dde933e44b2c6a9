"""What every command shares: options, exits, and the tasks a job runs as."""
