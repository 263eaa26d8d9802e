"""Frameworks of others, with their files by aiozc. Each module needs the framework it is for."""
