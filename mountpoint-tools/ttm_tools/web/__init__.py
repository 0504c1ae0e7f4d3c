"""ttm-web: a page, served on 127.0.0.1, that shows a mount live."""
