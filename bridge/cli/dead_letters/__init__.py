"""`kestra-bridge dead-letters`: look at dead letters, put their jobs back, or remove them."""
