"""Names for the different kinds of string, so that mixing them up fails in the type checker."""

from .lean import NewType

ImageId = NewType("ImageId", str)
"""64 lower-case hex digits: the digest of the image configuration, without `sha256:`."""

LayerId = NewType("LayerId", str)
"""64 lower-case hex digits naming a layer directory `overlay/<id>`."""

LinkId = NewType("LinkId", str)
"""26 upper-case letters and digits naming the short link `overlay/l/<link>`."""
