"""What every command line of ours shares."""
