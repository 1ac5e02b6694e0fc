"""What the processes of one server share: the job board, and each other's ids."""
