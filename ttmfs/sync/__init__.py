"""Fences, reservations and exec: what dma-fence, dma-resv, ww_mutex and drm_exec are to the kernel."""
