"""Doors to pipelines and collections for people and programs: pages, services, notebooks."""
