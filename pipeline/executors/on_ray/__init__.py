"""Workers and tasks on a Ray cluster, and the only modules that import ray."""
