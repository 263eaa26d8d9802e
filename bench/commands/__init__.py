"""The commands that measure: each function gives the works of one."""
