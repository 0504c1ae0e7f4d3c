"""SVM: shared virtual address spaces whose ranges migrate to VRAM and back (drm_gpusvm, drm_pagemap, xe_svm)."""
