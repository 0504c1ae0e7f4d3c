"""The virtual device: what i915 or xe is to TTM. Regions, engines, jobs and policy."""
