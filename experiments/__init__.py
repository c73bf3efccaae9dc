"""What is run: configurations, their mains and their results."""
