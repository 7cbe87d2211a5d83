"""The squashfs 4.0 file format: a lazy, thread-safe, bounds-checked reader."""
