"""From a pulled image to the additional image store on the shared file system."""
