"""What people run: submit jobs, deploy flows, look at an installation, and treat dead letters."""
