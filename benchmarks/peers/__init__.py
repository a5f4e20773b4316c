"""The other sides of the speed benchmark. They run in an environment of their own and never import burnish."""
