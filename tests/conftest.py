"""What holds for all tests: an example of hypothesis has no deadline, as machines are shared."""

from hypothesis import settings

settings.register_profile("peertune", deadline=None)
settings.load_profile("peertune")
