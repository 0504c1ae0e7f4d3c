"""What holds for every test: nothing fails because the machine is slow just now."""

from hypothesis import HealthCheck, settings

settings.register_profile("ttmfs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ttmfs")
