"""FUSE servers over one squash file: what the tree means (tree) and how it is spoken (wire)."""
