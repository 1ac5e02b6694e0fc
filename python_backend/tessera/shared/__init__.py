"""State shared by the processes of one server: the board of jobs, and process identities."""
