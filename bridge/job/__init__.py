"""What a message asks for and what becomes of it: pure types and decisions, without I/O."""
