"""Which copies of guests may be set running on this host since it was booted."""

from remuda_agent.quarantine.quarantine import Quarantine
from remuda_agent.quarantine.standing import Decision, Found, Standing

__all__ = ["Decision", "Found", "Quarantine", "Standing"]
