"""Default schedules: each planner gives a list of ordinary rewrite steps, and nothing else."""
