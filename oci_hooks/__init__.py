"""What is injected into a container when it starts."""
