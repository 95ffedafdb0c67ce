"""Migrations of the app: each release that changes the schema has one."""
