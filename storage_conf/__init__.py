"""What the machine must look like: storage.conf and containers.conf, generated and checked."""
