"""Where the module ssh puts things inside a container; loaded in all stages, so nothing else is here."""

PLACE = "/run/squashmount/ssh"
LIBRARIES = f"{PLACE}/lib"
SHELL = "/bin/sh"
CONFIG = "/etc/ssh/ssh_config"
WORD = "ssh"
"""`squashmount-hook ssh FILE`: the hook of the stage createContainer."""
PORT_VARIABLE = "SQUASHMOUNT_SSH_PORT"
