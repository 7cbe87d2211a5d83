"""What programs say when containers do not start: known messages with their cause and what to do."""
