"""What SANet's further commands do; each has a script of its name in the network's folder."""
