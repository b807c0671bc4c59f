"""What operators do: submit jobs, deploy flows, look at what there is, and treat dead letters."""
