"""Run container images from one squash file. Stays empty: it is imported at every container start."""
