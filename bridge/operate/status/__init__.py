"""What is under way, as `kestra-bridge status` shows it."""
