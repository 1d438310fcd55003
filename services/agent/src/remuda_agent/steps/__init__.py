"""Steps: what the leader can ask of a host, each safe to repeat."""

from remuda_agent.steps.runner import StepRunner

__all__ = ["StepRunner"]
