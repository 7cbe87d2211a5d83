"""Why containers do not start here, for this user: every check has an id, a cause and a fix."""
