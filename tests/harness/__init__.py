"""Real processes for the tests: Redis Clusters, daemons, tools. Standard library only."""
