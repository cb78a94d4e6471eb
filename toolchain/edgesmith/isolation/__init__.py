"""Steps in a process of their own, with a limit of time and of memory, so that a fault there is a message here."""
