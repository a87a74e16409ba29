"""What will this cost?  One interface in front of analytic and learned models."""
